"""Properties of pages that requests share through the prefix cache: `single_owner`, `hold_accounting`,
`read_after_commit`, `namespace_isolation`, `weight_epochs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pawl.lifecycle.machines.weights import WEIGHTS, WeightEvent, Weights
from pawl.lifecycle.namespaces import quoted, weights_of
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.dispatch import KINDS
from pawl.lifecycle.properties.growing import fitted
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.pausing import Pauses
from pawl.lifecycle.properties.residency import Releases
from pawl.lifecycle.properties.served_weights import ServedName, fingerprint_at_start
from pawl.lifecycle.records import (
    Cached,
    Contained,
    Delivered,
    Flushed,
    Int32s,
    MemoryMoved,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    Submitted,
    TierTold,
    Transition,
    WeightsMoved,
)
from pawl.lifecycle.states import Event


def _owner(history: History, row: int) -> int:
    """The request in `row`."""
    return int(history.request[row])


class SingleOwner(Property):
    """A page that can be written has one owner; a second free is an error: a page comes into the cache once and leaves
    it once, and what the cache has is not taken as free."""

    name = "single_owner"

    @on(Cached)
    def _changed(self, record: Cached, history: History) -> Sequence[Violation]:
        faults, found = history.cache.faults, []
        if faults.stored_twice:
            text = f"page {faults.stored_twice[0]} came into the cache, which had it already"
            found.append(self.violation(history, text))
        if faults.removed_twice:
            text = f"page {faults.removed_twice[0]} left the cache, which did not have it"
            found.append(self.violation(history, text))
        return found

    @on(StepPlanned)
    def _taken(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        for page in history.pages.fresh:
            if page in history.cache.namespace:
                return (self.violation(history, f"page {page} was taken as free while the cache has it"),)
        return ()


class HoldAccounting(Property):
    """Holds of a node = its live holders + held children, all zero at rest: no page leaves the cache while a request
    uses it, or before the pages that go on from it."""

    name = "hold_accounting"

    def __init__(self) -> None:
        self._removed: list[int] = []

    @on(Cached)
    def _changed(self, record: Cached, history: History) -> Sequence[Violation]:
        self._removed += history.cache.removed
        cut_off = history.cache.faults.cut_off
        return (self.violation(history, f"page {cut_off[0]} of the cache is out of reach"),) if cut_off else ()

    # Those that gave way to a step are told of after what their pages made room for, and after what failed meanwhile.
    @on(*KINDS - {Cached, Contained, Event.RETRACT})
    def _left(self, record: Record, history: History) -> Sequence[Violation]:
        if not self._removed:
            return ()
        removed, self._removed = self._removed, []
        for page in removed:
            row = history.pages.user_of(page) if history.pages.in_use(page) else None
            if row is not None and not _just_taken(record, history, page):
                text = f"page {page} left the cache while a request uses it"
                return (self.violation(history, text, _owner(history, row)),)
        return ()


def _just_taken(record: Record, history: History, page: int) -> bool:
    """The page is in use since the step that this record plans, and was free before."""
    return isinstance(record, StepPlanned) and page in history.pages.fresh


class ReadAfterCommit(Property):
    """No forward reads a position before its write, load or transfer is committed: a page is shared only when every
    position in it is, and what a request begins with is in the cache when its step is launched."""

    name = "read_after_commit"

    def __init__(self) -> None:
        self._committed: Int32s = np.zeros(64, np.int32)
        """Positions of each row that are committed."""
        self._filled = 0
        """Pages that came from lower tiers and may be stored."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        for row in beginning.working:
            self._committed[row] = beginning.num_computed(row)
        return found

    @on(StepCommitted)
    def _computed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        live = history.committed.live
        self._committed[history.step.rows[live]] = history.committed.ends[live]
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._committed[record.row] = record.num_cached or 0
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        self._committed = fitted(self._committed, record.row + 1)
        return ()

    @on(TierTold)
    def _told(self, record: TierTold, history: History) -> Sequence[Violation]:
        if record.kind == "filled":
            self._filled += record.count
        return ()

    @on(Cached)
    def _changed(self, record: Cached, history: History) -> Sequence[Violation]:
        return tuple(self._stored(history)) if history.cache.stored else ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        return tuple(self._shared(history)) if history.pages.shared else ()

    def _stored(self, history: History) -> Iterator[Violation]:
        size = history.started.page_size if history.started is not None else 1
        for page in history.cache.stored:
            place = history.pages.place_of(page)
            if place is None:
                self._filled -= 1
                if self._filled < 0:
                    self._filled = 0
                    yield self.violation(history, f"page {page} came into the cache, and nobody has written it")
                continue
            row, index = place
            if self._committed[row] < (index + 1) * size:
                text = f"page {page} was shared up to position {(index + 1) * size - 1}, but only"
                yield self.violation(
                    history, f"{text} {self._committed[row]} positions are committed", _owner(history, row)
                )

    def _shared(self, history: History) -> Iterator[Violation]:
        for row, page in history.pages.shared:
            if page not in history.cache.namespace:
                text = f"the request begins with page {page}, which the cache does not have"
                yield self.violation(history, text, _owner(history, row))


