"""Histories of a memory with two pools, beside what a window page must hold: the tokens of one prefix, and no other."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from pawl.memory.memory import Memory
from pawl.memory.partners import NO_PAGE
from pawl.memory.prefix.events import Mirror
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.transaction import Ledger
from pawl.memory.window_pool import WindowPool
from tests.memory.reference import Prefix
from tests.memory.test_memory_histories import MAX_PAGES_OF_A_REQUEST, MemoryHistory, WatchedCache, as_array


class WatchedSlidingCache(WatchedCache, SlidingCache):
    """A sliding cache whose last eviction can be seen."""


class SlidingHistory(MemoryHistory):
    """As its parent, with a window pool; commits let the windows move on.

    What the history knows of window pages follows from the meaning of a window, page by page, not from how memory
    counts: a query at position q reads positions > q - window.
    """

    window = 3
    num_window_pages = MAX_PAGES_OF_A_REQUEST

    @initialize(
        num_pages=st.integers(3, 20),
        num_slots=st.integers(1, 4),
        num_window_pages=st.integers(MAX_PAGES_OF_A_REQUEST, 2 * MAX_PAGES_OF_A_REQUEST),
        window=st.integers(1, 14),
    )
    def start(self, num_pages: int, num_slots: int, num_window_pages: int, window: int) -> None:
        self.num_window_pages, self.window = num_window_pages, window
        self.written: dict[int, Prefix] = {}
        """Window page -> the prefix whose last page it was taken for."""
        self.reads: dict[int, set[int]] = {}
        """Step in flight -> window pages that its queries read or write."""
        self.kept: dict[int, int] = {}
        """Slot -> first page whose window page it still refers to."""
        super().start(num_pages, num_slots)

    def new_memory(self, num_pages: int, num_slots: int, context: int) -> Memory:
        self.windows = WindowPool(
            Ledger(),
            num_pages=self.num_window_pages,
            num_full=num_pages,
            num_slots=num_slots,
            page_size=self.page_size,
            window=self.window,
            chunk=context,
            max_context=context,
        )
        self.cache = WatchedSlidingCache(self.page_size, self.windows)
        self.cache.events = []
        self.mirror = Mirror(self.page_size)
        return Memory(
            num_pages=num_pages, num_slots=num_slots, max_context=context, cache=self.cache, windows=self.windows
        )

    # ---- what a window means ----

    def first_read(self, query: int) -> int:
        """Index of the first page that a query at this position, or any later one, reads."""
        return max(query - self.window + 1, 0) // self.page_size

    def match(self, namespace: str, tokens: tuple[int, ...]) -> tuple[Prefix, tuple[int, ...]]:
        """The longest cached beginning after which a query finds every page of its window alive."""
        (_, found), pages = self.reference.state.match(namespace, tokens)
        for count in range(len(pages), 0, -1):
            if all(self.alive(page) for page in pages[self.first_read(count * self.page_size) : count]):
                return (namespace, found[: count * self.page_size]), pages[:count]
        return (namespace, ()), ()

    def alive(self, page: int) -> bool:
        return int(self.windows.partners.of[page]) != NO_PAGE

    def too_many(self, num_pages: int) -> bool:
        return super().too_many(num_pages) or num_pages > self.windows.pool.free

    # ---- moves ----

    def admit(self, words: list[int], tail: int, namespace: str, use_cache: bool) -> None:
        before = set(self.running)
        super().admit(words, tail, namespace, use_cache)
        for slot in set(self.running) - before:
            self.kept[slot] = self.first_read(self.committed[slot])

    def extend_to(self, lengths: dict[int, int]) -> None:
        before = {slot: self.reference.state.rows[slot].pages for slot in lengths}
        super().extend_to(lengths)
        for slot, pages in before.items():
            for index in range(len(pages), len(self.reference.state.rows[slot].pages)):
                self.take(slot, index)

    def take(self, slot: int, index: int) -> None:
        """A row has a new page: its window page was free, and no step in flight reads it."""
        window = int(self.windows.partners.of[self.reference.state.rows[slot].pages[index]])
        assert window != NO_PAGE
        touched = [step for step, pages in self.reads.items() if window in pages]
        assert not touched, f"window page {window} is read by steps {touched} in flight"
        self.written[window] = self.namespaces[slot], self.tokens[slot][: (index + 1) * self.page_size]

    def prepare(self) -> None:
        assert self.open is not None
        epoch, slots = self.open.transaction.epoch, set(self.open.slots)
        queries = {slot: self.launched(slot) for slot in slots}
        super().prepare()
        self.reads[epoch] = set()
        for slot in slots:
            row = self.reference.state.rows[slot]
            for page in row.pages[self.first_read(queries[slot]) :]:
                assert self.alive(page), "a step reads a window page that is gone"
                self.reads[epoch].add(int(self.windows.partners.of[page]))

    def launched(self, slot: int) -> int:
        """Positions of a row that launched steps compute, or computed."""
        return next(
            (step.lengths[slot] for step in reversed(self.in_flight) if slot in step.lengths), self.committed[slot]
        )

    def commit(self, share: bool) -> None:
        step = self.in_flight[0] if self.in_flight else None
        super().commit(share)
        if step is None:
            return
        del self.reads[step.transaction.epoch]
        slots = [slot for slot in step.lengths if slot in self.reference.state.rows]
        lengths = as_array(step.lengths[slot] for slot in slots)
        self.memory.slide(as_array(slots), np.zeros_like(lengths), lengths)
        for slot in slots:
            # Up to a whole page back, so that the cache can go on at the last full page.
            whole = step.lengths[slot] // self.page_size * self.page_size
            self.kept[slot] = max(self.kept[slot], self.first_read(whole))

    def abort(self) -> None:
        if self.in_flight:
            del self.reads[self.in_flight[-1].transaction.epoch]
        super().abort()

    @rule(count=st.integers(1, 12))
    def crowd(self, count: int) -> None:
        """Window pages are wanted: those that only the cache refers to go first, and only as many as need be."""
        free, unheld = self.windows.pool.free, self.unheld()
        enough = self.windows.make_room(count)
        assert len(unheld) - len(self.unheld()) == min(max(count - free, 0), len(unheld))
        assert enough == (self.windows.pool.free >= count)
        self.laws_hold()
        self.reference_agrees()

    def unheld(self) -> set[int]:
        """Window pages that the cache has and no row refers to."""
        state = self.reference.state
        held = {page for slot, row in state.rows.items() for page in row.pages[self.kept[slot] :]}
        return {
            int(self.windows.partners.of[page])
            for page in state.cache.values()
            if self.alive(page) and page not in held
        }

    # ---- what holds after every move ----

    def reference_agrees(self) -> None:
        super().reference_agrees()
        assert self.cache.events is not None
        self.mirror.replay(self.cache.events)
        self.cache.events.clear()
        assert self.mirror.content == self.cache.content(), "a tombstone is content, of which the events have told"
        state = self.reference.state
        for slot, row in state.rows.items():
            assert int(self.windows.start[slot]) == self.kept[slot]
            for index in range(self.kept[slot], len(row.pages)):
                prefix = self.namespaces[slot], self.tokens[slot][: (index + 1) * self.page_size]
                assert self.alive(row.pages[index])
                assert self.written[int(self.windows.partners.of[row.pages[index]])] == prefix
        for prefix, page in state.cache.items():
            assert not self.alive(page) or self.written[int(self.windows.partners.of[page])] == prefix
        own = {page for slot, row in state.rows.items() for page in row.pages[self.kept[slot] :]}
        cached = {page for page in state.cache.values() if self.alive(page)}
        living = {page for page in range(state.num_pages) if self.alive(page)}
        assert living == own | cached, "a page that nobody reads on from has no partner"
        assert self.windows.pool.owned == len(own - set(state.cache.values()))
        assert self.windows.pool.cached == len(cached)

    def teardown(self) -> None:
        super().teardown()
        assert self.windows.pool.free == self.windows.pool.total
