"""What a run of a subject shows from outside, as records of a trace: what needs no inside is judged by the properties
that judge our own engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pawl.lifecycle.columns import PageCounts
from pawl.lifecycle.outside.properties import outside_properties
from pawl.lifecycle.outside.recorder import OutsideRecorder, Part
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import Record
from pawl.lifecycle.states import Cause
from pawl.testing.expectations import PropertyFailed
from pawl.testing.subject.books import owners_of
from pawl.testing.subject.port import Accounting, Output, Request, Segment, Settings

CAUSES = {"length": Cause.LENGTH, "stop": Cause.STOP_TOKEN, "abort": Cause.CLIENT}


class Observed:
    """Hears the facts of one run. Each method raises PropertyFailed for what the records show."""

    def __init__(self, settings: Settings) -> None:
        self.judges = True
        """False once something has happened that records have no words for: a subject may keep the token of a step in
        flight for a request that it has preempted meanwhile."""
        self._page_size = settings.page_size
        self._monitor = Monitor(outside_properties())
        self._recorder = OutsideRecorder(self._observe)
        self._told: dict[int, int] = {}
        self._preempted: dict[int, set[int]] = {}
        """Step in flight -> its requests that were preempted since it was planned."""
        self._recorder.started(
            scheduler="subject", num_pages=settings.num_pages, page_size=settings.page_size, reproducible=True
        )

    def _observe(self, record: Record) -> None:
        for violation in self._monitor.observe(record) if self.judges else ():
            raise PropertyFailed(violation.property, violation.explanation, violation.request)

    def submitted(self, request: Request) -> None:
        self._recorder.submitted(
            request.number,
            request.prompt,
            request.max_new_tokens,
            stop_token_ids=request.stop_token_ids,
            priority=request.priority,
            namespace=request.salt,
        )

    def aborted(self, request: int) -> None:
        self._recorder.aborted(request, told=self._told.get(request, 0))

    def preempted(self, request: int) -> None:
        for requests in self._preempted.values():
            requests.add(request)
        self._recorder.preempted(request)

    def planned(self, step: int, segments: Sequence[Segment], draws: Mapping[int, bool]) -> None:
        """A step was launched; one of nobody is none."""
        if not segments:
            return
        self._recorder.time += 1
        size = self._page_size
        parts = [
            Part(each.request, each.start, each.count, draws[each.request], each.pages[: _pages_of(each, size)])
            for each in segments
        ]
        self._preempted[step] = set()
        self._recorder.planned(step, parts)

    def committed(
        self, step: int, drawn: Mapping[int, int], outputs: Sequence[Output], books: Accounting | None
    ) -> None:
        """A step came back, and clients were told."""
        preempted = self._preempted.pop(step, None)
        if preempted is not None:
            self.judges = self.judges and not any(each.tokens and each.request in preempted for each in outputs)
            self._recorder.committed(step, {request: [token] for request, token in drawn.items()}, _counts(books))
        for output in outputs:
            self._told[output.request] = self._told.get(output.request, 0) + len(output.tokens)
            if output.ended in ("length", "stop"):
                self._recorder.finished(output.request, CAUSES[output.ended], self._told[output.request])

    def lost(self, step: int) -> None:
        if self._preempted.pop(step, None) is not None:
            self._recorder.lost(step)

    def stopped(self, books: Accounting | None) -> None:
        """Everybody has ended."""
        self._recorder.stopped(_counts(books))
        for violation in self._monitor.finish() if self.judges else ():
            raise PropertyFailed(violation.property, violation.explanation, violation.request)


def _counts(books: Accounting | None) -> PageCounts | None:
    if books is None:
        return None
    return PageCounts(len(books.free), len(owners_of(books)), len(books.cached), 0, 0)


def _pages_of(segment: Segment, page_size: int) -> int:
    """How many it needs."""
    return -(-(segment.start + segment.count) // page_size)
