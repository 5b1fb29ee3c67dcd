"""Properties 10, 13 and 14 of memory: what the loop does with it. The other properties: test_memory_properties.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from random import Random

import pytest

from pawl.gpu.ghost.memory import GhostFault
from pawl.lifecycle.states import Cause
from pawl.loops.loop import Loop
from pawl.memory.escrow import Escrow
from pawl.memory.memory import Memory
from pawl.memory.page_pool import PagePool
from pawl.memory.page_table import PageTable
from pawl.memory.prefix.base import Hold
from pawl.memory.slot_pool import SlotPool
from pawl.memory.transaction import Transaction
from pawl.memory.undo import Undo
from pawl.memory.violation import MemoryViolation
from tests.loops.driver import CELLS, Driver
from tests.memory.injection import InjectedFailure, Injector
from tests.memory.properties import STATEMENTS


class Patient(Driver):
    """A driver that counts violations and goes on, as a server does."""

    def __init__(self, pacing: str = "overlap", mixed: bool = True) -> None:
        super().__init__(
            pacing=pacing, mixed=mixed, num_pages=10, max_context=36, max_running=3, lookahead=4, prefill_chunk=8
        )
        self.violations: list[MemoryViolation] = []

    def violated(self, violation: MemoryViolation) -> None:
        self.violations.append(violation)

    def submit_some(self, seed: int = 0, count: int = 4) -> None:
        chance = Random(seed)
        for _ in range(count):
            self.submit([chance.randrange(2) for _ in range(chance.randint(1, 20))], chance.randint(1, 12))

    def run_to_rest(self, limit: int = 400) -> None:
        """Until every request has ended; a turn in which nothing can be done is one of many."""
        for _ in range(limit):
            self.step()
            if self.loop.idle:
                return
        raise AssertionError(f"{len(self.loop.table)} requests live on after {limit} turns")


class TestProperty10NothingIsLeftBehind:
    __doc__ = STATEMENTS[10]

    def play(self, seed: int, pacing: str, mixed: bool) -> None:
        """Requests end in every way, at any time."""
        chance, driver = Random(seed), Patient(pacing, mixed)
        driver.submit_some(seed, 8)
        driver.ghost.fail_at = {chance.randrange(3, 20)}
        while not driver.loop.idle:
            live = [request for request in driver.output_of if request not in driver.ending_of]
            if live and chance.random() < 0.15:
                driver.loop.requests.abort(chance.choice(live), Cause.CLIENT, driver.now)
            if live and chance.random() < 0.1:
                request = chance.choice(live)
                driver.loop.requests.finish(request, len(driver.output_of[request]) // 2, driver.now)
            driver.step()
            self.only_the_running_own(driver)
        memory = driver.loop.memory
        driver.loop.requests.expire(float("inf"))
        assert len(driver.ending_of) == 8
        assert (memory.pages.owned, memory.pages.deferred, memory.pages.quarantined) == (0, 0, 0)
        assert driver.loop.flush(driver.now)
        assert memory.digest() == 0, "no fact is left"
        assert not driver.violations

    def only_the_running_own(self, driver: Driver) -> None:
        loop, memory = driver.loop, driver.loop.memory
        slots = set(loop.table.slot[loop.queues.running()].tolist())
        assert set(memory.slots.used.tolist()) == slots
        assert {slot for slot, hold in enumerate(memory.page_table.holds) if hold is not None} == slots
        assert set(memory.escrow.promised.nonzero()[0].tolist()) <= slots
        assert set(memory.page_table.num_pages.nonzero()[0].tolist()) <= slots

    @pytest.mark.parametrize(("pacing", "mixed"), CELLS)
    def test_holds_whenever_and_however_requests_end(self, pacing: str, mixed: bool) -> None:
        for seed in range(6):
            self.play(seed, pacing, mixed)

    def test_its_canary_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Escrow, "forget", lambda *_: None)
        with pytest.raises((AssertionError, MemoryViolation)):
            self.test_holds_whenever_and_however_requests_end("overlap", True)


@cache
def expected_outputs() -> dict[int, list[int]]:
    """What clients get when nothing fails: the ghost's tokens depend on nothing else."""
    driver = Patient()
    driver.submit_some()
    driver.run_to_rest()
    return driver.output_of


