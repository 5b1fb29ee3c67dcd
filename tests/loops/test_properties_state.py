"""Each property of a loop's state holds of a working loop, and reports what is planted in one (its canaries)."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, Protocol

import numpy as np
import pytest

from pawl import memory
from pawl.lifecycle.properties.base import Violation
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Record, StepCommitted
from pawl.lifecycle.states import Cause, State
from pawl.loops.companion import Companion
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.loop import Loop
from pawl.loops.properties.memory import RowShape
from pawl.loops.properties.state import STATE_PROPERTIES, STATEMENTS, name_of
from pawl.loops.replay import Diverged, Impossible, NotReplayable
from pawl.memory import checks
from pawl.memory.violation import MemoryViolation
from tests.loops.driver import CELLS, Driver
from tests.loops.test_replay import record_run

PROMPT = list(range(20))


class Tolerant(Driver):
    """A driver that keeps what is reported to it."""

    def __init__(self, **overrides: object) -> None:
        self.reported: list[MemoryViolation] = []
        super().__init__(**overrides)

    def violated(self, violation: MemoryViolation) -> None:
        self.reported.append(violation)

    @property
    def names(self) -> set[str]:
        return {name_of(each) for each in self.reported}


def working() -> Tolerant:
    """Two requests decode, a third begins with their pages; nothing is in flight."""
    driver = Tolerant(pacing="lockstep")
    for _ in range(3):
        driver.submit(PROMPT, 30)
    for _ in range(6):
        driver.step()
    assert driver.loop.queues.num_running == 3
    return driver


def rested() -> Tolerant:
    """All requests have ended, their prefix is cached."""
    driver = working()
    driver.run()
    return driver


class HasLoop(Protocol):
    """A driver, or a replay."""

    loop: Loop


Plant = Callable[[HasLoop], object]


def _lose_a_page(driver: HasLoop) -> None:
    driver.loop.memory.pages.free -= 1


def _free_a_page_twice(driver: HasLoop) -> None:
    pages = driver.loop.memory.pages
    pages._free_stack[0] = pages._free_stack[1]


def _own_at_rest(driver: HasLoop) -> None:
    pages = driver.loop.memory.pages
    pages.free, pages.owned = pages.free - 1, pages.owned + 1


def _share_a_page_to_write(driver: HasLoop) -> None:
    rows = driver.loop.memory.page_table
    first, second = driver.loop.memory.slots.used[:2].tolist()
    count = int(rows.num_pages[first])
    rows.pages[second, count - 1] = rows.pages[first, count - 1]


def _lengthen_a_row(driver: HasLoop) -> None:
    driver.loop.memory.page_table.length[driver.loop.memory.slots.used[0]] += 1


def _widen_a_row(driver: HasLoop) -> None:
    driver.loop.memory.page_table.length[driver.loop.memory.slots.used[0]] += 4


def _hold_for_nobody(driver: HasLoop) -> None:
    driver.loop.memory.cache.match_and_hold(np.array(PROMPT[:16], np.int32), "")


def _promise_to_nobody(driver: HasLoop) -> None:
    driver.loop.memory.escrow.promise(0, 1)


def _promise_too_much(driver: HasLoop) -> None:
    driver.loop.memory.escrow.promise(int(driver.loop.memory.slots.used[0]), 1000)


def _lose_a_slot(driver: HasLoop) -> None:
    driver.loop.memory.slots._free.pop()


def _change_the_digest(driver: HasLoop) -> None:
    driver.loop.memory.ledger.digest.value += 1


def _forget_a_request(driver: HasLoop) -> None:
    driver.loop.queues.drop(int(driver.loop.queues.running()[0]))


def _count_a_request_twice(driver: HasLoop) -> None:
    driver.loop.counters.finished += 1


def _end_by_another_cause(driver: HasLoop) -> None:
    counters = driver.loop.counters
    counters.by_cause = counters.by_cause | {Cause.LENGTH: counters.by_cause[Cause.LENGTH] - 1, Cause.CLIENT: 1}


def _end_by_no_cause(driver: HasLoop) -> None:
    driver.loop.counters.by_cause = driver.loop.counters.by_cause | {Cause.EOS: 1}


def _draft_more_than_was_drafted(driver: HasLoop) -> None:
    driver.loop.counters.drafts = driver.loop.counters.draft_tokens + 1


def _accept_more_than_was_drafted(driver: HasLoop) -> None:
    driver.loop.counters.accepted_tokens = driver.loop.counters.draft_tokens + 1


class WrongBooks(Companion):
    """One whose books do not agree."""

    def check(self) -> None:
        raise AssertionError("a fetch of nobody")


def _keep_wrong_books(driver: HasLoop) -> None:
    driver.loop.companions += (WrongBooks(),)


class Canary(NamedTuple):
    """Something planted in a loop."""

    property: str
    make: Callable[[], Tolerant]
    plant: Plant
    at_every_step: bool
    """Whether the next step shows it; else a look at the whole state does."""


CANARIES: dict[str, Canary] = {
    "a page that is nowhere": Canary("conservation", working, _lose_a_page, True),
    "a page that is free twice": Canary("conservation", working, _free_a_page_twice, False),
    "a page that nobody owns": Canary("conservation", rested, _own_at_rest, True),
    "a page of two who write": Canary("single_owner", working, _share_a_page_to_write, False),
    "a row that is longer than what was computed": Canary("row_shape", working, _lengthen_a_row, False),
    "a row without a page for its end": Canary("row_shape", working, _widen_a_row, False),
    "a hold of nobody": Canary("hold_accounting", rested, _hold_for_nobody, True),
    "a promise to nobody": Canary("auxiliary_conservation", rested, _promise_to_nobody, True),
    "a slot that is nowhere": Canary("auxiliary_conservation", rested, _lose_a_slot, True),
    "a request in no set": Canary("auxiliary_conservation", working, _forget_a_request, False),
    "books of a companion that do not agree": Canary("auxiliary_conservation", working, _keep_wrong_books, False),
    "more promised than there is": Canary("allocation_is_a_transaction", working, _promise_too_much, True),
    "a digest of something else": Canary("allocation_is_a_transaction", working, _change_the_digest, False),
    "a request that ended twice": Canary("observability_conservation", working, _count_a_request_twice, True),
    "an end by a cause that is none of a finish": Canary(
        "observability_conservation", rested, _end_by_another_cause, False
    ),
    "an end by a cause, of nobody": Canary("observability_conservation", rested, _end_by_no_cause, False),
    "drafts without tokens": Canary("observability_conservation", rested, _draft_more_than_was_drafted, False),
    "more right tokens than were drafted": Canary(
        "observability_conservation", rested, _accept_more_than_was_drafted, False
    ),
}


@pytest.mark.parametrize("plant", CANARIES)
def test_a_canary_in_the_state_is_reported(plant: str) -> None:
    canary = CANARIES[plant]
    driver = canary.make()
    assert driver.loop.checks.check_all(driver.loop) == []
    canary.plant(driver)
    look = driver.loop.checks.check if canary.at_every_step else driver.loop.checks.check_all
    assert canary.property in {broken.property for broken in look(driver.loop)}


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("state", [State.PREFILLING, State.DECODING])
def test_a_row_has_its_shape_where_each_of_its_lengths_is_bounded_by_the_next(
    state: State, in_flight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in ("check_lengths", "check_windows"):  # of memory alone
        monkeypatch.setattr(checks, check, lambda memory: None)
    driver = working()
    if in_flight:
        driver.loop.turn(driver.now)
    table, memory = driver.loop.table, driver.loop.memory
    row = int(driver.loop.queues.running()[0])
    table.state[row], table.num_computed[row] = state, 0
    for protected, committed, length, most in product(range(3), repeat=4):
        table.num_tokens[row] = committed + 1
        if state is State.PREFILLING:
            table.num_tokens[row], table.num_computed[row] = 9, committed
        memory.page_table.length[table.slot[row]], table.max_length[row] = length, most
        memory.page_table.holds[int(table.slot[row])] = SimpleNamespace(num_tokens=protected)  # type: ignore[assignment]
        grows = protected <= length if in_flight else protected <= committed == length
        try:
            RowShape().check_all(driver.loop)
        except MemoryViolation:
            assert not (grows and committed <= length <= most)
        else:
            assert grows
            assert committed <= length <= most


def test_a_loop_that_leaves_a_request_waiting_for_nothing_is_reported() -> None:
    driver = Tolerant()
    driver.submit(PROMPT, 4)
    driver.loop.queues.memory.slots._free.clear()
    assert not driver.loop.in_flight
    driver.loop.turn(1.0)
    assert "work_conserving" in driver.names


def test_a_prompt_that_has_begun_and_is_held_back_for_no_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Tolerant(pacing="lockstep")
    for _ in range(2):
        driver.submit(PROMPT, 30)
        driver.step()
    driver.submit(PROMPT[::-1] * 4, 1)
    driver.step()
    assert driver.loop.queues.prefilling
    monkeypatch.setattr(driver.loop.planner, "budget", lambda decoding: 3)
    driver.step()
    assert driver.names == {"work_conserving"}


@pytest.mark.parametrize("age", [0, 1])
def test_whoever_is_at_work_without_promises_to_its_safe_point_is_reported_when_somebody_is_admitted(age: int) -> None:
    driver = working()
    assert driver.loop.checks.check_admitted(driver.loop) == []
    row = driver.loop.queues.oldest_first()[age]
    driver.loop.memory.escrow.forget(int(driver.loop.table.slot[row]))
    found = driver.loop.checks.check_admitted(driver.loop)
    assert {broken.property for broken in found} == {"allocation_is_a_transaction"}


def test_every_property_of_the_state_has_a_canary() -> None:
    planted = {canary.property for canary in CANARIES.values()} | {"work_conserving"}
    assert planted == {each.name for each in STATE_PROPERTIES}


def test_what_is_broken_is_reported_after_the_step_that_broke_it() -> None:
    driver = working()
    _lose_a_page(driver)
    driver.loop.turn(driver.now)
    driver.loop.executed(driver.ghost.launch(driver.launched.popleft().batch), driver.now)
    assert driver.names == {"conservation"}


KINDS: dict[str, dict[str, object]] = {
    "one pool": {},
    "no cache": {"cache": "none"},
    "two pools": {"window": 8, "num_window_pages": 12},
}


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_run_breaks_a_property_of_the_state(pacing: str, mixed: bool, kind: str) -> None:
    for seed in range(4):
        source = random.Random(seed)
        driver = Tolerant(
            pacing=pacing, mixed=mixed, num_pages=source.choice([8, 12, 20]), max_context=32, lookahead=4, **KINDS[kind]
        )
        driver.ghost.fail_at = {source.randrange(5, 30)}
        for _ in range(10):
            prompt = [source.randrange(2) for _ in range(source.randrange(1, 20))]
            request = driver.submit(prompt, source.randrange(1, 12))
            for _ in range(source.randrange(4)):
                driver.step()
            if source.random() < 0.2:
                driver.loop.requests.abort(request, Cause.CLIENT, driver.now)
        driver.run()
        assert driver.reported == []


def test_an_audit_checks_the_loop_that_decides_again_and_all_of_it_at_the_end() -> None:
    judge, history = OneDecisionLog(), History()
    records = iter(record_run(1))
    _feed(judge, history, records, steps=10)
    assert judge._run is not None
    judge._run.loop.counters.finished += 1
    assert {each.property for each in _feed(judge, history, records, steps=1)} == {"observability_conservation"}
    judge._run.loop.counters.finished -= 1
    assert _feed(judge, history, records) == []
    _free_a_page_twice(judge._run)
    assert {each.property for each in judge.finish(history)} >= {"conservation"}


@pytest.mark.parametrize(
    ("failure", "num_told"),
    [
        (Diverged(9, None, None), 1),
        (MemoryViolation("a page has one owner"), 1),
        (Impossible(9, ValueError("no row")), 1),
        (NotReplayable("an adapter is not recorded"), 0),
    ],
    ids=lambda each: type(each).__name__,
)
def test_after_what_cannot_be_decided_again_nothing_more_is_judged(
    failure: Exception, num_told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, history = OneDecisionLog(), History()
    records = iter(record_run(1))
    _feed(judge, history, records, steps=10)

    def fails(_: Record) -> None:
        raise failure

    monkeypatch.setattr(judge._run, "feed", fails)
    assert len(_feed(judge, history, records, steps=3)) == num_told
    assert judge.finish(history) == ()


def _feed(judge: OneDecisionLog, history: History, records: Iterator[Record], steps: int = -1) -> list[Violation]:
    """Judge records up to so many commits, or to the end; what is found."""
    found: list[Violation] = []
    for record in records:
        history.advance(record)
        found += judge.observe(record, history)
        steps -= isinstance(record, StepCommitted)
        if steps == 0:
            break
    return found


def _statements_in_the_source() -> set[str]:
    """What memory says of itself when it raises."""
    found = set()
    for path in Path(memory.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MemoryViolation":
                statement = node.args[0]
                assert isinstance(statement, ast.Constant), f"{path}: a statement is a constant"
                found.add(str(statement.value))
    return found


def test_every_statement_of_memory_belongs_to_one_property() -> None:
    known = [statement for statements in STATEMENTS.values() for statement in statements]
    assert len(known) == len(set(known))
    assert _statements_in_the_source() <= set(known)


def test_a_violation_is_of_the_property_that_its_statement_belongs_to() -> None:
    for name, statements in STATEMENTS.items():
        assert {name_of(MemoryViolation(statement)) for statement in statements} == {name}
    assert name_of(MemoryError()) == name_of(MemoryViolation("MemoryError")) == "allocation_is_a_transaction"


OF_MEMORY = [
    name
    for name, check in vars(checks).items()
    if name.startswith("check_") and name not in ("check_memory", "check_counters")
]


@pytest.mark.parametrize("name", OF_MEMORY)
def test_whatever_memory_can_find_wrong_with_itself_is_asked_for_a_loop(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finds(memory: object) -> None:
        raise MemoryViolation(name)

    driver = working()
    assert driver.loop.checks.check_all(driver.loop) == []
    monkeypatch.setattr(checks, name, finds)
    looks = driver.loop.checks.check, driver.loop.checks.check_all
    assert any(name in str(broken) for look in looks for broken in look(driver.loop))
