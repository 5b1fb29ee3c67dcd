"""One static HTML page that shows a run to a person in an incident: which request was slow, in which state, behind
whom, and what memory did then.

The page needs nothing but itself: style, scripts and data are inside, and its content security policy allows no other.
Open it from a disk, mail it, attach it to an issue.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle.audit import Report
from pawl.lifecycle.export.timeline import WAITING, RequestLine, StepLine, Timeline
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import State

MAX_REQUESTS, MAX_STEPS, MAX_SAMPLES = 20_000, 50_000, 20_000
"""What one page shows at the most. The page says what was left out."""
MAX_SLOWEST = 1_000
"""Requests that are shown for each kind of latency they are among the worst in, however old they are."""
MAX_LOADS = 20_000
"""Points of the curves of waiting and running requests."""
SCRIPTS = ("model.js", "charts.js", "page.js")
QUANTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
_DEFAULTS = msgspec.to_builtins(SamplingParameters())


def render(line: Timeline, report: Report) -> str:
    """The page for one run and its audit."""
    own = files("pawl.viewer")
    style = (own / "page.css").read_text(encoding="utf-8")
    script = "".join((own / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # "<" inside a script element could end it.
    data = msgspec.json.encode(run_data(line, report)).decode().replace("<", "\\u003c")
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    parts = {"policy": policy, "style": style, "data": data, "script": script}
    page = (own / "page.html").read_text(encoding="utf-8")
    # In one pass: what is put in is never looked at again, whatever names clients have chosen.
    return re.sub(r"\{\{(policy|style|data|script)\}\}", lambda place: parts[place[1]], page)


def run_data(line: Timeline, report: Report) -> dict[str, Any]:
    """What the page's script gets. Times are milliseconds from the start of the run, rounded to microseconds."""
    start = line.start
    started = line.started
    requests = _shown(line.requests, {finding.violation.request for finding in report.findings})
    steps, samples = line.steps[-MAX_STEPS:], line.pages[-MAX_SAMPLES:]
    left_out = {
        "requests": len(line.requests) - len(requests),
        "steps": len(line.steps) - len(steps),
        "memory samples": len(line.pages) - len(samples),
    }
    return {
        "model": started.model if started is not None else "",
        "version": started.version if started is not None else "",
        "wall": started.wall if started is not None else None,
        "num_pages": started.num_pages if started is not None else None,
        "page_size": started.page_size if started is not None else None,
        "num_slots": started.num_slots if started is not None else None,
        "end": _milliseconds(line.end, start),
        "states": [state.name.lower() for state in State],
        "waiting": [state.name.lower() for state in State if state in WAITING],
        "verdict": report.verdict.name,
        "missing": list(report.missing),
        "violations": [
            {
                "property": finding.violation.property,
                "text": finding.violation.explanation,
                "request": finding.violation.request,
                "record": finding.violation.record,
                "slice": [f"{each.record}: {each.text}" for each in finding.slice],
            }
            for finding in report.findings
        ],
        "num_requests": len(line.requests),
        "num_steps": len(line.steps),
        "causes": _causes(line.requests),
        "latencies": _latencies(line.requests),
        "loads": _loads(line, start),
        "requests": [_request(one, start) for one in requests],
        "steps": [_step(one, start) for one in steps],
        "pages": [[_milliseconds(sample.time, start), *sample.pages] for sample in samples],
        "page_classes": list(samples[0].pages._fields) if samples else [],
        "left_out": {name: count for name, count in left_out.items() if count},
    }


def _milliseconds(time: float | None, start: float) -> float | None:
    return None if time is None else round((time - start) * 1e3, 3)


