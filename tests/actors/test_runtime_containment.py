"""An exception for the sake of one request ends that request, with cause `internal`, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.actors.control import Ask
from pawl.actors.control.state import GetState
from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import (
    Accepted,
    Done,
    Output,
    Outputs,
    Refused,
    StepTokens,
    Submit,
    Timing,
    Usage,
)
from pawl.actors.runtime.actor import MOST_IN_A_ROW, Actor, Down, Lane
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.sink import Inbox
from pawl.actors.text.stream import Stream
from pawl.actors.tokenizer import Tokenizer
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort
from tests.actors.test_detokenizer import Bench as DetokenizerBench
from tests.actors.test_detokenizer import ended
from tests.actors.test_scheduler import Bench as SchedulerBench
from tests.actors.vocabularies import byte_level

SECRET = "the client's own words"


class Broken(RuntimeError):
    """What a test makes happen."""


class BrokenInbox(Inbox):
    """A client whose side cannot take outputs."""

    def push(self, output: Output) -> None:
        raise Broken(SECRET)


def done(cause: Cause) -> Done:
    return Done(cause, Usage(1, 1, 0), Timing(0.0))


def test_a_client_that_cannot_be_told_costs_its_own_request_alone() -> None:
    gateway = Gateway()
    context = ManualContext(gateway, "gateway")
    inboxes = [BrokenInbox(), Inbox()]
    submits = [Submit(request=0, rid="", text="x") for _ in inboxes]
    one, two = gateway.submit(submits, inboxes)
    context.take_sent()
    gateway.receive(Outputs((Output(one, "a", (1,)), Output(two, "b", (2,)))))
    refusal = inboxes[0].refusal
    assert refusal is not None
    assert (refusal.cause, refusal.status) == (Cause.INTERNAL, 500)
    delta = inboxes[1].take()
    assert delta is not None
    assert delta.text == "b"
    assert [sent.message for sent in context.take_sent()] == [Abort((one,), Cause.INTERNAL, "")]
    assert gateway.num_contained == 1
    # The scheduler's own end closes the books, and is nobody's violation.
    gateway.receive(Outputs((Output(one, "", (), done=done(Cause.INTERNAL)),)))
    assert gateway.live() == (two,)
    assert gateway.totals.violations.total() == 0
    gateway.check()


@pytest.mark.parametrize("how", ["its own end", "a lost peer", "a stop"])
def test_a_client_that_cannot_be_told_its_end_is_told_of_a_failure_and_the_others_get_theirs(how: str) -> None:
    gateway = Gateway()
    ManualContext(gateway, "gateway")
    inboxes = [BrokenInbox(), Inbox()]
    numbers = gateway.submit([Submit(request=0, rid="", text="x") for _ in inboxes], inboxes)
    match how:
        case "its own end":
            gateway.receive(Outputs(tuple(Output(one, "", (), done=done(Cause.LENGTH)) for one in numbers)))
        case "a lost peer":
            gateway.receive(Down("scheduler", "it broke"))
        case _:
            gateway.stopped("test")
    assert gateway.num_live == 0
    assert inboxes[0].refusal is not None
    assert inboxes[0].refusal.cause is Cause.INTERNAL
    assert inboxes[1].done is not None
    gateway.check()


@pytest.mark.parametrize("closing", [False, True])
def test_a_failure_for_a_request_that_is_off_the_books_is_nobody_elses(closing: bool) -> None:
    gateway = Gateway()
    ManualContext(gateway, "gateway")
    inbox = Inbox()
    (one,) = gateway.submit([Submit(request=0, rid="", text="x")], [inbox])
    requests = gateway.requests
    requests._closing = requests._entries[one] if closing else None
    requests.tell_failure(one + 1)
    requests.give_up(one + 1, 0.0)
    assert gateway.live() == (one,)
    assert inbox.take() is None
    requests._closing = None
    requests.give_up(one, 0.0)
    assert gateway.live() == ()


def test_whoever_asks_and_cannot_take_the_answer_is_the_only_one_who_misses_it() -> None:
    gateway = Gateway()
    context = ManualContext(gateway, "gateway")
    answers: list[Reply] = []

    def broken(reply: Reply) -> None:
        raise Broken(SECRET)

    first = gateway.ask(GetState(), broken, 1.0)
    second = gateway.ask(GetState(), answers.append, 1.0)
    gateway.ask(GetState(), broken, 2.0)
    for ticket in (first, second):
        gateway.receive(Reply(ticket, True))
    context.advance(3.0)
    assert [reply.ticket for reply in answers] == [second]
    assert gateway.num_contained == 2


def test_a_question_that_cannot_be_answered_is_answered_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = SchedulerBench()
    ask = Ask(7, GetState(), "gateway")

    def broken(*_: Any) -> Any:
        raise Broken(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr("pawl.actors.scheduler.row_of", broken)
        with pytest.raises(Broken) as raised:
            bench.scheduler.receive(ask)
    assert bench.scheduler.spares(ask, raised.value)
    [reply] = bench.context.take("gateway")
    assert (reply.ticket, reply.ok, SECRET in reply.message) == (7, False, False)
    bench.tell(bench.submit(1, [1, 2, 3]))
    bench.rest()
    assert bench.ended[1].cause == Cause.LENGTH


class BrokenVocabulary:
    """Encodes nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(byte_level(), name)

    def encode(self, text: str, add_special: bool) -> Any:
        raise Broken(text)


