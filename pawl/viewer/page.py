"""One static HTML page that shows a run: requests by state over time, steps, memory by owner, violations.

The page needs nothing but itself: style, script and data are inside, and its content security policy allows no other.
Open it from a disk, mail it, attach it to an issue.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

import msgspec

from pawl.lifecycle.audit import Report
from pawl.lifecycle.export.timeline import RequestLine, StepLine, Timeline
from pawl.lifecycle.states import State

MAX_REQUESTS, MAX_STEPS, MAX_SAMPLES = 20_000, 50_000, 20_000
"""What one page shows at the most: the newest. The page says so when something was left out."""


def render(line: Timeline, report: Report) -> str:
    """The page for one run and its audit."""
    own = files("pawl.viewer")
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # "<" inside a script element could end it.
    data = msgspec.json.encode(run_data(line, report)).decode().replace("<", "\\u003c")
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    page = (own / "page.html").read_text(encoding="utf-8")
    for name, text in {"policy": policy, "style": style, "data": data, "script": script}.items():
        page = page.replace(f"{{{{{name}}}}}", text, 1)
    return page


def run_data(line: Timeline, report: Report) -> dict[str, Any]:
    """What the page's script gets. Times are milliseconds from the start of the run, rounded to microseconds."""
    start = line.start
    started = line.started

    def milliseconds(time: float | None) -> float | None:
        return None if time is None else round((time - start) * 1e3, 3)

    def request(one: RequestLine) -> dict[str, Any]:
        return {
            "request": one.request,
            "rid": one.rid,
            "state": one.reached.name.lower(),
            "cause": str(one.cause),
            "prompt": one.num_prompt,
            "output": one.num_output,
            "cached": one.num_cached,
            "retractions": one.num_retractions,
            "submitted": milliseconds(one.submitted),
            "ended": milliseconds(one.ended),
            "intervals": [[int(i.state), milliseconds(i.start), milliseconds(i.end)] for i in one.intervals],
        }

    def step(one: StepLine) -> list[Any]:
        ended, kind = milliseconds(one.ended), 0 if one.committed else 1 if one.ended is not None else 2
        return [one.step, milliseconds(one.planned), ended, kind, one.num_segments, one.num_tokens, one.num_decoding]

    requests, steps, samples = line.requests[-MAX_REQUESTS:], line.steps[-MAX_STEPS:], line.pages[-MAX_SAMPLES:]
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
        "end": milliseconds(line.end),
        "states": [state.name.lower() for state in State],
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
        "requests": [request(one) for one in requests],
        "steps": [step(one) for one in steps],
        "pages": [[milliseconds(sample.time), *sample.pages] for sample in samples],
        "page_classes": list(samples[0].pages._fields) if samples else [],
        "left_out": {name: count for name, count in left_out.items() if count},
    }


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