class TestProperty13FailureToAllocate:
    __doc__ = STATEMENTS[13]

    def run_with_failure(self, way: str, at: int) -> Injector:
        """Operation number `at` of a busy run fails. Everybody ends all the same, with the same tokens."""
        driver = Patient()
        injector = Injector(driver.loop.memory, way, at)
        driver.submit_some()
        driver.run_to_rest()
        assert driver.output_of == expected_outputs(), injector.failed
        told = [violation.statement for violation in driver.violations]
        failure = [InjectedFailure.__name__]
        if way == "refuse":
            # To refuse what is there to be had leaves somebody waiting for nothing, which is seen as well.
            told = [statement for statement in told if statement != "nobody waits while nothing is done"]
            assert told in ([], failure, ["room that was made for rows is theirs"])
        else:
            assert told == failure * bool(injector.failed), "what failed is told, and property 9 held"
        driver.loop.check_all()
        assert driver.loop.flush(driver.now)
        assert driver.loop.memory.digest() == 0
        return injector

    @pytest.mark.parametrize("way", ["before", "after", "refuse"])
    def test_whichever_operation_fails_the_loop_goes_on(self, way: str) -> None:
        at = 0
        while self.run_with_failure(way, at).failed:
            at += 1
        assert at > 60, "every operation of the run failed once"

    def test_a_request_that_cannot_be_planned_ends_and_the_others_go_on(self) -> None:
        driver = Patient()
        match = driver.loop.memory.cache.match_and_hold

        def fails_for_one(tokens: object, namespace: str, *rest: object) -> Hold:
            if namespace == "broken":
                raise MemoryViolation("a planted violation")
            return match(tokens, namespace, *rest)  # type: ignore[arg-type]

        driver.loop.memory.cache.match_and_hold = fails_for_one  # type: ignore[method-assign]
        broken = driver.submit([1, 2, 3], namespace="broken")
        driver.submit_some()
        driver.run_to_rest()
        assert driver.cause(broken) is Cause.INTERNAL
        assert {driver.cause(request) for request in driver.output_of if request != broken} == {Cause.LENGTH}
        assert {violation.statement for violation in driver.violations} == {"a planted violation"}

    def test_its_canary_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        take = PagePool.take

        def stops(pool: PagePool, transaction: Transaction, count: int) -> object:
            if count > pool.free:
                raise RuntimeError("out of pages")
            return take(pool, transaction, count)

        def lets_through(loop: Loop, builder: object, error: Exception) -> None:
            raise error

        monkeypatch.setattr(PagePool, "take", stops)
        monkeypatch.setattr("pawl.loops.loop.undo_plan", lets_through)
        driver = Patient()
        driver.submit_some()
        with pytest.raises(RuntimeError):
            driver.run_to_rest()


class TestProperty14Flush:
    __doc__ = STATEMENTS[14]

    def play(self) -> None:
        """Somebody wants the cache empty all the time."""
        driver, flushed = Patient(), 0
        driver.submit_some()
        for _ in range(400):
            busy = not driver.loop.idle
            cached = driver.loop.memory.pages.cached
            done = driver.loop.flush(driver.now)
            assert done != busy
            assert driver.loop.memory.pages.cached == (cached if busy else 0)
            flushed += done
            driver.step()
            driver.loop.check_all()
            if flushed == 2:
                break
        assert driver.output_of == expected_outputs()

    def test_holds_whenever_it_is_asked_for(self) -> None:
        self.play()

    def test_its_canary_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Memory, "flush", lambda memory: bool(memory.make_room(memory.pages.free + 1)) or True)
        monkeypatch.setattr("pawl.loops.loop.Loop.idle", property(lambda loop: not loop.in_flight))
        with pytest.raises(AssertionError):
            self.play()


def stays_spent(
    undo: Undo, slot: int, num_pages: int, length: int, covered: int, whole: Callable[..., None] = Undo.extend_slot
) -> None:
    whole(undo, slot, num_pages, length, 0)


UNDOS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "a slot stays taken": (SlotPool, "untake", lambda *_: None),
    "pages stay taken": (PagePool, "_untake", lambda *_: None),
    "pages stay shared": (Undo, "share", lambda *_: None),
    "a prefix stays held": (PageTable, "unhold", lambda *_: None),
    "a row stays": (Undo, "admit", lambda *_: None),
    "rows stay long": (PageTable, "cut", lambda *_: None),
    "a row stays long": (Undo, "extend_slot", lambda *_: None),
    "rows that decode stay long": (Undo, "advance", lambda *_: None),
    "spent promises stay spent": (Undo, "extend_slot", stays_spent),
}


@pytest.mark.parametrize("defect", UNDOS)
def test_the_running_loop_itself_notices_what_is_not_undone(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Property 9, live: by the digest alone, at every rollback; no self-check is needed."""
    monkeypatch.setattr(*UNDOS[defect])
    told: set[str] = set()
    for lost in range(3, 12):
        driver = Patient()
        driver.loop.check = lambda: None  # type: ignore[method-assign]
        driver.ghost.fail_at = {lost}
        for tail in range(5):
            driver.submit([0] * 8 + [tail] * 13, 3 + tail)
        # Pages that are wrong are refused later on, by memory or by the ghost, but that is not what tells.
        with suppress(MemoryViolation, GhostFault):
            for _ in range(20):
                driver.step()
        told |= {violation.statement for violation in driver.violations}
    assert "rollback restores the state digest" in told
