"""Histories with every verb of memory: promises, single rows that evict, and pages that somebody else writes."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from pawl.memory.memory import Memory
from pawl.memory.page_pool import Reservation
from pawl.memory.prefix.base import Eviction, Hold
from pawl.memory.prefix.chunk import ChunkCache
from pawl.memory.violation import MemoryViolation
from tests.memory.observation import observe
from tests.memory.reference import Promise, Publish, Reserve
from tests.memory.test_memory_histories import (
    GROW_ALL,
    MAX_PAGES_OF_A_REQUEST,
    NAMESPACE,
    PICK,
    WORDS,
    MemoryHistory,
    Step,
    as_array,
    prompt,
    random_moves,
)

Move = tuple[Any, ...]
ADMIT = st.tuples(st.just("admit"), WORDS, st.integers(0, 100), NAMESPACE, st.sampled_from([True, True, True, False]))
FETCH = st.tuples(st.just("fetch"), WORDS, NAMESPACE, st.integers(1, 4))
ARRIVE = st.tuples(st.just("arrive"), PICK, st.integers(0, 4))
STALE = st.tuples(st.just("use_a_stale_handle"), PICK)
BETWEEN_STEPS = st.lists(
    st.one_of(
        FETCH,
        ARRIVE,
        STALE,
        st.tuples(st.just("promise"), PICK, st.integers(0, 150)),
        st.tuples(st.just("renew"), PICK, st.lists(st.integers(0, 150), min_size=1, max_size=4)),
        st.tuples(st.just("flush_while_held"), st.just(())).map(lambda move: move[:1]),
    ),
    max_size=4,
)
WITHIN_A_STEP = st.lists(
    st.one_of(
        ADMIT,
        GROW_ALL,
        st.tuples(st.just("extend"), st.lists(st.integers(0, 150), min_size=1, max_size=4), PICK),
        st.tuples(st.just("extend_slot"), PICK, st.integers(0, 150)),
        st.tuples(st.just("extend_slot"), PICK, st.integers(0, 150)),
        st.tuples(st.just("promise"), PICK, st.integers(0, 150)),
        st.tuples(st.just("renew"), PICK, st.lists(st.integers(0, 150), min_size=1, max_size=4)),
        st.just(("savepoint",)),
        st.tuples(st.just("rollback"), PICK),
        FETCH,
        ARRIVE,
    ),
    max_size=10,
)


class Fetch(NamedTuple):
    """Pages that somebody else writes."""

    number: int
    reservation: Reservation
    hold: Hold
    namespace: str
    tokens: tuple[int, ...]
    """Of what is held and of the reserved pages."""


class EveryVerb(MemoryHistory):
    """As its parent, with promises, fetches and their handles."""

    @initialize(num_pages=st.integers(3, 20), num_slots=st.integers(1, 4))
    def start(self, num_pages: int, num_slots: int) -> None:
        super().start(num_pages, num_slots)
        self.fetches: list[Fetch] = []
        self.stale: list[Reservation] = []
        self.num_fetches = 0
        self.writes: dict[int, dict[int, set[int]]] = {}
        """Step -> slot -> the pages that it writes."""
        self.generations = self.memory.pages.generation.copy()
        self.in_use = np.zeros(num_pages, np.bool_)

    # ---- within a step ----

    def admit(self, words: list[int], tail: int, namespace: str, use_cache: bool) -> None:
        """What is held cannot be evicted: an admission that others have been promised the pages of is put back."""
        self.savepoint()
        super().admit(words, tail, namespace, use_cache)
        if self.reference.state.unpromised < 0:
            self.rollback(len(self.opened.savepoints) - 1)

    @property
    def opened(self) -> Step:
        assert self.open is not None
        return self.open

    def extend_slot(self, which: int, amount: int) -> None:
        if not self.running:
            return
        slot, state = self.running[which % len(self.running)], self.reference.state
        length = min(state.rows[slot].length + amount, len(self.tokens[slot]))
        count = state.lacking(slot, length)
        self.cache.last = Eviction(as_array(()), 0)
        first = int(self.memory.page_table.num_pages[slot])
        pages = self.memory.extend_slot(self.opened.transaction, slot, length)
        if self.promised_to_others({slot: count}, state):
            assert pages is None
            assert not len(self.cache.last.pages), "nothing leaves for a row that cannot go on all the same"
            return
        self.evicted(count)
        assert (pages is None) == (count > len(self.reference.state.free_pages))
        if pages is not None:
            entries = self.memory.page_table.entries(slot, first)
            assert entries.pages.tolist() == pages.tolist()
            self.extended({slot: length}, entries)

    def prepare(self) -> None:
        step, starts = self.opened, {slot: self.launched(slot) for slot in self.opened.slots}
        super().prepare()
        rows = self.reference.state.rows
        self.writes[step.transaction.epoch] = {
            slot: set(rows[slot].pages[start // self.page_size :])
            for slot, start in starts.items()
            if start < rows[slot].length
        }

    def launched(self, slot: int) -> int:
        """Positions of a row that launched steps compute, or computed."""
        return next(
            (step.lengths[slot] for step in reversed(self.in_flight) if slot in step.lengths), self.committed[slot]
        )

    # ---- promises ----

    def promise(self, which: int, amount: int) -> None:
        state = self.reference.state
        slots = [slot for slot in self.running if not state.promises.get(slot, 0)]
        if not slots:
            return
        slot = slots[which % len(slots)]
        length = min(state.rows[slot].length + amount, len(self.tokens[slot]))
        need = state.lacking(slot, length)
        assert self.memory.promise(slot, length) == (need <= state.unpromised)
        if need <= state.unpromised:
            self.reference.do(Promise({slot: need}))

    def renew(self, first: int, amounts: list[int]) -> None:
        """Every running row is promised anew what it lacks, one after the other, as far as the pages go."""
        state, running = self.reference.state, self.running
        if not running:
            return
        slots = [running[(first + offset) % len(running)] for offset in range(len(running))]
        lengths = {
            slot: min(state.rows[slot].length + amounts[index % len(amounts)], len(self.tokens[slot]))
            for index, slot in enumerate(slots)
        }
        left, short = len(state.free_pages) + state.evictable, 0
        changes = {}
        for slot, length in lengths.items():
            want = state.lacking(slot, length)
            granted = min(want, left)
            left, short = left - granted, short + want - granted
            changes[slot] = granted - state.promises.get(slot, 0)
        waiting = len(state.deferred_pages) + len(state.quarantined)
        assert self.memory.renew(as_array(slots), as_array(lengths.values())) == max(short - waiting, 0)
        self.reference.do(Promise(changes))

    # ---- pages that somebody else writes ----

    def fetch(self, words: list[int], namespace: str, most: int) -> None:
        state, size = self.reference.state, self.page_size
        whole = prompt(words, 0, size)[: len(words) * size]
        held, pages = self.match(namespace, whole)
        count = min(len(words) - len(pages), most)
        if not count:
            return
        hold = self.memory.cache.match_and_hold(as_array(whole), namespace)
        assert (hold.num_tokens, hold.pages.tolist()) == (len(held[1]), list(pages))
        number = self.num_fetches
        self.num_fetches += 1
        after = Reserve(number, held, ()).apply(state)
        self.cache.last = Eviction(as_array(()), 0)
        reservation = self.memory.reserve(count)
        if count > after.unpromised:
            assert reservation is None
            self.memory.cache.release(hold, self.memory.ledger.resolved, used=False)
            return
        self.reference.do(Reserve(number, held, ()))
        self.evicted(count)
        free = self.reference.state.free_pages
        assert (reservation is None) == (count > len(free))
        if reservation is None:
            self.memory.cache.release(hold, self.memory.ledger.resolved, used=False)
            self.reference.do(Publish(number, (), held))
            return
        taken = tuple(reservation.pages.tolist())
        assert len(set(taken)) == count
        assert set(taken) <= free
        self.reference.do(Reserve(number, held, taken))
        tokens = whole[: len(held[1]) + count * size]
        self.fetches.append(Fetch(number, reservation, hold, namespace, tokens))

    def arrive(self, which: int, written: int) -> None:
        """A fetch ends; its first pages are written. Its handle is stale from now on."""
        if not self.fetches:
            return
        fetch = self.fetches.pop(which % len(self.fetches))
        pages = tuple(fetch.reservation.pages.tolist())
        count = min(written, len(pages))
        tokens = fetch.tokens[: fetch.hold.num_tokens + count * self.page_size]
        hold = fetch.hold
        if count:
            hold = self.memory.publish(fetch.reservation, count, as_array(tokens), fetch.namespace, fetch.hold)
            assert hold.num_tokens == (len(tokens) if self.caches else 0)
        else:
            self.memory.withdraw(fetch.reservation)
        self.memory.cache.release(hold, self.memory.ledger.resolved, used=False)
        end = len(tokens) if self.caches else 0
        self.reference.do(Publish(fetch.number, pages, (fetch.namespace, tokens[:end])))
        self.stale.append(fetch.reservation)

    def use_a_stale_handle(self, which: int) -> None:
        """Property 5: it is told from a live one, and nothing changes."""
        if not self.stale:
            return
        reservation, before = self.stale[which % len(self.stale)], observe(self.memory)
        hold = self.memory.cache.match_and_hold(as_array(()), "")
        tokens = as_array([0] * self.page_size)
        with pytest.raises(MemoryViolation, match="generation"):
            self.memory.publish(reservation, 1, tokens, "", hold)
        self.memory.cache.release(hold, self.memory.ledger.resolved, used=False)
        with pytest.raises(MemoryViolation, match="generation"):
            self.memory.withdraw(reservation)
        assert observe(self.memory) == before

    def flush(self) -> None:
        if self.fetches:
            self.flush_while_held()
        else:
            super().flush()

    def flush_while_held(self) -> None:
        """Property 14: what is held, by rows or fetches, is not lost to a flush."""
        if not any(fetch.hold.num_tokens for fetch in self.fetches):
            return
        before = observe(self.memory)
        if self.running or self.in_flight or self.open is not None:
            assert not (self.running or self.in_flight) or not self.memory.flush()
        else:
            with pytest.raises(MemoryViolation, match="held"):
                self.memory.flush()
        assert observe(self.memory) == before

    # ---- what Hypothesis chooses from, beside its parent's ----

    @rule(moves=WITHIN_A_STEP, launched=st.sampled_from([True, True, True, False]))
    def busy_turn(self, moves: list[Move], launched: bool) -> None:
        """A step of all verbs."""
        self.turn(moves, launched)

    @rule(moves=BETWEEN_STEPS)
    def between(self, moves: list[Move]) -> None:
        """Others are at work."""
        self.play(moves)

    # ---- what holds after every move ----

    def reference_agrees(self) -> None:
        super().reference_agrees()
        pages = self.memory.pages
        in_use = (pages.refcount > 0) | pages.reserved
        left = self.in_use & ~in_use
        assert (pages.generation >= self.generations).all()
        assert (pages.generation[left] > self.generations[left]).all(), "a page that was given back has aged"
        for fetch in self.fetches:
            pages.check_handle(fetch.reservation)
        self.generations, self.in_use = pages.generation.copy(), in_use

    def teardown(self) -> None:
        while self.fetches:
            self.arrive(0, 0)
        super().teardown()
        assert self.memory.escrow.total == 0
        assert self.memory.digest() == 0, "no fact is left"


class WatchedChunkCache(ChunkCache):
    """Evicts nothing, and says so."""

    last = Eviction(as_array(()), 0)


class WithoutCache(EveryVerb):
    """The same with `--cache none`: nothing is found again."""

    caches = False

    def new_memory(self, num_pages: int, num_slots: int, context: int) -> Memory:
        self.cache = WatchedChunkCache(self.page_size)
        return Memory(num_pages=num_pages, num_slots=num_slots, max_context=context, cache=self.cache)


# ---- histories as data ----

Program = list[Move]
"""Names of methods of a history, with their arguments. Any part of a program is a program."""


def every_move(chance: Random) -> list[Move]:
    """A step of a busy server: as `random_moves`, with promises and fetches between."""
    moves = random_moves(chance)

    def words() -> list[int]:
        return [chance.randint(0, 3) for _ in range(chance.randint(0, MAX_PAGES_OF_A_REQUEST - 1))]

    others: list[Move] = [
        ("extend_slot", chance.randint(0, 9), chance.randint(0, 150)),
        ("extend_slot", chance.randint(0, 9), chance.randint(0, 150)),
        ("promise", chance.randint(0, 9), chance.randint(0, 150)),
        ("renew", chance.randint(0, 9), [chance.randint(0, 150) for _ in range(3)]),
        ("fetch", words(), chance.choice(["", "", "adapter"]), chance.randint(1, 4)),
        ("arrive", chance.randint(0, 9), chance.randint(0, 4)),
        ("use_a_stale_handle", chance.randint(0, 9)),
        ("savepoint",),
        ("rollback", chance.randint(0, 9)),
        ("flush",),
    ]
    for move in chance.sample(others, chance.randint(1, 5)):
        moves.insert(chance.randint(0, len(moves)), move)
    return moves


def random_program(seed: int, turns: int) -> Program:
    """A long busy history. The first call says what it is about."""
    chance = Random(seed)
    program: Program = [("start", chance.choice([1, 16, 64]), chance.randint(5, 24), chance.randint(1, 5))]
    for _ in range(turns):
        program.append(("turn", every_move(chance), chance.random() < 0.85))
        program.append(("settle", chance.choice([0, 1, 1, 2]), chance.random() < 0.8, chance.random() < 0.15))
        if chance.random() < 0.5:
            program.append(("leave", [("release", chance.randint(0, 9))]))
    return program


History = TypeVar("History", bound=EveryVerb)


def play(program: Program, history: History) -> History:
    """Run a program on a history that has not started."""
    (_, page_size, num_pages, num_slots), *calls = program
    history.page_size = page_size
    history.start(num_pages, num_slots)
    for name, *arguments in calls:
        getattr(history, name)(*arguments)
    history.teardown()
    return history


def fails(program: Program, kind: type[EveryVerb]) -> bool:
    """Whether a property is broken on the way."""
    try:
        play(program, kind())
    except (AssertionError, MemoryViolation, IndexError, ValueError):
        return True
    return False


def shrunk(program: Program, kind: type[EveryVerb]) -> Program:
    """The shortest program found that still fails: first its beginning, then ever smaller parts are left out."""
    first, last = 1, len(program)
    while first < last:
        middle = (first + last) // 2
        if fails(program[:middle], kind):
            last = middle
        else:
            first = middle + 1
    program = program[:first]
    size = len(program) // 2
    while size:
        start = 1
        while start < len(program):
            without = program[:start] + program[start + size :]
            if fails(without, kind):
                program = without
            else:
                start += size
        size //= 2
    return program
