"""The oracle of the memory tests: plain dicts, copied on every write, replayed on every undo.

A state says which rows exist, what the prefix cache knows and what waits behind a fence. Everything else (reference
counts, free pages, held pages) is derived from that, so it cannot disagree with it. An undo is: forget the events of
the step, and play what is left from the beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

Prefix: TypeAlias = tuple[str, tuple[int, ...]]
"""A namespace and token ids: whole pages."""


@dataclass(frozen=True)
class Row:
    """What one slot owns."""

    pages: tuple[int, ...]
    length: int
    held: Prefix
    """The cached prefix that is kept for it."""


@dataclass(frozen=True)
class State:
    """Everything that memory knows."""

    page_size: int
    num_pages: int
    num_slots: int
    rows: Mapping[int, Row] = field(default_factory=dict)
    cache: Mapping[Prefix, int] = field(default_factory=dict)
    """Page of the last tokens of each cached prefix."""
    deferred_pages: Mapping[int, int] = field(default_factory=dict)
    """Page -> the step it waits for."""
    deferred_slots: Mapping[int, int] = field(default_factory=dict)
    promises: Mapping[int, int] = field(default_factory=dict)
    """Slot -> pages it may still count on."""
    quarantined: frozenset[int] = frozenset()
    """Pages that somebody outside the steps writes."""
    kept: Mapping[int, Prefix] = field(default_factory=dict)
    """Number of a fetch -> the cached prefix that is kept for it."""
    resolved: int = 0

    @property
    def refcounts(self) -> Counter[int]:
        """Page -> number of referrers."""
        return Counter([page for row in self.rows.values() for page in row.pages] + list(self.cache.values()))

    @property
    def free_pages(self) -> set[int]:
        return set(range(self.num_pages)) - set(self.refcounts) - set(self.deferred_pages) - self.quarantined

    @property
    def free_slots(self) -> set[int]:
        return set(range(self.num_slots)) - set(self.rows) - set(self.deferred_slots)

    @property
    def held(self) -> set[Prefix]:
        """Cached prefixes that some row or fetch keeps, and all their beginnings."""
        return {prefix for held in self.holders for prefix in beginnings(held, self.page_size)}

    @property
    def holders(self) -> Counter[Prefix]:
        """Cached prefix -> for how many rows and fetches just that is kept."""
        held = [*(row.held for row in self.rows.values()), *self.kept.values()]
        return Counter(prefix for prefix in held if prefix[1])

    @property
    def evictable(self) -> int:
        return len(set(self.cache) - self.held)

    @property
    def unpromised(self) -> int:
        """Pages that can be had and that no row counts on."""
        return len(self.free_pages) + self.evictable - sum(self.promises.values())

    def lacking(self, slot: int, length: int) -> int:
        """Pages that a row needs to be so long."""
        return max(-(-length // self.page_size) - len(self.rows[slot].pages), 0)

    def match(self, namespace: str, tokens: tuple[int, ...]) -> tuple[Prefix, tuple[int, ...]]:
        """The longest cached beginning of `tokens`, and its pages."""
        found: Prefix = (namespace, ())
        pages: list[int] = []
        for prefix in beginnings((namespace, tokens), self.page_size):
            if prefix not in self.cache:
                break
            found = prefix
            pages.append(self.cache[prefix])
        return found, tuple(pages)

    def give_back(self, pages: tuple[int, ...], fence: int) -> State:
        """Those of `pages` that nobody refers to any more wait for step `fence`, if it is not resolved yet."""
        if fence <= self.resolved:
            return self
        referred = self.refcounts
        gone = {page: fence for page in pages if page not in referred and page not in self.deferred_pages}
        return replace(self, deferred_pages={**self.deferred_pages, **gone})


def beginnings(prefix: Prefix, page_size: int) -> list[Prefix]:
    """Every non-empty beginning of `prefix` in whole pages, shortest first, itself included."""
    namespace, tokens = prefix
    return [(namespace, tokens[:end]) for end in range(page_size, len(tokens) + 1, page_size)]


class Event(Protocol):
    """Something that happened; `apply` gives the state after it."""

    def apply(self, state: State) -> State: ...


@dataclass(frozen=True)
class Admit:
    """A slot was taken and a cached prefix held for it."""

    slot: int
    held: Prefix
    pages: tuple[int, ...]

    def apply(self, state: State) -> State:
        row = Row(self.pages, len(self.held[1]), self.held)
        return replace(state, rows={**state.rows, self.slot: row})


@dataclass(frozen=True)
class Extend:
    """Rows grew."""

    pages: Mapping[int, tuple[int, ...]]
    lengths: Mapping[int, int]
    spent: Mapping[int, int] = field(default_factory=dict)
    """Slot -> how many of its pages had been promised to it."""

    def apply(self, state: State) -> State:
        rows, promises = dict(state.rows), dict(state.promises)
        for slot, length in self.lengths.items():
            rows[slot] = replace(rows[slot], pages=rows[slot].pages + self.pages.get(slot, ()), length=length)
            promises[slot] = promises.get(slot, 0) - self.spent.get(slot, 0)
        return replace(state, rows=rows, promises=promises)


@dataclass(frozen=True)
class Promise:
    """Rows may count on so many more pages, or fewer; those that are gone by then may not."""

    changes: Mapping[int, int]

    def apply(self, state: State) -> State:
        promises = dict(state.promises)
        for slot, change in self.changes.items():
            if slot in state.rows:
                promises[slot] = promises.get(slot, 0) + change
        return replace(state, promises=promises)


@dataclass(frozen=True)
class Reserve:
    """Pages went to somebody outside the steps, who continues a cached prefix."""

    fetch: int
    held: Prefix
    pages: tuple[int, ...]

    def apply(self, state: State) -> State:
        kept = {**state.kept, self.fetch: self.held}
        return replace(state, quarantined=state.quarantined | set(self.pages), kept=kept)


@dataclass(frozen=True)
class Publish:
    """A fetch ended: the cache has those of its pages that were written, where it had none of its own."""

    fetch: int
    pages: tuple[int, ...]
    prefix: Prefix
    """What the written pages end with; what was held, when none was."""

    def apply(self, state: State) -> State:
        kept = dict(state.kept)
        first = len(kept.pop(self.fetch)[1]) // state.page_size
        parts = beginnings(self.prefix, state.page_size)[first:]
        cache = {**dict(zip(parts, self.pages, strict=False)), **state.cache}
        return replace(state, quarantined=state.quarantined - set(self.pages), kept=kept, cache=cache)


@dataclass(frozen=True)
class Share:
    """The cache was offered the pages that hold the prefix, and keeps it for the row from now on.

    Where the cache knew the prefix already, the row moves to its pages and gives back its own.
    """

    slot: int
    prefix: Prefix
    fence: int

    def apply(self, state: State) -> State:
        row = state.rows[self.slot]
        parts = beginnings(self.prefix, state.page_size)
        cache = {**dict(zip(parts, row.pages, strict=False)), **state.cache}
        pages = tuple(cache[part] for part in parts) + row.pages[len(parts) :]
        after = replace(state, cache=cache, rows={**state.rows, self.slot: replace(row, held=self.prefix, pages=pages)})
        return after.give_back(row.pages, self.fence)


@dataclass(frozen=True)
class Release:
    """A row ended. Its pages are named, because the steps that took them may be forgotten later on."""

    slot: int
    pages: tuple[int, ...]
    fence: int

    def apply(self, state: State) -> State:
        rows = {slot: row for slot, row in state.rows.items() if slot != self.slot}
        promises = {slot: count for slot, count in state.promises.items() if slot != self.slot}
        state = replace(state, rows=rows, promises=promises)
        if self.fence > state.resolved:
            state = replace(state, deferred_slots={**state.deferred_slots, self.slot: self.fence})
        return state.give_back(self.pages, self.fence)


@dataclass(frozen=True)
class Evict:
    """The cache forgot everything that ended in one of these pages."""

    pages: tuple[int, ...]
    fence: int

    def apply(self, state: State) -> State:
        kept = {prefix: page for prefix, page in state.cache.items() if page not in self.pages}
        return replace(state, cache=kept).give_back(self.pages, self.fence)


@dataclass(frozen=True)
class Resolve:
    """Every step up to `epoch` is committed or aborted."""

    epoch: int

    def apply(self, state: State) -> State:
        return replace(
            state,
            resolved=self.epoch,
            deferred_pages={page: fence for page, fence in state.deferred_pages.items() if fence > self.epoch},
            deferred_slots={slot: fence for slot, fence in state.deferred_slots.items() if fence > self.epoch},
        )


class Reference:
    """The history of one memory, and the state it leads to."""

    def __init__(self, page_size: int, num_pages: int, num_slots: int) -> None:
        self._first = State(page_size, num_pages, num_slots)
        self._events: list[tuple[int | None, Event]] = []
        self.state = self._first

    def do(self, event: Event, step: int | None = None) -> None:
        """`event` happened, undone with `step`; final without one."""
        self._events.append((step, event))
        self.state = event.apply(self.state)

    def savepoint(self) -> int:
        return len(self._events)

    def forget(self) -> None:
        """No step is left that could be undone: the history so far is settled."""
        self._first = self.state
        self._events.clear()

    def since(self, savepoint: int) -> list[tuple[int | None, Event]]:
        """What has happened since."""
        return self._events[savepoint:]

    def state_at(self, savepoint: int) -> State:
        """What it was then."""
        state = self._first
        for _, event in self._events[:savepoint]:
            state = event.apply(state)
        return state

    def undo(self, step: int, savepoint: int = 0) -> None:
        """Forget what `step` did after `savepoint`."""
        after = [event for event in self._events[savepoint:] if event[0] != step]
        self._events[savepoint:] = after
        self.state = self._first
        for _, event in self._events:
            self.state = event.apply(self.state)