def test_a_prompt_that_breaks_the_tokenizer_is_refused_with_500() -> None:
    system = LocalSystem()
    answers: list[Any] = []

    class Listener(Actor):
        accepts = Refused | Accepted

        def receive(self, message: Any) -> None:
            answers.append(message)

    vocabulary: Any = BrokenVocabulary()
    system.spawn(Tokenizer(vocabulary, 100), "tokenizer")
    system.spawn(Listener(), "gateway")
    system.start()
    for request in (1, 2):
        system.send("tokenizer", Submit(request=request, rid="r", text=SECRET))
    system.stop(("tokenizer", "gateway"))
    assert [(answer.request, answer.cause, answer.status) for answer in answers] == [
        (1, Cause.INTERNAL, 500),
        (2, Cause.INTERNAL, 500),
    ]
    assert all(SECRET not in answer.message for answer in answers)


@pytest.mark.parametrize("where", ["open", "token", "end"])
def test_text_that_cannot_be_made_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    bench = DetokenizerBench()
    [hello] = bench.ids("hello")
    bench.open(0, 10, stop=("zz",))
    if where != "open":
        bench.open(1, 11, stop=("zz",))

    def broken(*_: Any) -> Any:
        raise Broken(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, {"open": "__init__", "token": "push", "end": "flush"}[where], broken)
        if where == "open":
            with pytest.raises(Broken):
                bench.open(1, 11)
            bench.actor.contain(11, Broken())
        elif where == "token":
            assert bench.step([(1, hello)]) == []
        else:
            [last] = bench.step(ended=[ended(1, 11)])
            assert last.done is not None
            assert last.done.cause is Cause.INTERNAL
    assert bench.finishes() == [Abort((11,), Cause.INTERNAL, "the server failed to make text of this request's tokens")]
    outputs = bench.step([(0, hello), (1, hello)])
    assert [(output.request, output.text) for output in outputs] == [(10, "hello")]
    if where != "end":
        [last] = bench.step(ended=[ended(1, 11, Cause.INTERNAL)])
        assert (last.request, last.done is not None) == (11, True)
    if where != "open":
        assert bench.actor._unreadable == set(), "nobody is remembered who has ended"


def test_a_step_whose_text_cannot_be_made_as_a_whole_ends_all_it_names_and_no_others() -> None:
    bench = DetokenizerBench()
    [hello] = bench.ids("hello")
    for row in range(5):
        bench.open(row, 10 + row)
    scores: Any = SECRET  # nobody's in particular
    ends, rows, tokens = (ended(1, 11), ended(4, 14)), np.array([0, 3], np.int32), np.array([hello] * 2, np.int32)
    assert bench.actor.spares(StepTokens(rows, tokens, ended=ends, logprobs=scores), Broken(SECRET))
    [outputs] = bench.context.take("gateway")
    assert [(output.request, output.done.cause) for output in outputs.outputs] == [
        (11, Cause.INTERNAL),
        (14, Cause.INTERNAL),
    ]
    assert [message.requests for message in bench.finishes()] == [(10,), (13,)]
    assert bench.actor.num_open == 1
    assert [output.request for output in bench.step([(2, hello)])] == [12]


