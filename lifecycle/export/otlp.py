"""A timeline as OpenTelemetry spans in OTLP's JSON encoding (opentelemetry-proto 1.x), as collectors read from files.

One trace a run; a span for each request, with a child span for each state it was in, and a span for each step. Ids are
hashes of what they name, so that exporting twice gives the same spans.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pawl.lifecycle.export.timeline import RequestLine, StepLine, Timeline
from pawl.lifecycle.states import State

_INTERNAL = 1
"""SpanKind of what has no remote side."""
_OK, _ERROR = 1, 2
"""Status codes."""


def otlp_trace(line: Timeline) -> dict[str, Any]:
    """The timeline as an ExportTraceServiceRequest."""
    return _Spans(line).request()


class _Spans:
    def __init__(self, line: Timeline) -> None:
        self.line = line
        started = line.started
        identity = f"{started.model} {started.wall} {started.seed}" if started is not None else f"{line.start}"
        self.trace = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self.wall = (started.wall - started.time) if started is not None else 0.0
        """Added to a monotonic time gives seconds since the epoch."""

    def request(self) -> dict[str, Any]:
        line = self.line
        spans = [span for request in line.requests for span in self._request(request)]
        spans += [self._step(step) for step in line.steps]
        facts: dict[str, Any] = {"service.name": "pawl"}
        if line.started is not None:
            facts |= {"service.version": line.started.version, "pawl.model": line.started.model}
        scope = {"scope": {"name": "pawl.trace"}, "spans": spans}
        return {"resourceSpans": [{"resource": {"attributes": _attributes(facts)}, "scopeSpans": [scope]}]}

    def _request(self, request: RequestLine) -> list[dict[str, Any]]:
        name = f"request {request.request}"
        failed = request.reached == State.ABORTED
        whole = self._span(name, "request", request.submitted, request.ended, None)
        whole["attributes"] = _attributes(
            {
                "pawl.request": request.request,
                "pawl.rid": request.rid,
                "pawl.cause": str(request.cause),
                "pawl.retractions": request.num_retractions,
                "pawl.cached_tokens": request.num_cached,
                "gen_ai.usage.input_tokens": request.num_prompt,
                "gen_ai.usage.output_tokens": request.num_output,
            }
        )
        if request.ended is not None:
            whole["status"] = {"code": _ERROR, "message": str(request.cause)} if failed else {"code": _OK}
        states = [
            self._span(f"{name} {index}", interval.state.name.lower(), interval.start, interval.end, name)
            for index, interval in enumerate(request.intervals)
        ]
        return [whole, *states]

    def _step(self, step: StepLine) -> dict[str, Any]:
        span = self._span(f"step {step.step}", "step", step.planned, step.ended, None)
        span["attributes"] = _attributes(
            {"pawl.step": step.step, "pawl.segments": step.num_segments, "pawl.tokens": step.num_tokens}
        )
        if step.ended is not None:
            span["status"] = {"code": _OK} if step.committed else {"code": _ERROR, "message": step.reason}
        return span

    def _span(self, key: str, name: str, start: float, end: float | None, parent: str | None) -> dict[str, Any]:
        span: dict[str, Any] = {
            "traceId": self.trace,
            "spanId": self._id(key),
            "name": name,
            "kind": _INTERNAL,
            "startTimeUnixNano": self._nanoseconds(start),
            "endTimeUnixNano": self._nanoseconds(self.line.end if end is None else end),
        }
        return span if parent is None else span | {"parentSpanId": self._id(parent)}

    def _id(self, key: str) -> str:
        return hashlib.sha256(f"{self.trace} {key}".encode()).hexdigest()[:16]

    def _nanoseconds(self, time: float) -> str:
        """64-bit integers are strings in this encoding."""
        return str(round((time + self.wall) * 1e9))


def _attributes(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in facts.items()
    ]