class NamespaceIsolation(Property):
    """Requests with another adapter, salt, or weight version share no page."""

    name = "namespace_isolation"

    @on(Cached)
    def _changed(self, record: Cached, history: History) -> Sequence[Violation]:
        return tuple(self._stored(history)) if history.cache.stored else ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        return tuple(self._shared(history)) if history.pages.shared else ()

    def _stored(self, history: History) -> Iterator[Violation]:
        if history.cache.faults.foreign:
            page = history.cache.faults.foreign[0]
            yield self.violation(history, f"page {page} goes on from a page of another namespace")
        for page in history.cache.stored:
            place = history.pages.place_of(page)
            if place is None:
                continue
            mine, theirs = history.submissions[place[0]].namespace, history.cache.namespace.get(page)
            if theirs is not None and mine != theirs:
                text = f"page {page} was written in namespace {mine!r} and is cached in {theirs!r}"
                yield self.violation(history, text, _owner(history, place[0]))

    def _shared(self, history: History) -> Iterator[Violation]:
        for row, page in history.pages.shared:
            mine = history.submissions[row].namespace
            theirs = history.cache.namespace.get(page, mine)
            if mine != theirs:
                text = f"page {page} is cached in namespace {theirs!r} and is used in {mine!r}"
                yield self.violation(history, text, _owner(history, row))


class WeightEpochs(Property):
    """Keys and values written under one weight version are not read under another: requests are served under the
    version of the weights that the engine has, use pages of that version only, and whoever ran when the weights were
    exchanged starts again. An update moves as its table says, and a failed one changes nothing. They have the name that
    they were last given."""

    name = "weight_epochs"

    def __init__(self) -> None:
        self._state: Weights = WEIGHTS.start
        self._served: str | None = None
        """Fingerprint of the weights that serve."""
        self._name = ServedName()
        self._before: dict[int, int] = {}
        """Requests that ran when the weights were exchanged, and how often they had left work by then, by row."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._state, self._served = beginning.weights.state, history.weights.fingerprint
        self._name.begin(beginning)
        return found

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        self._served = None if fingerprint_at_start(record) is None else history.weights.fingerprint
        self._name.start(record)
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        self._name.delivered(record)
        return ()

    @on(WeightsMoved)
    def _moved(self, record: WeightsMoved, history: History) -> Sequence[Violation]:
        found = list[Violation]()
        legal = any(move[:3] == (record.source, record.event, record.target) for move in WEIGHTS.moves)
        if not legal or record.source != self._state:
            text = f"{record.event} takes the weights from {record.source} to {record.target}"
            found.append(self.violation(history, f"{text}; they are {self._state}"))
        self._state = record.target
        self._name.moved(record)
        if self._name.now not in (None, record.version):
            text = f"after {record.event} the weights are called {record.version!r}, and not {self._name.now!r}"
            found.append(self.violation(history, text))
        if record.event is not WeightEvent.SWAPPED:
            if record.fingerprint != self._served:
                text = f"after {record.event} weights {record.fingerprint!r} serve, before {self._served!r} did"
                found.append(self.violation(history, text))
            return found
        self._served = record.fingerprint
        if history.in_flight:
            text = f"weights were exchanged with {len(history.in_flight)} steps in flight"
            found.append(self.violation(history, text))
        working = np.flatnonzero(history.working).tolist()
        self._before = {row: int(history.departures[row]) for row in working}
        return found

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        if self._served is None:
            return ()
        served, asked = quoted(self._served), weights_of(record.namespace)
        if asked == served:
            return ()
        text = f"the request is served under weights {asked!r}, the engine has {served!r}"
        return (self.violation(history, text, record.request),)

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        concerned = history.pages.shared or self._before or self._state is Weights.SWAPPING
        return tuple(self._mixed(history)) if concerned else ()

    def _mixed(self, history: History) -> Iterator[Violation]:
        if self._state is Weights.SWAPPING:
            yield self.violation(history, "a step is planned while the weights are being exchanged")
        if self._before:
            for row in history.step.rows.tolist():
                if self._before.get(row) == history.departures[row]:
                    text = "it goes on from what the weights before these have computed"
                    yield self.violation(history, text, _owner(history, row))
        for row, page in history.pages.shared:
            mine = history.submissions[row].namespace
            version, written = weights_of(mine), weights_of(history.cache.namespace.get(page, mine))
            if version != written:
                text = f"page {page} was written under weights {written!r} and is read under {version!r}"
                yield self.violation(history, text, _owner(history, row))


class QuiescentFlush(Property):
    """A flush succeeds only with no live request and no step in flight, and leaves nothing in the cache. While the
    engine is paused, or memory is released, requests that own nothing may wait."""

    name = "quiescent_flush"

    def __init__(self) -> None:
        self._pauses = Pauses()
        self._releases = Releases()

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._pauses.begin(beginning)
        self._releases.begin(beginning)
        return ()

    @on(MemoryMoved)
    def _moved(self, record: MemoryMoved, history: History) -> Sequence[Violation]:
        self._releases.moved(record)
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        self._pauses.delivered(record)
        return ()

    @on(Flushed)
    def _flushed(self, record: Flushed, history: History) -> Sequence[Violation]:
        live, in_flight, kept = len(history.open), len(history.in_flight), len(history.cache)
        found = []
        if self._pauses.paused or self._releases.tags:
            live = history.num_working
        if live or in_flight:
            text = f"the cache was flushed with {live} requests live, {in_flight} steps in flight"
            found.append(self.violation(history, text, next(iter(history.open), None)))
        if kept:
            found.append(self.violation(history, f"the cache was flushed, and has {kept} pages"))
        return found