def test_a_call_that_fails_half_way_leaves_nothing_open_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    context = ManualContext(gateway, "gateway")
    send = context.send

    def broken(to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        if isinstance(message, Submit) and message.request == 2:
            raise Broken(SECRET)
        return send(to, message, lane)

    monkeypatch.setattr(context, "send", broken)
    with pytest.raises(Broken):
        gateway.submit([Submit(request=0, rid="", text="x") for _ in range(3)], [Inbox() for _ in range(3)])
    assert gateway.live() == (1,), "this one is on its way, and ends"
    assert gateway.num_contained == 1
    assert [sent.message for sent in context.take_sent()][-1] == Abort((1,), Cause.DISCONNECT, "")
    gateway.receive(Outputs((Output(1, "", (), done=done(Cause.DISCONNECT)),)))
    assert gateway.num_live == 0
    assert gateway.totals.violations.total() == 0
    gateway.check()


def test_a_request_that_cannot_be_put_into_the_table_ends_alone() -> None:
    bench = SchedulerBench()
    bench.tell(bench.submit(1, [1, 2, 3]))
    bad = bench.submit(2, [1, 2, 3], priority=1 << 80)
    with pytest.raises(OverflowError) as raised:
        bench.scheduler.receive(bad)
    assert tuple(bench.scheduler.requests_of(bad)) == (2,)
    bench.scheduler.contain(2, raised.value)
    [refused] = bench.context.take("gateway")
    assert (refused.request, refused.cause, refused.status) == (2, Cause.INTERNAL, 500)
    bench.tell(bench.submit(3, [4, 5, 6]))
    bench.rest()
    assert {request: end.cause for request, end in bench.ended.items()} == {1: Cause.LENGTH, 3: Cause.LENGTH}
    bench.scheduler.loop.check_all()


def test_a_failure_that_is_nobodys_still_stops_the_actor() -> None:
    failures: list[str] = []

    class Fragile(Actor):
        accepts = int

        def receive(self, message: int) -> None:
            raise Broken

        def requests_of(self, message: int) -> tuple[int, ...]:
            return (message,) if message else ()

        def end_request(self, request: int) -> None:
            failures.append(f"ended {request}")

    system = LocalSystem(on_failure=lambda name, error: failures.append(f"{name}: {type(error).__name__}"))
    system.spawn(Fragile(), "fragile")
    system.start()
    for message in (1, 2, 0):
        system.send("fragile", message, Lane.DATA)
    system.stop()
    assert failures == ["ended 1", "ended 2", "fragile: Broken"]


def test_a_handler_that_ends_its_thread_is_spared_by_nobody() -> None:
    """Whoever raises SystemExit is not to go on, whatever the actor thinks of failures."""
    failures: list[str] = []

    class Lenient(Actor):
        accepts = int

        def receive(self, message: int) -> None:
            raise SystemExit(message)

        def spares(self, message: int, error: BaseException) -> bool:
            failures.append("asked")
            return True

    system = LocalSystem(on_failure=lambda name, error: failures.append(f"{name}: {type(error).__name__}"))
    system.spawn(Lenient(), "lenient")
    system.start()
    system.send("lenient", 1)
    system.stop()
    assert failures == ["lenient: SystemExit"]


def test_the_log_names_place_and_request_and_quotes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer(byte_level(), 100)
    ManualContext(tokenizer, "tokenizer")
    try:
        raise Broken(SECRET)
    except Broken as error:
        tokenizer.contain(77, error)
    logged = "".join(capsys.readouterr())
    assert "77" in logged
    assert "Broken" in logged
    assert "test_runtime_containment.py" in logged
    assert SECRET not in logged


def test_any_64_bit_priority_is_a_priority() -> None:
    bench = SchedulerBench(policy="priority", max_running=1)
    bench.tell(*(bench.submit(n, [n], priority=p) for n, p in enumerate((0, -(1 << 63), (1 << 63) - 1), 1)))
    bench.rest()
    assert list(bench.ended) == [3, 1, 2]
    assert bench.scheduler.loop.table.priority.dtype == np.int64


def test_an_actor_survives_so_many_failures_that_are_nobodys_and_as_many_again_once_it_has_got_on() -> None:
    actor = Actor()
    for _ in range(2):
        survived = [actor.survives() for _ in range(MOST_IN_A_ROW + 1)]
        assert survived == [True] * MOST_IN_A_ROW + [False]
        actor.progressed()


def test_an_abort_that_fails_half_way_is_carried_out() -> None:
    bench = SchedulerBench()
    assert bench.scheduler.spares(Abort((1,)), Broken(SECRET))
    bench.tell(bench.submit(1, [1, 2, 3]), bench.submit(2, [1, 2, 3]))
    bench.rest()
    assert {request: end.cause for request, end in bench.ended.items()} == {1: Cause.CLIENT, 2: Cause.LENGTH}


def test_who_waits_for_an_end_that_could_not_be_told_hears_of_it_once() -> None:
    gateway = Gateway()
    ManualContext(gateway, "gateway")
    (request,) = gateway.submit([Submit(request=0, rid="", text="x")], [BrokenInbox()])
    heard: list[int] = []
    assert gateway.when_ended(request, lambda: heard.append(request))
    gateway.receive(Outputs((Output(request, "x", (7,), done=done(Cause.LENGTH)),)))
    assert (heard, gateway.live()) == ([request], ())
