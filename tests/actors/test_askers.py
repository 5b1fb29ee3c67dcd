"""Who waits at the scheduler is answered once, whatever fails."""

from __future__ import annotations

import pytest

from pawl.actors.askers import Askers
from pawl.actors.control import Ask
from pawl.actors.messages.control import Reply
from pawl.loops.intake import Outcome
from pawl.loops.orders.cache import FlushCache

FAILED = "it failed"


class Told(Askers):
    """Notes what it sends: ticket, whether it was done, message."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bool, str]] = []
        super().__init__(self._note)

    def _note(self, who: str, reply: Reply) -> None:
        assert who == "gateway"
        self.told.append((reply.ticket, reply.ok, reply.message))


@pytest.fixture
def askers() -> Told:
    return Told()


def ask(ticket: int) -> Ask:
    return Ask(ticket, FlushCache())


def test_a_failure_is_told_to_who_had_no_number_yet_and_to_all_who_are_not_owed_an_answer(askers: Told) -> None:
    owed, overdue = askers.open(ask(1)), askers.open(ask(2))
    askers.failed(ask(3), {owed}, FAILED)
    assert askers.told == [(2, False, FAILED), (3, False, FAILED)]
    assert owed in askers
    assert overdue not in askers


def test_who_asked_and_has_a_number_is_told_once(askers: Told) -> None:
    askers.open(ask(1))
    askers.failed(ask(1), set(), FAILED)
    assert askers.told == [(1, False, FAILED)]


def test_who_waits_for_steps_is_told_behind_them_although_something_fails(askers: Told) -> None:
    askers.answer(askers.open(ask(1)), Outcome(True, "done", after_steps=True), in_flight=4)
    askers.failed(None, set(), FAILED)
    askers.settled(oldest=4)
    assert askers.told == []
    askers.settled(oldest=5)
    assert askers.told == [(1, True, "done")]


def test_who_is_not_answered_before_the_end_is_told_that_nobody_has() -> None:
    told: list[Reply] = []
    askers = Askers(lambda who, reply: told.append(reply))
    first, waiting = askers.open(ask(1)), askers.open(ask(2))
    askers.answer(first, Outcome(False, "refused"), None)
    askers.answer(waiting, Outcome(True, "done", after_steps=True), in_flight=4)
    askers.stopped("it stopped")
    askers.settled(None)
    assert [(reply.ticket, reply.message, reply.unserved) for reply in told] == [
        (1, "refused", False),
        (2, "it stopped", True),
    ]
