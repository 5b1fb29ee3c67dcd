"""A timeline in the trace-event format that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Three processes: requests (a thread each), steps (one thread for each that may be in flight at a time),
and pages by class as counters. Times are microseconds from the start of the run.
"""

from __future__ import annotations

from typing import Any

from pawl.lifecycle.export.timeline import Timeline

_REQUESTS, _STEPS, _PAGES = 1, 2, 3
_NAMES = {_REQUESTS: "requests", _STEPS: "steps", _PAGES: "pages"}


def chrome_trace(line: Timeline) -> dict[str, Any]:
    """The timeline as a JSON object with `traceEvents`."""
    start = line.start
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
        for process, name in _NAMES.items()
    ]

    def microseconds(time: float) -> float:
        return round((time - start) * 1e6, 1)

    def span(process: int, thread: int, name: str, begin: float, end: float, facts: dict[str, Any]) -> None:
        begun = microseconds(begin)
        duration = max(0.0, round(microseconds(end) - begun, 1))
        events.append(
            {"ph": "X", "pid": process, "tid": thread, "name": name, "ts": begun, "dur": duration, "args": facts}
        )

    for request in line.requests:
        name = f"{request.request} {request.rid}".strip()
        events.append(
            {"ph": "M", "name": "thread_name", "pid": _REQUESTS, "tid": request.request, "args": {"name": name}}
        )
        facts = {"rid": request.rid, "prompt_tokens": request.num_prompt, "output_tokens": request.num_output}
        for interval in request.intervals:
            span(_REQUESTS, request.request, interval.state.name.lower(), interval.start, interval.end, facts)
        if request.ended is not None:
            events.append(
                {
                    "ph": "i",
                    "s": "t",
                    "pid": _REQUESTS,
                    "tid": request.request,
                    "name": f"{request.reached.name.lower()}: {request.cause}",
                    "ts": microseconds(request.ended),
                }
            )
    for step in line.steps:
        facts = {"segments": step.num_segments, "tokens": step.num_tokens, "decoding": step.num_decoding}
        name = f"step {step.step}" if step.committed else f"step {step.step} (lost: {step.reason or 'no answer'})"
        span(_STEPS, step.step % 2, name, step.planned, line.end if step.ended is None else step.ended, facts)
    for sample in line.pages:
        counts = sample.pages._asdict()
        events.append({"ph": "C", "pid": _PAGES, "name": "pages", "ts": microseconds(sample.time), "args": counts})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
