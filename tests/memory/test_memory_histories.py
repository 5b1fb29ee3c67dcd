"""Random histories of a whole memory, beside the reference that is obviously right. Properties 1-8, 10-12 and 14."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.page_table import PageEntries
from pawl.memory.prefix.base import Eviction
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.transaction import Transaction
from pawl.memory.window_pool import WindowPool
from tests.memory.observation import observe
from tests.memory.reference import Admit, Evict, Extend, Prefix, Promise, Reference, Release, Resolve, Share, State

PHASES = (Phase.reuse, Phase.generate, Phase.shrink)
MAX_IN_FLIGHT = 3
MAX_PAGES_OF_A_REQUEST = 6
PICK = st.integers(0, 1_000)
"""Chooses among what exists at that time, modulo its number."""
WORDS = st.lists(st.integers(0, 3), max_size=MAX_PAGES_OF_A_REQUEST - 1)
NAMESPACE = st.sampled_from(["", "adapter"])

ADMIT = st.tuples(st.just("admit"), WORDS, st.integers(0, 100), NAMESPACE, st.sampled_from([True, True, True, False]))
GROW_ALL = st.just(("grow_all",))
MOVES = st.lists(
    st.one_of(
        ADMIT,
        ADMIT,
        GROW_ALL,
        GROW_ALL,
        st.tuples(st.just("extend"), st.lists(st.integers(0, 150), min_size=1, max_size=4), PICK),
        st.just(("savepoint",)),
        st.tuples(st.just("rollback"), PICK),
        st.tuples(st.just("release"), PICK),
        st.tuples(st.just("share_prefix"), PICK, st.integers(0, MAX_PAGES_OF_A_REQUEST)),
        st.tuples(st.just("make_room"), st.integers(1, 20)),
        st.tuples(st.just("commit"), st.booleans()),
        st.just(("flush",)),
    ),
    max_size=8,
)
"""What happens while a step is planned: names of methods of the history, with their arguments."""


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

    def __init__(self, transaction: Transaction, savepoint: int, digest: int) -> None:
        self.transaction = transaction
        self.slots: set[int] = set()
        """Slots it admitted or extended."""
        self.lengths: dict[int, int] = {}
        self.pages: set[int] = set()
        self.savepoints: list[tuple[int, int, set[int], int]] = [(0, savepoint, set(), digest)]
        """Place in the log, place in the reference's history, slots touched, digest."""


