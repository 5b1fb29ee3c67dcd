"""Random histories of a whole memory, beside the reference that is obviously right. Laws 1-8, 10-12 and 14."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memory.pages import Int32s
from memory.pool import Memory
from memory.prefix.base import Eviction
from memory.prefix.radix import RadixCache
from memory.transaction import Transaction
from tests.memory.observation import observe
from tests.memory.reference import Admit, Evict, Extend, Prefix, Reference, Release, Resolve, Share

PHASES = (Phase.reuse, Phase.generate, Phase.shrink)
MAX_IN_FLIGHT = 3
MAX_PAGES_OF_A_REQUEST = 6
PICK = st.integers(0, 1_000)
"""Chooses among what exists at that time, modulo its number."""
WORDS = st.lists(st.integers(0, 3), max_size=MAX_PAGES_OF_A_REQUEST - 1)
NAMESPACE = st.sampled_from(["", "adapter"])


def prompt(words: list[int], tail: int, page_size: int) -> tuple[int, ...]:
    """Token ids of whole pages and a rest. Words 0 and 1 differ in the last token of the page only."""
    tokens: list[int] = []
    for word in words:
        tokens += [word // 2] * (page_size - 1) + [word]
    return (*tokens, *([9] * (1 + tail % page_size)))


def as_array(values: Iterable[int]) -> Int32s:
    """int32 [n]"""
    return np.array(list(values), np.int32)


class WatchedCache(RadixCache):
    """Remembers its last eviction: the fence it names is not to be seen from outside."""

    last = Eviction(as_array(()), 0)

    def evict(self, count: int) -> Eviction:
        self.last = super().evict(count)
        return self.last


class Step:
    """A transaction, with what it launches once it is prepared."""

    def __init__(self, transaction: Transaction, savepoint: int) -> None:
        self.transaction = transaction
        self.slots: set[int] = set()
        """Slots it admitted or extended."""
        self.lengths: dict[int, int] = {}
        self.pages: set[int] = set()
        self.savepoints: list[tuple[int, int, set[int]]] = [(0, savepoint, set())]


class MemoryHistory(RuleBasedStateMachine):
    """0 to 3 steps in flight and perhaps one open; requests come, grow, share, and leave at any time."""

    page_size = 1

    @initialize(num_pages=st.integers(3, 20), num_slots=st.integers(1, 4))
    def start(self, num_pages: int, num_slots: int) -> None:
        self.cache = WatchedCache(self.page_size)
        context = MAX_PAGES_OF_A_REQUEST * self.page_size
        self.memory = Memory(num_pages=num_pages, num_slots=num_slots, max_context=context, cache=self.cache)
        self.reference = Reference(self.page_size, num_pages, num_slots)
        self.open: Step | None = None
        self.in_flight: list[Step] = []
        self.newest = 0
        """Epoch of the last step that was launched."""
        self.tokens: dict[int, tuple[int, ...]] = {}
        """Slot -> all tokens its request will ever have."""
        self.namespaces: dict[int, str] = {}
        self.committed: dict[int, int] = {}
        """Slot -> positions whose step is committed."""

    @property
    def running(self) -> list[int]:
        return sorted(self.reference.state.rows)

    @property
    def idle(self) -> list[int]:
        """Slots that the open step has not touched."""
        return [slot for slot in self.running if self.open is None or slot not in self.open.slots]

    @property
    def fence(self) -> int:
        return self.in_flight[-1].transaction.epoch if self.in_flight else self.reference.state.resolved

    # ---- one step ----

    @precondition(lambda self: self.open is None and len(self.in_flight) < MAX_IN_FLIGHT)
    @rule()
    def begin(self) -> None:
        self.open = Step(self.memory.ledger.begin(), self.reference.savepoint())

    @precondition(lambda self: self.open is not None)
    @rule(words=WORDS, tail=st.integers(0, 100), namespace=NAMESPACE, use_cache=st.booleans() | st.just(True))
    def admit(self, words: list[int], tail: int, namespace: str, use_cache: bool) -> None:
        assert self.open is not None
        tokens = prompt(words, tail, self.page_size)
        state = self.reference.state
        granted = self.memory.admit(self.open.transaction, as_array(tokens), namespace, use_cache)
        if granted is None:
            assert not state.free_slots
            return
        assert granted.slot in state.free_slots
        assert all(granted.slot not in step.slots for step in self.in_flight), "slot is used by a step in flight"
        held, pages = state.match(namespace, tokens[:-1]) if use_cache else ((namespace, ()), ())
        assert granted.num_cached == len(held[1])
        self.reference.do(Admit(granted.slot, held, pages), self.open.transaction.epoch)
        self.open.slots.add(granted.slot)
        self.tokens[granted.slot] = tokens
        self.namespaces[granted.slot] = namespace
        self.committed[granted.slot] = granted.num_cached

    @precondition(lambda self: self.open is not None and self.running)
    @rule(grow=st.lists(st.integers(0, 150), min_size=1, max_size=4), first=PICK)
    def extend(self, grow: list[int], first: int) -> None:
        running, rows = self.running, self.reference.state.rows
        slots = [running[(first + offset) % len(running)] for offset in range(min(len(grow), len(running)))]
        self.extend_to(
            {
                slot: min(rows[slot].length + amount, len(self.tokens[slot]))
                for slot, amount in zip(slots, grow, strict=False)
            }
        )

    def extend_to(self, lengths: dict[int, int]) -> None:
        assert self.open is not None
        state = self.reference.state
        slots, targets = as_array(lengths), as_array(lengths.values())
        demand = {slot: -(-length // self.page_size) - len(state.rows[slot].pages) for slot, length in lengths.items()}
        assert self.memory.demand(slots, targets).tolist() == list(demand.values())
        entries = self.memory.extend(self.open.transaction, slots, targets)
        if entries is None:
            assert sum(demand.values()) > len(state.free_pages)
            return
        taken: dict[int, tuple[int, ...]] = dict.fromkeys(lengths, ())
        for slot, index, page in np.stack(entries, axis=1).tolist():
            assert index == len(state.rows[slot].pages) + len(taken[slot])
            assert all(page not in step.pages for step in self.in_flight), "page is touched by a step in flight"
            taken[slot] += (page,)
        assert {slot: len(pages) for slot, pages in taken.items()} == demand
        new = [page for pages in taken.values() for page in pages]
        assert len(new) == len(set(new))
        assert set(new) <= state.free_pages
        self.reference.do(Extend(taken, lengths), self.open.transaction.epoch)
        self.open.slots.update(lengths)

    @precondition(lambda self: self.open is not None)
    @rule()
    def savepoint(self) -> None:
        assert self.open is not None
        mark = (self.open.transaction.savepoint(), self.reference.savepoint(), set(self.open.slots))
        self.open.savepoints.append(mark)

    @precondition(lambda self: self.open is not None)
    @rule(which=PICK)
    def rollback(self, which: int) -> None:
        assert self.open is not None
        index = which % len(self.open.savepoints)
        ours, theirs, slots = self.open.savepoints[index]
        del self.open.savepoints[index + 1 :]
        self.open.transaction.rollback(ours)
        self.reference.undo(self.open.transaction.epoch, theirs)
        self.open.slots = set(slots)

    @precondition(lambda self: self.open is not None)
    @rule()
    def discard(self) -> None:
        assert self.open is not None
        self.memory.ledger.discard(self.open.transaction)
        self.reference.undo(self.open.transaction.epoch)
        self.open = None

    @precondition(lambda self: self.open is not None)
    @rule()
    def prepare(self) -> None:
        assert self.open is not None
        step, self.open = self.open, None
        self.memory.ledger.prepare(step.transaction)
        self.newest = step.transaction.epoch
        rows = self.reference.state.rows
        step.lengths = {slot: rows[slot].length for slot in step.slots}
        step.pages = {page for slot in step.slots for page in rows[slot].pages}
        self.in_flight.append(step)

    @precondition(lambda self: self.open is None and len(self.in_flight) < MAX_IN_FLIGHT)
    @rule(words=st.lists(WORDS, max_size=2), namespace=NAMESPACE)
    def whole_step(self, words: list[list[int]], namespace: str) -> None:
        """What a scheduler does all the time, so that histories get somewhere: everything runs to its end."""
        self.begin()
        for request in words:
            self.admit(request, 0, namespace, True)
        for slot in self.running:
            self.extend_to({slot: len(self.tokens[slot])})
        self.prepare()

    @precondition(lambda self: self.in_flight)
    @rule()
    def commit(self) -> None:
        step = self.in_flight.pop(0)
        self.memory.ledger.commit(step.transaction)
        self.resolve()
        for slot, length in step.lengths.items():
            if slot in self.reference.state.rows:
                self.committed[slot] = length

    @precondition(lambda self: self.in_flight and self.open is None)
    @rule()
    def abort(self) -> None:
        step = self.in_flight.pop()
        self.memory.ledger.abort(step.transaction)
        self.reference.undo(step.transaction.epoch)
        self.resolve()

    def resolve(self) -> None:
        """Every step before the oldest in flight is done with; all of them, when none is in flight."""
        self.reference.do(Resolve(self.in_flight[0].transaction.epoch - 1 if self.in_flight else self.newest))

    # ---- final moves, at any time ----

    @precondition(lambda self: self.running)
    @rule(which=PICK, words=st.integers(0, MAX_PAGES_OF_A_REQUEST) | st.just(MAX_PAGES_OF_A_REQUEST))
    def share_prefix(self, which: int, words: int) -> None:
        slot = self.running[which % len(self.running)]
        end = min(words, self.committed[slot] // self.page_size) * self.page_size
        tokens = self.tokens[slot][:end]
        row = self.reference.state.rows[slot]
        self.memory.share_prefix(slot, as_array(tokens), self.namespaces[slot])
        if end > len(row.held[1]):
            self.reference.do(Share(slot, (self.namespaces[slot], tokens), self.fence))
        moved = self.reference.state.rows[slot].pages
        changes = {
            (slot, index, page)
            for index, (page, before) in enumerate(zip(moved, row.pages, strict=True))
            if page != before
        }
        told = {entry for entries in self.memory.take_replaced() for entry in map(tuple, np.stack(entries, 1).tolist())}
        assert told == changes, "the worker hears of every page that changed under a row"

    @precondition(lambda self: self.idle)
    @rule(which=PICK)
    def release(self, which: int) -> None:
        slot = self.idle[which % len(self.idle)]
        pages = self.reference.state.rows[slot].pages
        self.memory.release(slot)
        self.reference.do(Release(slot, pages, self.fence))

    @rule(count=st.integers(1, 20))
    def make_room(self, count: int) -> None:
        state = self.reference.state
        self.cache.last = Eviction(as_array(()), 0)
        enough = self.memory.make_room(count)
        pages, fence = tuple(self.cache.last.pages.tolist()), self.cache.last.fence
        assert not {state.cache[prefix] for prefix in state.held} & set(pages), "a held page was evicted"
        wanted = min(count - len(state.free_pages), len(set(state.cache) - state.held))
        assert len(pages) >= wanted
        assert not pages or wanted > 0, "nothing leaves that need not"
        touching = [step.transaction.epoch for step in self.in_flight if step.pages & set(pages)]
        assert max(touching, default=0) <= fence <= self.newest
        self.reference.do(Evict(pages, fence))
        assert enough == (len(self.reference.state.free_pages) >= count)

    @rule()
    def flush(self) -> None:
        state = self.reference.state
        flushed = self.memory.flush()
        assert flushed == (not state.rows and not self.in_flight)
        if flushed:
            self.reference.do(Evict(tuple(state.cache.values()), 0))

    # ---- what holds after every move ----

    @invariant()
    def laws_hold(self) -> None:
        self.memory.invariants()

    @invariant()
    def reference_agrees(self) -> None:
        state = self.reference.state
        seen = observe(self.memory)
        refcounts = state.refcounts
        assert seen["rows"] == {slot: list(row.pages) for slot, row in state.rows.items()}
        assert seen["lengths"] == {slot: row.length for slot, row in state.rows.items()}
        assert seen["holds"] == {slot: len(row.held[1]) for slot, row in state.rows.items()}
        assert seen["refcount"] == [refcounts[page] for page in range(state.num_pages)]
        assert sorted(seen["free pages"]) == sorted(state.free_pages)
        assert sorted(seen["free slots"]) == sorted(state.free_slots)
        assert seen["deferred slots"] == len(state.deferred_slots)
        assert seen["counters"]["deferred"] == len(state.deferred_pages)
        assert seen["cache"] == state.cache
        assert seen["held"] == len(state.held)
        assert self.memory.ledger.resolved == state.resolved
        holders: dict[Prefix, int] = {}
        for row in state.rows.values():
            if row.held[1]:
                holders[row.held] = holders.get(row.held, 0) + 1
        assert seen["holders"] == holders

    def teardown(self) -> None:
        """A memory that nobody uses any more is all free: nothing was lost on the way."""
        if self.open is not None:
            self.discard()
        while self.in_flight:
            self.commit()
        for slot in self.running:
            self.memory.release(slot)
        assert self.memory.flush()
        assert self.memory.pages.free == self.memory.pages.total
        assert self.memory.slots.free == self.memory.slots.total
        assert self.cache.statistics()["holds"] == 0
        self.memory.invariants()


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_memory_and_reference_agree_after_every_move_of_a_random_history(page_size: int) -> None:
    history = type("MemoryHistory", (MemoryHistory,), {"page_size": page_size})
    run_state_machine_as_test(
        history, settings=settings(max_examples=80, stateful_step_count=50, deadline=None, phases=PHASES)
    )