def _request(one: RequestLine, start: float) -> dict[str, Any]:
    settings = msgspec.to_builtins(one.sampling)
    return {
        "request": one.request,
        "rid": one.rid,
        "state": one.reached.name.lower(),
        "cause": str(one.cause),
        "prompt": one.num_prompt,
        "output": one.num_output,
        "cached": one.num_cached,
        "retractions": one.num_retractions,
        "priority": one.priority,
        "namespace": one.namespace,
        "settings": {name: value for name, value in settings.items() if value != _DEFAULTS[name] and name != "seed"},
        "submitted": _milliseconds(one.submitted, start),
        "ended": _milliseconds(one.ended, start),
        "first": _milliseconds(one.first_token, start),
        "gap": round(one.largest_gap * 1e3, 3),
        "mean": None if one.mean_gap is None else round(one.mean_gap * 1e3, 3),
        "waited": round(one.waited * 1e3, 3),
        "intervals": [
            [int(i.state), _milliseconds(i.start, start), _milliseconds(i.end, start)] for i in one.intervals
        ],
        "steps": one.steps,
    }


def _step(one: StepLine, start: float) -> list[Any]:
    kind = 0 if one.committed else 1 if one.ended is not None else 2
    times = [_milliseconds(one.planned, start), _milliseconds(one.ended, start)]
    return [one.step, *times, kind, one.num_segments, one.num_tokens, one.num_decoding, one.num_outputs, one.reason]


def _shown(requests: Sequence[RequestLine], broken: set[int | None]) -> Sequence[RequestLine]:
    """All; or those found wrong, the slowest of every kind, and then the newest; in order of arrival."""
    if len(requests) <= MAX_REQUESTS:
        return requests
    chosen = {index for index, one in enumerate(requests) if one.request in broken}
    for values in _measured(requests).values():
        slowest = np.argsort(np.nan_to_num(values, nan=-1.0))[-MAX_SLOWEST:]
        chosen.update(slowest.tolist())
    newest = (index for index in range(len(requests) - 1, -1, -1) if index not in chosen)
    for index in newest:
        if len(chosen) >= MAX_REQUESTS:
            break
        chosen.add(index)
    return [requests[index] for index in sorted(chosen)]


def _measured(requests: Sequence[RequestLine]) -> dict[str, np.ndarray]:
    """Latency -> seconds of each request, float64 [n]; NaN where a request has none."""
    nan = float("nan")
    rows = [
        (
            nan if one.ended is None else one.ended - one.submitted,
            nan if one.first_token is None else one.first_token - one.submitted,
            one.waited,
            nan if one.mean_gap is None else one.mean_gap,
            nan if one.mean_gap is None else one.largest_gap,
        )
        for one in requests
    ]
    columns = np.array(rows, np.float64).reshape(-1, 5).T
    names = ("whole request", "first token", "waiting", "between tokens, mean", "between tokens, largest")
    return dict(zip(names, columns, strict=True))


def _latencies(requests: Sequence[RequestLine]) -> list[list[Any]]:
    """Rows [name, requests that have it, then milliseconds for each quantile] over all requests of the run."""
    table: list[list[Any]] = []
    for name, values in _measured(requests).items():
        known = values[~np.isnan(values)]
        if len(known):
            quantiles = np.percentile(known, list(QUANTILES.values())) * 1e3
            table.append([name, len(known), *np.round(quantiles, 3).tolist()])
    return table


def _causes(requests: Sequence[RequestLine]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in requests:
        cause = str(one.cause) if one.ended is not None else "open"
        counts[cause] = counts.get(cause, 0) + 1
    return counts


def _loads(line: Timeline, start: float) -> list[list[float]]:
    """Points [time, waiting, running] at which one of the two changes, over all requests. Where these are too many, the
    largest of each stretch of time."""
    changes: dict[float, list[int]] = {}
    for one in line.requests:
        for interval in one.intervals:
            column = 0 if interval.state in WAITING else 1
            changes.setdefault(interval.start, [0, 0])[column] += 1
            changes.setdefault(interval.end, [0, 0])[column] -= 1
    if not changes:
        return []
    times = np.array(sorted(changes))
    counts = np.array([changes[time] for time in times.tolist()]).cumsum(axis=0)
    times = np.round((times - start) * 1e3, 3)
    if len(times) > MAX_LOADS:
        firsts = np.linspace(0, len(times), MAX_LOADS, endpoint=False).astype(np.intp)
        times, counts = times[firsts], np.maximum.reduceat(counts, firsts, axis=0)
    return [[time, *pair] for time, pair in zip(times.tolist(), counts.tolist(), strict=True)]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
