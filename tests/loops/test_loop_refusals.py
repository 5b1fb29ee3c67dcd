"""What no loop can be, do or keep is refused, in the words that say what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Contained
from pawl.loops.batch import _ones
from pawl.loops.companion import Companion
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.properties.base import Broken
from pawl.loops.properties.memory import SingleOwner
from pawl.loops.replay import NotReplayable, Replay
from pawl.memory.snapshot import NoSnapshot
from pawl.memory.violation import MemoryViolation
from tests.loops.driver import Driver
from tests.loops.test_replay import record_run


def _two_owners() -> None:
    driver = Driver(pacing="lockstep")
    for _ in range(2):
        driver.submit([1, 2, 3], 9)
    driver.step()
    memory = driver.loop.memory
    pages, (first, second) = memory.page_table.pages, memory.slots.used[:2].tolist()
    memory.pages.refcount[[pages[first, 0], pages[second, 0]]] = 2, 0
    pages[second, 0] = pages[first, 0]
    SingleOwner().check_all(driver.loop)


def _after_a_failure() -> None:
    started, *_ = record_run(0)
    Replay.begin(started).feed(Contained(0, "ValueError", 1.0))


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a checkpoint beside a companion": (lambda: Companion().snapshot(), NoSnapshot, "Companion beside the loop"),
    "tiers that are not there": (lambda: Driver().loop.companion(LowerTiers), LookupError, "no LowerTiers"),
    "a page of two who write it": (_two_owners, MemoryViolation, "a page that is not cached has one owner"),
    "a replay past a failure": (_after_a_failure, NotReplayable, r"record 2: the scheduler failed here, .*ValueError"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_is_refused(what: str) -> None:
    make, error, words = REFUSALS[what]
    with pytest.raises(error, match=words):
        make()


def test_a_trace_that_breaks_off_before_all_that_was_decided_is_told_at_its_end() -> None:
    judge, history, told = OneDecisionLog(), History(), set[str]()
    for record in record_run(0)[:60]:
        history.advance(record)
        assert list(judge.observe(record, history)) == []
        told |= {violation.explanation[:30] for violation in judge.finish(history)}
    assert told == {"nothing more is recorded, deci"}


@pytest.mark.parametrize("look", ["check", "check_admitted", "check_held_back", "check_idle"])
def test_all_that_one_look_finds_is_told(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(pacing="lockstep", max_step_s=1.5, num_pages=40, prefill_chunk=8, lookahead=1)
    driver.token_s = 0.25
    found = [Broken("made_up", statement, "") for statement in ("one", "another")]
    told: list[MemoryViolation] = []
    monkeypatch.setattr(driver, "violated", told.append)
    monkeypatch.setattr(driver.loop.checks, look, lambda loop: found)
    for number in range(4):
        driver.submit([number] * (20 + number), 12)
    driver.run()
    assert told
    assert told == found * (len(told) // 2)


def test_what_steps_of_one_size_share_can_be_written_by_none() -> None:
    for shared in _ones.__wrapped__(3):
        with pytest.raises(ValueError, match="read-only"):
            shared[0] = 0
