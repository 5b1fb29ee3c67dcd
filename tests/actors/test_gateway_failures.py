"""What fails at the gateway costs what it was for, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.control import Ask
from pawl.actors.control.memory import NOT_WAITING, SLEEP_BY_VLLM, SleepByVllm
from pawl.actors.control.serving import PAUSE_BY_VLLM, PauseByVllm
from pawl.actors.control.state import GetState
from pawl.actors.gateway import Gateway
from pawl.actors.measures import Operation
from pawl.actors.messages.control import Reply, Stalled
from pawl.actors.messages.generate import Accepted, Output, Outputs, Refused
from pawl.actors.names import NAMES
from pawl.actors.open_requests import Entry, OpenRequests
from pawl.actors.recorder import Records
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.manual import ManualContext, Sent
from pawl.actors.sink import Inbox
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.records import Answered
from pawl.lifecycle.states import Cause
from pawl.loops.orders.memory import ReleaseMemory
from pawl.loops.orders.requests import Abort
from pawl.loops.orders.serving import Pause
from pawl.loops.recovery import FAILED
from tests.actors.test_gateway import World, done, submit


@pytest.fixture
def world() -> World:
    return World()


def test_who_fails_at_an_end_leaves_the_records_of_ends_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(8, traced=True)
    context = ManualContext(gateway, "gateway")
    requests = gateway.submit([submit("a"), submit("b")], [Inbox(), Inbox()])

    def fails(*_: Any) -> None:
        monkeypatch.undo()
        context.time_s += 1.0
        raise KeyError("it fails")

    monkeypatch.setattr(gateway.requests, "_measure", fails)
    gateway.receive(Outputs(tuple(Output(request, "x", (7,), done=done()) for request in requests)))
    gateway.settled()
    told = [sent.message for sent in context.take_sent() if isinstance(sent.message, Records)]
    answered = [record for message in told for record in message.records if isinstance(record, Answered)]
    assert [record.request for record in answered] == list(requests)
    assert [record.time for record in answered] == sorted(record.time for record in answered)


def test_a_question_that_cannot_be_put_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> bool:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(world.context, "send", fails)
        with pytest.raises(MemoryError):
            world.gateway.ask(GetState(), world.answers.append, 5.0)
    world.context.advance(10.0)
    assert world.answers == [], "who asked was told by the failure"


def test_who_fails_at_an_answer_is_told_that_it_failed(world: World) -> None:
    def answer(reply: Reply) -> None:
        world.answers.append(reply)
        if reply.ok:
            raise KeyError("it fails")

    ticket = world.gateway.ask(GetState(), answer, 5.0)
    world.gateway.receive(Reply(ticket, True))
    assert [reply.ok for reply in world.answers] == [True, False]


def test_news_that_fail_half_way_are_heard_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(world.gateway.asks, "answer", fails)
    ticket = world.gateway.ask(GetState(), world.answers.append, 5.0)
    world.context.deliver(Reply(ticket, True))
    assert [reply.ok for reply in world.answers] == [True]


def test_who_watches_an_end_hears_of_it_though_the_first_time_failed(world: World) -> None:
    heard: list[str] = []

    def hears() -> None:
        heard.append("told")
        if len(heard) == 1:
            raise MemoryError

    (request,), _ = world.open(submit("a"))
    assert world.gateway.when_ended(request, hears)
    world.output(request, end=done())
    assert heard == ["told", "told"]
    world.gateway.check()


def test_who_was_told_of_a_failure_has_ended_with_it_whatever_the_scheduler_says_of_the_end(world: World) -> None:
    (first, second), (inbox, other) = world.open(submit("a"), submit("b"))
    world.gateway.requests.tell_failure(first)
    world.gateway.requests.tell_failure(second + 1)  # whom nobody knows
    assert inbox.refusal is not None
    assert (inbox.refusal.cause, other.refusal) == (Cause.INTERNAL, None)
    for request in (first, second):
        world.output(request, end=done())
    assert world.gateway.requests.totals.ended == {Cause.INTERNAL: 1, Cause.LENGTH: 1}
    assert other.take().done is not None
    world.gateway.check()


@pytest.mark.parametrize(
    ("row", "body"), [(SLEEP_BY_VLLM, SleepByVllm(mode="wait")), (PAUSE_BY_VLLM, PauseByVllm("wait"))]
)
def test_who_would_wait_for_requests_is_refused_and_nobody_is_asked(row: Any, body: Any, world: World) -> None:
    row.put(world.gateway, body, world.answers.append)
    assert [(reply.ok, reply.message) for reply in world.answers] == [(False, NOT_WAITING)]
    assert (world.sent(Ask), world.gateway.paused) == ([], False)


@pytest.mark.parametrize("was_paused", [False, True])
@pytest.mark.parametrize("works", [False, True])
def test_a_sleep_goes_on_where_it_has_paused_whatever_came_of_it(works: bool, was_paused: bool, world: World) -> None:
    def answers(ok: bool, **body: Any) -> Any:
        (ask,) = world.sent(Ask)
        world.gateway.receive(Reply(ask.ticket, ok, "words", body))
        return type(ask.message).__name__

    world.gateway.paused = was_paused
    SLEEP_BY_VLLM.put(world.gateway, SleepByVllm(mode="keep"), world.answers.append)
    told = [answers(True, moving=False, updating=False, released=[]), answers(works)]
    told += [answers(True)] if works else []
    assert bool(world.answers) == was_paused
    told += [] if was_paused else [answers(True)]
    assert told == ["IsSleeping", "Pause", *["ReleaseMemory"] * works, *["Continue"] * (not was_paused)]
    assert [reply.ok for reply in world.answers] == [works]


ERROR = MemoryError()


def test_a_message_that_has_failed_is_gone_on_with_or_costs_its_request_alone(world: World) -> None:
    (first, second, third), (one, two, three) = world.open(submit("a"), submit("b"), submit("c"))
    context, gateway = world.context, world.gateway
    context.take_sent()
    assert gateway.spares(None, ERROR)
    assert gateway.spares(Outputs((Output(first, "x", (7,)),)), ERROR)
    assert (one.take().text, one.refusal) == ("x", None)
    assert gateway.spares(Refused(second, Cause.OVERLOADED, "full", 503), ERROR)
    assert two.refusal is not None
    assert (two.refusal.request, two.refusal.cause, two.refusal.message) == (second, Cause.INTERNAL, FAILED)
    assert gateway.live() == (first, third)
    assert gateway.spares(Accepted(third, 4), ERROR)
    assert three.refusal is not None
    assert gateway.live() == (first, third), "it ends when its scheduler has ended it"
    aborts = [Sent(NAMES.scheduler, Abort((request,), Cause.INTERNAL), Lane.CONTROL) for request in (second, third)]
    assert context.take_sent() in (aborts, aborts[1:])
    stalled = Stalled(3.0)
    assert gateway.spares(stalled, ERROR)
    assert gateway.pace is stalled
    assert not gateway.spares(submit("d"), ERROR)
    assert gateway.contained is ERROR
    gateway.check()


def test_what_was_opened_half_way_is_taken_back_and_others_of_its_name_stay() -> None:
    requests, names = OpenRequests(), ("a", "group")
    for request, own in ((1, names), (2, ("b", "group"))):
        requests.open(request, own, Inbox(), 0.0)
    requests.withdraw(1, names)
    requests.check()
    assert (requests.totals.submitted, requests.named("a"), requests.named("group")) == (1, (), (2,))
    requests._entries[3] = Entry(3, ("c",), Inbox(), 0.0, Operation.CHAT)  # nobody has counted it, nor knows its name
    requests.withdraw(3, ("c",))
    requests.withdraw(4, ("d",))
    requests.check()
    assert (requests.totals.submitted, requests.all(), requests.named("c")) == (1, (2,), ())
    assert requests.why_not(1, ["b"], 2) == Refused(
        0, Cause.INVALID, "Duplicate request ID: 'b' is still running; choose another rid or leave it out", 400, "rid"
    )
    assert requests.why_not(1, ["c"], 2) is None
    full = requests.why_not(2, ["c"], 2)
    assert full == Refused(0, Cause.OVERLOADED, "1 requests are open and 2 are allowed; try again later", 503)


@pytest.mark.parametrize(
    ("ok", "body", "asks"),
    [
        (False, {}, []),
        (True, {"moving": True, "updating": False, "released": []}, [ReleaseMemory()]),
        (True, {"moving": False, "updating": True, "released": []}, [ReleaseMemory()]),
        (True, {"moving": False, "updating": False, "released": [*MemoryTag]}, [ReleaseMemory()]),
        (True, {"moving": False, "updating": False, "released": [*MemoryTag][1:]}, [Pause(False)]),
    ],
)
def test_nobody_is_paused_for_a_sleep_that_would_be_refused(ok: bool, body: Any, asks: list[Any], world: World) -> None:
    SLEEP_BY_VLLM.put(world.gateway, SleepByVllm(mode="abort"), world.answers.append)
    (ask,) = world.sent(Ask)
    world.gateway.receive(Reply(ask.ticket, ok, "words", body))
    assert [each.message for each in world.sent(Ask)] == asks
    assert [reply.message for reply in world.answers] == ([] if ok else ["words"])
    assert world.gateway.paused == (asks == [Pause(False)])
