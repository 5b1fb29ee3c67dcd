"""Properties of page memory: `conservation` and `no_reuse_before_fence`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Closed, PageCounts, StepCommitted, StepPlanned


class Conservation(Property):
    """free + owned + cached + deferred + quarantined = total after every step; a page that a step takes as free is in
    nobody's use; when no request is live, no page is owned or deferred."""

    name = "conservation"

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        return self._counted(record.pages, history)

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        return tuple(self._taken(history)) if any(history.pages.taken) else ()

    @on(Closed)
    def _closed(self, record: Closed, history: History) -> Sequence[Violation]:
        if record.pages is None:
            return ()
        return (*self._counted(record.pages, history), *self._rest(record.pages, history))

    def _counted(self, pages: PageCounts, history: History) -> Sequence[Violation]:
        total = history.pages.num_pages
        if (sum(pages) == total or not total) and min(pages) >= 0:
            return ()
        counts = ", ".join(f"{name} {count}" for name, count in zip(pages._fields, pages, strict=True))
        return (self.violation(history, f"the pool has {total} pages, but: {counts}"),)

    def _rest(self, pages: PageCounts, history: History) -> Sequence[Violation]:
        if history.open or history.in_flight or not (pages.owned or pages.deferred):
            return ()
        text = f"no request is live and no step in flight, but {pages.owned} pages are owned, {pages.deferred} deferred"
        return (self.violation(history, text),)

    def _taken(self, history: History) -> Iterator[Violation]:
        taken, total = history.pages.taken, history.pages.num_pages
        for pages, fault in (
            (taken.out_of_range, f"is not one of {total}"),
            (taken.repeated, "was taken twice by one step"),
            (taken.in_use, "was taken as free while a request uses it"),
        ):
            if pages:
                yield self.violation(history, f"page {pages[0]} {fault}", _user(history, pages))


class NoReuseBeforeFence(Property):
    """A page that a step in flight may still touch is not taken again before that step is resolved."""

    name = "no_reuse_before_fence"

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        pages = history.pages.taken.in_flight
        if not pages:
            return ()
        text = f"page {pages[0]} was taken while a step that may touch it was in flight"
        return (self.violation(history, text),)


def _user(history: History, pages: list[int]) -> int | None:
    """The request that uses the first of `pages`."""
    row = history.pages.user_of(pages[0])
    return None if row is None else int(history.request[row])