class MemoryHistory(RuleBasedStateMachine):
    """0 to 3 steps in flight and perhaps one open; requests come, grow, share, and leave at any time."""

    page_size = 1
    caches = True
    """Whether what is shared is found again."""

    @initialize(num_pages=st.integers(3, 20), num_slots=st.integers(1, 4))
    def start(self, num_pages: int, num_slots: int) -> None:
        context = MAX_PAGES_OF_A_REQUEST * self.page_size
        self.memory = self.new_memory(num_pages, num_slots, context)
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
        self.num_moves = 0
        self.num_compared = 0
        """Rollbacks after which the digest was compared with that of the savepoint."""

    def new_memory(self, num_pages: int, num_slots: int, context: int) -> Memory:
        self.cache: Any = WatchedCache(self.page_size)
        return Memory(num_pages=num_pages, num_slots=num_slots, max_context=context, cache=self.cache)

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

    def begin(self) -> None:
        self.open = Step(self.memory.ledger.begin(), self.reference.savepoint(), self.memory.digest())

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
        held, pages = self.match(namespace, tokens[:-1]) if use_cache else ((namespace, ()), ())
        assert granted.num_cached == len(held[1])
        self.reference.do(Admit(granted.slot, held, pages), self.open.transaction.epoch)
        self.open.slots.add(granted.slot)
        self.tokens[granted.slot] = tokens
        self.namespaces[granted.slot] = namespace
        self.committed[granted.slot] = granted.num_cached

    def extend(self, grow: list[int], first: int) -> None:
        running, rows = self.running, self.reference.state.rows
        if not running:
            return
        slots = [running[(first + offset) % len(running)] for offset in range(min(len(grow), len(running)))]
        if grow[0] % 2:  # as requests do that decode
            slots = [slot for slot in slots if rows[slot].length < len(self.tokens[slot])]
            grow = [1] * len(slots)
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
        demand = {slot: state.lacking(slot, length) for slot, length in lengths.items()}
        assert self.memory.demand(slots, targets).tolist() == list(demand.values())
        starts = as_array(state.rows[slot].length for slot in lengths)
        if lengths and (targets == starts + 1).all():
            entries = self.memory.advance(self.open.transaction, slots.astype(np.intp), starts)
        else:
            entries = self.memory.extend(self.open.transaction, slots, targets)
        if self.promised_to_others(demand, state) or entries is None:
            assert entries is None
            assert self.too_many(sum(demand.values())) or self.promised_to_others(demand, state)
            return
        self.extended(lengths, entries)

    def promised_to_others(self, demand: Mapping[int, int], state: State) -> bool:
        """Whether these rows want more than what they and nobody else have been promised."""
        uncovered = sum(max(count - state.promises.get(slot, 0), 0) for slot, count in demand.items())
        return uncovered > 0 and uncovered > state.unpromised

    def extended(self, lengths: dict[int, int], entries: PageEntries) -> None:
        """Rows grew, with these new entries."""
        assert self.open is not None
        state = self.reference.state
        demand = {slot: state.lacking(slot, length) for slot, length in lengths.items()}
        taken: dict[int, tuple[int, ...]] = dict.fromkeys(lengths, ())
        for slot, index, page in np.stack(entries, axis=1).tolist():
            assert index == len(state.rows[slot].pages) + len(taken[slot])
            assert all(page not in step.pages for step in self.in_flight), "page is touched by a step in flight"
            taken[slot] += (page,)
        assert {slot: len(pages) for slot, pages in taken.items()} == demand
        new = [page for pages in taken.values() for page in pages]
        assert len(new) == len(set(new))
        assert set(new) <= state.free_pages
        spent = {slot: min(count, state.promises.get(slot, 0)) for slot, count in demand.items()}
        self.reference.do(Extend(taken, lengths, spent), self.open.transaction.epoch)
        self.open.slots.update(lengths)

    def match(self, namespace: str, tokens: tuple[int, ...]) -> tuple[Prefix, tuple[int, ...]]:
        """What a request with these tokens finds, and its pages."""
        return self.reference.state.match(namespace, tokens)

    def too_many(self, num_pages: int) -> bool:
        """Whether there is a reason to refuse so many pages."""
        return num_pages > len(self.reference.state.free_pages)

    def savepoint(self) -> None:
        assert self.open is not None
        ours, theirs = self.open.transaction.savepoint(), self.reference.savepoint()
        self.open.savepoints.append((ours, theirs, set(self.open.slots), self.memory.digest()))

    def rollback(self, which: int) -> None:
        assert self.open is not None
        index = which % len(self.open.savepoints)
        ours, theirs, slots, _ = self.open.savepoints[index]
        del self.open.savepoints[index + 1 :]
        self.open.transaction.rollback(ours)
        self.undone(self.open, index)
        self.reference.undo(self.open.transaction.epoch, theirs)
        self.open.slots = set(slots)

    def undone(self, step: Step, index: int) -> None:
        """What a step did after a savepoint has just been undone: if nothing else has happened since, the digest is
        what it was then."""
        if isinstance(self.memory.windows, WindowPool):
            return  # Window pages may have left the cache meanwhile, of which the reference knows nothing.
        _, since, _, digest = step.savepoints[index]
        before = self.reference.state_at(since).rows
        others = [event for undone_with, event in self.reference.since(since) if undone_with is None]
        if not [event for event in others if not (isinstance(event, Promise) and not set(event.changes) & set(before))]:
            assert self.memory.digest() == digest
            self.num_compared += 1

    def discard(self) -> None:
        assert self.open is not None
        self.memory.ledger.discard(self.open.transaction)
        self.undone(self.open, 0)
        self.reference.undo(self.open.transaction.epoch)
        self.open = None

    def prepare(self) -> None:
        assert self.open is not None
        step, self.open = self.open, None
        self.memory.ledger.prepare(step.transaction)
        self.newest = step.transaction.epoch
        rows = self.reference.state.rows
        step.lengths = {slot: rows[slot].length for slot in step.slots}
        step.pages = {page for slot in step.slots for page in rows[slot].pages}
        self.in_flight.append(step)

    def grow_all(self) -> None:
        """Every request runs to its end, as far as there is room."""
        for slot in self.running:
            self.extend_to({slot: len(self.tokens[slot])})

    def commit(self, share: bool) -> None:
        if not self.in_flight:
            return
        step = self.in_flight.pop(0)
        self.memory.ledger.commit(step.transaction)
        self.resolve()
        for slot, length in step.lengths.items():
            if slot in self.reference.state.rows:
                self.committed[slot] = length
        for slot in self.running if share else ():
            self.share(slot, MAX_PAGES_OF_A_REQUEST)

    def abort(self) -> None:
        if not self.in_flight:
            return
        step = self.in_flight.pop()
        waiting = bool(self.memory.pages.deferred or self.memory.slots.deferred)
        self.memory.ledger.abort(step.transaction)
        if not waiting:
            self.undone(step, 0)
        self.reference.undo(step.transaction.epoch)
        self.resolve()

    def resolve(self) -> None:
        """Every step before the oldest in flight is done with; all of them, when none is in flight."""
        self.reference.do(Resolve(self.in_flight[0].transaction.epoch - 1 if self.in_flight else self.newest))

    # ---- final moves, at any time ----

    def share_prefix(self, which: int, words: int) -> None:
        if self.running:
            self.share(self.running[which % len(self.running)], words)

    def share(self, slot: int, words: int) -> None:
        end = min(words, self.committed[slot] // self.page_size) * self.page_size
        tokens = self.tokens[slot][:end]
        row = self.reference.state.rows[slot]
        self.memory.share_prefix(slot, as_array(tokens), self.namespaces[slot])
        if self.caches and end > len(row.held[1]):
            self.reference.do(Share(slot, (self.namespaces[slot], tokens), self.fence))
        moved = self.reference.state.rows[slot].pages
        changes = {
            (slot, index, page)
            for index, (page, before) in enumerate(zip(moved, row.pages, strict=True))
            if page != before
        }
        told = {entry for entries in self.memory.take_replaced() for entry in map(tuple, np.stack(entries, 1).tolist())}
        assert told == changes, "the worker hears of every page that changed under a row"

    def release(self, which: int) -> None:
        if not self.idle:
            return
        slot = self.idle[which % len(self.idle)]
        pages = self.reference.state.rows[slot].pages
        self.memory.release(slot)
        self.reference.do(Release(slot, pages, self.fence))

    def make_room(self, count: int) -> None:
        self.cache.last = Eviction(as_array(()), 0)
        enough = self.memory.make_room(count)
        self.evicted(count)
        assert enough == (len(self.reference.state.free_pages) >= count)

    def evicted(self, count: int) -> None:
        """To have `count` free pages, those of the cache's last eviction left it."""
        state = self.reference.state
        pages, fence = tuple(self.cache.last.pages.tolist()), self.cache.last.fence
        assert not {state.cache[prefix] for prefix in state.held} & set(pages), "a held page was evicted"
        wanted = min(count - len(state.free_pages), len(set(state.cache) - state.held))
        assert len(pages) >= wanted
        assert not pages or wanted > 0, "nothing leaves that need not"
        touching = [step.transaction.epoch for step in self.in_flight if step.pages & set(pages)]
        assert max(touching, default=0) <= fence <= self.newest
        if pages:
            self.reference.do(Evict(pages, fence))

    def flush(self) -> None:
        state = self.reference.state
        flushed = self.memory.flush()
        assert flushed == (not state.rows and not self.in_flight)
        if flushed:
            self.reference.do(Evict(tuple(state.cache.values()), 0))

    # ---- what Hypothesis chooses from ----

    @rule(moves=MOVES, launched=st.sampled_from([True, True, True, True, False]))
    def turn(self, moves: list[tuple[Any, ...]], launched: bool) -> None:
        """Plan a step; launch or drop it."""
        if not self.in_flight:
            self.reference.forget()
        if len(self.in_flight) == MAX_IN_FLIGHT:
            self.commit(share=True)
        self.begin()
        self.play(moves)
        if launched:
            self.prepare()
        else:
            self.discard()

    @rule(commits=st.integers(0, 3), share=st.sampled_from([True, True, False]), aborts=st.integers(0, 2))
    def settle(self, commits: int, share: bool, aborts: int) -> None:
        """Results come in, or the worker is lost."""
        self.play([("commit", share)] * commits + [("abort",)] * aborts)

    @rule(moves=st.lists(st.tuples(st.just("release"), PICK), max_size=3))
    def leave(self, moves: list[tuple[Any, ...]]) -> None:
        """Requests end between steps."""
        self.play(moves)

    def play(self, moves: list[tuple[Any, ...]]) -> None:
        for name, *arguments in moves:
            getattr(self, name)(*arguments)
            self.num_moves += 1
            self.laws_hold()
            self.reference_agrees()

    # ---- what holds after every move ----

    @invariant()
    def laws_hold(self) -> None:
        self.memory.check_all()

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
        assert seen["holders"] == state.holders
        assert seen["promised"] == [state.promises.get(slot, 0) for slot in range(state.num_slots)]
        assert {page for page, reserved in enumerate(seen["reserved"]) if reserved} == state.quarantined

    def teardown(self) -> None:
        """A memory that nobody uses any more is all free: nothing was lost on the way."""
        if self.open is not None:
            self.discard()
        while self.in_flight:
            self.commit(share=True)
        for slot in self.running:
            self.memory.release(slot)
        assert self.memory.flush()
        assert self.memory.pages.free == self.memory.pages.total
        assert self.memory.slots.free == self.memory.slots.total
        assert self.cache.statistics()["holds"] == 0
        self.memory.check_all()


def random_moves(chance: Random) -> list[tuple[Any, ...]]:
    """What a busy server does, with more rollbacks."""
    moves: list[tuple[Any, ...]] = []
    for _ in range(chance.randint(1, 2)):
        words = [chance.randint(0, 3) for _ in range(chance.randint(0, MAX_PAGES_OF_A_REQUEST - 1))]
        moves.append(("admit", words, chance.randint(0, 99), chance.choice(["", "", "adapter"]), chance.random() < 0.9))
    moves.append(
        chance.choice([("grow_all",), ("grow_all",), ("extend", [chance.randint(0, 150)] * 2, chance.randint(0, 9))])
    )
    others: list[tuple[Any, ...]] = [
        ("savepoint",),
        ("rollback", chance.randint(0, 9)),
        ("make_room", chance.randint(1, 8)),
        ("commit", True),
        ("release", chance.randint(0, 9)),
    ]
    for move in chance.sample(others, chance.randint(0, 3)):
        moves.insert(chance.randint(0, len(moves)), move)
    return moves


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_memory_and_reference_agree_through_a_long_busy_history(page_size: int, seed: int) -> None:
    chance = Random(seed)
    history = MemoryHistory()
    history.page_size = page_size
    history.start(num_pages=chance.randint(8, 24), num_slots=chance.randint(2, 5))
    for _ in range(150):
        history.turn(random_moves(chance), launched=chance.random() < 0.85)
        history.settle(commits=chance.choice([0, 1, 1, 2]), share=chance.random() < 0.8, aborts=chance.random() < 0.1)
        history.leave([("release", chance.randint(0, 9))] * chance.choice([0, 0, 1]))
    history.teardown()


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_memory_and_reference_agree_after_every_move_of_a_random_history(page_size: int) -> None:
    history = type("MemoryHistory", (MemoryHistory,), {"page_size": page_size})
    run_state_machine_as_test(
        history,
        settings=settings(
            max_examples=max(settings().max_examples * 2 // 5, 1), stateful_step_count=25, deadline=None, phases=PHASES
        ),
    )
