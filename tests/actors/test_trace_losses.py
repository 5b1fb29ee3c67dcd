"""What the gateway knows of records that the trace has lost, and what follows from it."""

from __future__ import annotations

import pytest

from pawl.actors.gateway import Gateway
from pawl.actors.known_replicas import MOST_REASONS
from pawl.actors.messages.control import TraceLoss
from pawl.actors.messages.generate import Submit
from pawl.actors.messages.replicas import NotReplaced, Parted, ReplicaJoined, ReplicaLeft, ReplicaLost
from pawl.actors.names import FRONT, ROUTER
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.sink import Inbox
from pawl.actors.trace_losses import MOST_GIVEN_UP, TraceLosses
from pawl.lifecycle.request import SamplingParameters


def gateway(*, required: bool = False) -> tuple[Gateway, ManualContext]:
    actor = Gateway(traced=True, trace_required=required)
    return actor, ManualContext(actor, "gateway")


def test_the_gateway_says_what_is_lost_by_whom_it_knows_of() -> None:
    actor, _ = gateway()
    assert actor.trace_losses.status == "ok"
    actor.receive(TraceLoss("recorder", "the disk is full", 7))
    actor.receive(TraceLoss("scheduler", "the recorder takes no more records", 5))
    expected = "the disk is full; the recorder takes no more records (12 records lost)"
    assert actor.trace_losses.status == expected
    actor.receive(TraceLoss("recorder", "", 7))
    actor.receive(TraceLoss("scheduler", "", 5))
    assert actor.trace_losses.status == "written again (12 records lost)"
    assert Gateway().trace_losses.status == "off"


@pytest.mark.parametrize("loss", [TraceLoss("recorder", "the disk is full", 1), Down("recorder", "it failed")])
def test_where_the_trace_is_required_no_request_is_taken_while_it_is_not_written(loss: TraceLoss | Down) -> None:
    for required, status in ((False, None), (True, 503)):
        actor, context = gateway(required=required)
        actor.receive(loss)
        inbox = Inbox()
        actor.submit([Submit(request=0, rid="", text="a", sampling=SamplingParameters())], [inbox])
        delta = inbox.take()
        assert (delta and delta.refusal and delta.refusal.status) == status
        assert bool(context.take("tokenizer")) is not required


def test_the_recorder_of_each_replica_is_missed_and_that_of_a_lost_one_is_not() -> None:
    actor = Gateway(traced=True, names=FRONT)
    ManualContext(actor, "gateway")
    for number in range(2):
        actor.receive(ReplicaJoined(f"recorder.{number}"))
    actor.receive(Down("recorder.1", "it failed"))
    assert actor.trace_losses.status == "the recorder is gone: it failed (0 records lost)"
    actor.receive(ReplicaLost("recorder.1", ("recorder.1", "scheduler.1"), "scheduler.1", "killed"))
    assert actor.trace_losses.status == "ok"
    actor.receive(Down("recorder.1", "lost: killed"))
    assert actor.trace_losses.status == "ok"


@pytest.mark.parametrize("loss", [TraceLoss("scheduler.1", "the disk is full", 3), Down("recorder.1", "killed")])
def test_what_a_replica_loses_that_leaves_is_no_trouble_once_it_has_left(loss: TraceLoss | Down) -> None:
    actor = Gateway(traced=True, trace_required=True, names=FRONT)
    context = ManualContext(actor, "gateway")
    for number in range(2):
        actor.receive(ReplicaJoined(f"recorder.{number}"))
    actor.receive(ReplicaLeft(1, "recorder.1", ("recorder.1", "scheduler.1"), whole=True))
    actor.receive(loss)
    assert actor.trace_losses.refusal
    actor.settled()
    assert context.take(ROUTER) == [Parted(1)]
    assert (actor.trace_losses.status, actor.trace_losses.refusal) == ("ok", "")
    actor.receive(loss)
    assert actor.trace_losses.refusal == ""


def test_replies_to_requests_of_a_replica_are_told_to_its_recorder() -> None:
    actor = Gateway(traced=True, names=FRONT)
    context = ManualContext(actor, "gateway")
    actor.receive(ReplicaJoined("recorder.3"))
    actor.stopped("test")
    assert [sent.to for sent in context.take_sent() if sent.to.startswith("recorder")] == ["recorder.3"]


def test_of_replicas_that_come_and_leave_for_ever_the_last_are_remembered() -> None:
    losses = TraceLosses(traced=True, required=False)
    for number in range(MOST_GIVEN_UP):
        losses.give_up([f"recorder.{number}", f"scheduler.{number}"])
    losses.learn(TraceLoss(f"recorder.{MOST_GIVEN_UP - 1}", "the disk is full", 1))
    assert losses.status == "ok"
    assert len(losses._given_up) == MOST_GIVEN_UP


def test_a_trace_that_is_written_again_takes_requests_again() -> None:
    actor, context = gateway(required=True)
    actor.receive(TraceLoss("recorder", "the disk is full", 1))
    actor.receive(TraceLoss("recorder", "", 1))
    actor.submit([Submit(request=0, rid="", text="a", sampling=SamplingParameters())], [Inbox()])
    assert len(context.take("tokenizer")) == 1


def test_of_replicas_that_were_not_replaced_the_last_reasons_are_told() -> None:
    actor = Gateway(names=FRONT)
    ManualContext(actor, "gateway")
    for number in range(MOST_REASONS + 2):
        actor.receive(NotReplaced(f"reason {number}"))
    assert list(actor.replicas.not_replaced) == [f"reason {number}" for number in range(2, MOST_REASONS + 2)]
