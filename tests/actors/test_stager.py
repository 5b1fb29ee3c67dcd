"""The stager and the worker in an update of the weights: each message has one answer, and a failure leaves the old
ones."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.control import Ask
from pawl.actors.expert_moves import BALANCED, NOT_SHARED, laid_out, switched
from pawl.actors.messages.adapters import EmptyAdapterSlot, ReadAdapter
from pawl.actors.messages.execution import AwaitRunner, ResetWorker, RunnerBack
from pawl.actors.messages.weights import UNEXCHANGED, UNREAD, Stage, Swap
from pawl.actors.names import NAMES
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.stager import Stager
from pawl.actors.weight_questions import CheckWeights, GetWeights
from pawl.actors.worker import Worker
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.step_runner import PlannedMove, WeightsRefused
from pawl.gpu.trainers.received import Received
from pawl.lifecycle.weight_group import TensorSpec
from pawl.lifecycle.weight_source import FromDisk, FromMemory, FromTrainer, WeightSource
from pawl.loops.intake import Outcome
from pawl.loops.orders.adapters import AdapterLoaded
from pawl.loops.orders.runner import RunnerGone
from pawl.loops.orders.weights import WeightsFailed, WeightsStaged, WeightsSwapped
from pawl.loops.recovery import FAILED_ORDER
from tests.gpu.groups import Faults, drawn, group_of


class Broken(Ghost):
    """A ghost whose weights cannot be touched."""

    def stage(self, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        raise RuntimeError("a defect")

    def swap(self, ticket: int) -> None:
        raise RuntimeError("a defect")


@pytest.fixture
def ghost() -> Ghost:
    return Ghost(num_pages=4, page_size=2, num_slots=2, max_context=8)


def told(actor: Any, name: str, message: Any) -> Any:
    """What the scheduler is told after `message`."""
    context = ManualContext(actor, name)
    context.deliver(message)
    (sent,) = context.take_sent()
    assert sent.to == NAMES.scheduler
    return sent.message


def test_new_weights_are_staged_and_then_exchanged(ghost: Ghost) -> None:
    assert told(Stager(ghost), NAMES.stager, Stage(3, FromDisk("ghost:b"))) == WeightsStaged(3, "ghost:b")
    assert ghost.memory.salts.weights == 0, "it still computes with the old ones"
    assert told(Worker(ghost), NAMES.worker, Swap(3)) == WeightsSwapped(3)
    assert ghost.memory.salts.weights != 0


def test_what_does_not_exist_is_refused_in_one_line(ghost: Ghost) -> None:
    answer = told(Stager(ghost), NAMES.stager, Stage(3, FromDisk("nowhere")))
    assert answer == WeightsFailed(3, "a ghost's weights are called ghost, or ghost:NAME, and not 'nowhere'")


def test_weights_of_a_trainer_that_nobody_has_received_are_refused(ghost: Ghost) -> None:
    answer = told(Stager(ghost), NAMES.stager, Stage(3, FromTrainer()))
    assert answer == WeightsFailed(3, "nothing was received for update 3")


def test_a_defect_is_told_without_its_words() -> None:
    broken = Broken(num_pages=4, page_size=2, num_slots=2, max_context=8)
    answer = told(Stager(broken), NAMES.stager, Stage(3, FromDisk("ghost:b")))
    assert answer == WeightsFailed(3, f"{UNREAD}: RuntimeError")
    assert told(Worker(broken), NAMES.worker, Swap(3)) == WeightsFailed(3, f"{UNEXCHANGED}: a defect")


def test_a_worker_exchanges_nothing_but_what_is_staged_for_that_update(ghost: Ghost) -> None:
    ghost.stage(1, FromDisk("ghost:b"))
    assert told(Worker(ghost), NAMES.worker, Swap(2)) == WeightsFailed(
        2, f"{UNEXCHANGED}: nothing is staged for update 2"
    )
    assert ghost.memory.salts.weights == 0


def test_questions_about_the_weights_are_answered_once_and_a_defect_is_told_to_who_asked(ghost: Ghost) -> None:
    stager = Stager(ghost)
    for name, ok in (("ghost.first", True), ("nothing", False)):
        context = ManualContext(stager, NAMES.stager)
        context.deliver(Ask(7, GetWeights(name=name)))
        (sent,) = context.take_sent()
        assert (sent.to, sent.message.ticket, sent.message.ok) == (NAMES.gateway, 7, ok)
    assert stager.spares(Ask(8, CheckWeights()), RuntimeError("a defect"))
    (sent,) = context.take_sent()
    assert (sent.message.ticket, sent.message.ok, sent.message.message) == (8, False, f"{UNREAD}: RuntimeError")


def test_a_reading_under_which_ranks_are_lost_waits_for_them_and_so_does_what_comes_behind_it() -> None:
    group, faults = _losing_one()
    stager, worker = Stager(group), Worker(group)
    at_stager, at_worker = ManualContext(stager, NAMES.stager), ManualContext(worker, NAMES.worker)
    at_stager.deliver(ReadAdapter(1, 1, "ghost:a"))
    for behind in (EmptyAdapterSlot(1), ReadAdapter(2, 1, "ghost:b")):
        at_stager.deliver(behind)
    (asked,) = at_stager.take_sent()
    assert (asked.to, asked.message) == (NAMES.worker, AwaitRunner())
    at_worker.deliver(asked.message)
    (told,) = at_worker.take_sent()
    assert (told.to, told.message) == (NAMES.scheduler, RunnerGone())
    at_worker.deliver(ResetWorker(1))
    (back,) = at_worker.take_sent()
    assert (back.to, back.message) == (NAMES.stager, RunnerBack())
    at_stager.deliver(back.message)
    assert [sent.message for sent in at_stager.take_sent()] == [
        AdapterLoaded(1, "ghost:a"),
        AdapterLoaded(2, "ghost:b"),
    ]
    other = group_of()
    other.load_adapter(1, "ghost:b")
    assert not faults.wanted
    assert drawn(group, adapter=1) == drawn(other, adapter=1)
    at_worker.deliver(ResetWorker(2))
    assert not [sent for sent in at_worker.take_sent() if sent.to == NAMES.stager], "nobody waits any more"


def test_a_question_that_a_worker_fails_at_is_answered_with_that(ghost: Ghost) -> None:
    worker = Worker(ghost)
    context = ManualContext(worker, NAMES.worker)
    assert worker.spares(Ask(8, CheckWeights()), RuntimeError("a defect"))
    (sent,) = context.take_sent()
    assert (sent.message.ticket, sent.message.ok, sent.message.message) == (8, False, FAILED_ORDER)


def test_ranks_that_were_started_again_meanwhile_are_told_of_at_once() -> None:
    group, _ = _losing_one()
    at_stager = ManualContext(Stager(group), NAMES.stager)
    at_worker = ManualContext(Worker(group), NAMES.worker)
    at_stager.deliver(Stage(3, FromDisk("ghost:b")))
    group.reset()
    at_worker.deliver(at_stager.take_sent()[0].message)
    at_stager.deliver(at_worker.take_sent()[0].message)
    assert [sent.message for sent in at_stager.take_sent()] == [WeightsStaged(3, "ghost:b")]


def test_a_failure_at_one_of_those_that_wait_for_the_ranks_is_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    group, _ = _losing_one()
    stager = Stager(group)
    at_stager = ManualContext(stager, NAMES.stager)
    for ticket in (3, 4, 5):
        at_stager.deliver(Stage(ticket, FromDisk("ghost:b")))
    assert [sent.message for sent in at_stager.take_sent()] == [AwaitRunner()]
    group.reset()
    read, failures = stager._read, [KeyError("at the second")]

    def fails(message: Stage) -> bool:
        if message.ticket == 4 and failures:
            raise failures.pop()
        return read(message)

    monkeypatch.setattr(stager, "_read", fails)
    at_stager.deliver(RunnerBack())
    answers = [sent.message for sent in at_stager.take_sent()]
    assert answers == [
        WeightsStaged(3, "ghost:b"),
        WeightsFailed(4, f"{UNREAD}: KeyError"),
        WeightsStaged(5, "ghost:b"),
    ]


def test_what_failed_is_not_waited_for_and_what_comes_next_is_read(
    ghost: Ghost, monkeypatch: pytest.MonkeyPatch
) -> None:
    stager = Stager(ghost)
    context = ManualContext(stager, NAMES.stager)

    def fails(message: Stage) -> bool:
        monkeypatch.undo()
        raise KeyError("it fails")

    monkeypatch.setattr(stager, "_read", fails)
    for ticket in (4, 5):
        context.deliver(Stage(ticket, FromDisk("ghost:b")))
    answers = [sent.message for sent in context.take_sent()]
    assert answers == [WeightsFailed(4, f"{UNREAD}: KeyError"), WeightsStaged(5, "ghost:b")]


def _losing_one() -> tuple[RankGroup, Faults]:
    """Two ranks, of which one dies at the next chance, and what strikes them."""
    faults = Faults()
    faults.wanted.append("rank 1 dies")
    return group_of(faults), faults


def test_what_a_trainer_sent_is_used_up_by_a_reading_under_which_ranks_are_lost() -> None:
    group, _ = _losing_one()
    sent = FromMemory((TensorSpec("ghost.first", "uint64", (1,)),), (0, 8), memoryview(bytes(8)))
    received = Received()
    received.put(3, sent)
    at_stager = ManualContext(Stager(group, received), NAMES.stager)
    at_stager.deliver(Stage(3, FromTrainer()))
    (told,) = at_stager.take_sent()
    assert isinstance(told.message, WeightsFailed)
    assert (told.to, told.message.ticket) == (NAMES.scheduler, 3)
    assert not at_stager.take_sent(), "nobody waits for the ranks"


def test_experts_that_cannot_be_switched_stay_and_the_reason_is_told() -> None:
    class Switching:
        def due(self) -> bool:
            return True

        def stage(self) -> PlannedMove | None:
            return None

        def switch(self, ticket: int) -> None:
            assert ticket == 7

    class Refusing(Switching):
        def switch(self, ticket: int) -> None:
            raise WeightsRefused(f"nothing is staged for {ticket}")

    class Unwilling(Switching):
        def stage(self) -> PlannedMove | None:
            raise WeightsRefused("an update is under way")

    assert laid_out(None) == Outcome(False, NOT_SHARED)
    assert laid_out(Unwilling()) == Outcome(False, "an update is under way")
    assert laid_out(Switching()) == Outcome(True, BALANCED, {"moved_experts": 0})
    planned = PlannedMove(ticket=7, moved=3, layers=2, before=2.0, after=1.2344)
    assert switched(Refusing(), planned) == Outcome(False, "nothing is staged for 7")
    facts = {"moved_experts": 3, "layers": 2, "imbalance_before": 2.0, "imbalance_after": 1.234}
    assert switched(Switching(), planned) == Outcome(True, "3 experts were moved.", facts)
