"""The gateway keeps one entry a request, gives one terminal reply, and answers every ask once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from pawl.actors.asks import AskExpired
from pawl.actors.control import Ask
from pawl.actors.control.state import GetState
from pawl.actors.gateway import Gateway
from pawl.actors.measures import WINDOW_S, Histogram, Operation, Rate
from pawl.actors.messages.control import Reply, Stalled
from pawl.actors.messages.generate import (
    Accepted,
    Done,
    Output,
    Outputs,
    Refused,
    Submit,
    Timing,
    TokenLogprob,
    Usage,
)
from pawl.actors.messages.replicas import Parted, Placed, ReplicaLeft
from pawl.actors.runtime.actor import Down, Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.sink import Inbox
from pawl.lifecycle.numbers import is_long
from pawl.lifecycle.states import Cause
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort, Drain


def submit(rid: str = "", **fields: Any) -> Submit:
    return Submit(**{"request": 0, "rid": rid, "text": "hello"} | fields)


def done(cause: Cause = Cause.LENGTH, num_output: int = 1) -> Done:
    return Done(cause, Usage(5, num_output, 2), Timing(0.0))


class World:
    """A gateway whose peers are played by the test."""

    def __init__(self, limit: int = 8, short: int | None = None) -> None:
        self.gateway = Gateway(limit, short=short)
        self.context = ManualContext(self.gateway, "gateway")
        self.answers: list[Reply] = []

    def open(self, *submits: Submit) -> tuple[tuple[int, ...], list[Inbox]]:
        inboxes = [Inbox() for _ in submits]
        return self.gateway.submit(submits, inboxes), inboxes

    def output(self, request: int, text: str = "x", end: Done | None = None) -> None:
        self.gateway.receive(Outputs((Output(request, text, (7,), done=end),)))

    def sent(self, kind: type) -> list[Any]:
        return [sent.message for sent in self.context.take_sent() if isinstance(sent.message, kind)]


@pytest.fixture
def world() -> World:
    return World()


# ---- requests ----


def test_numbers_rise_and_names_and_seeds_differ(world: World) -> None:
    first, _ = world.open(submit(), submit())
    second, _ = world.open(submit())
    submits = world.sent(Submit)
    assert [submit.request for submit in submits] == [*first, *second] == [1, 2, 3]
    assert len({submit.rid for submit in submits}) == 3
    seeds = {world.gateway.new_seed() for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_outputs_reach_the_client_of_their_request_alone(world: World) -> None:
    (one, two), (inbox, other) = world.open(submit(), submit())
    world.output(one, "a")
    world.output(one, "b", done())
    delta = inbox.take()
    assert delta is not None
    assert (delta.text, delta.tokens, delta.final) == ("ab", (7, 7), True)
    assert other.take() is None
    assert world.gateway.live() == (two,)


def test_a_request_beyond_the_limit_is_refused_at_once_and_never_sent() -> None:
    world = World(limit=2)
    world.open(submit())
    world.context.take_sent()
    _, inboxes = world.open(submit(), submit())
    for inbox in inboxes:
        assert inbox.refusal is not None
        assert (inbox.refusal.cause, inbox.refusal.status) == (Cause.OVERLOADED, 503)
    assert world.context.take_sent() == []
    assert world.gateway.totals.ended[Cause.OVERLOADED] == 2
    world.gateway.check()


def test_a_full_tokenizer_refuses_with_overloaded(world: World) -> None:
    world.context.full.add("tokenizer")
    _, (inbox,) = world.open(submit())
    assert inbox.refusal is not None
    assert inbox.refusal.cause is Cause.OVERLOADED
    assert world.gateway.num_live == 0


def test_a_long_call_goes_to_a_tokenizer_of_its_own_where_there_is_one() -> None:
    for short, reader in ((None, "tokenizer"), (10, "long_tokenizer")):
        world = World(short=short)
        (short_one,), _ = world.open(submit())
        assert len(world.context.take("tokenizer")) == 1
        long_ones, _ = world.open(submit(), submit(text="hello again"), submit(text="and again"))
        assert [each.request for each in world.context.take(reader)] == list(long_ones)
        assert {is_long(request) for request in long_ones} == {short is not None}
        (after,), _ = world.open(submit())
        assert short_one < min(long_ones) <= max(long_ones) < after
        assert not is_long(after)
        world.gateway.check()


def test_a_live_rid_is_refused_and_may_be_used_again_after_its_end(world: World) -> None:
    (one,), _ = world.open(submit("mine"))
    _, (inbox,) = world.open(submit("mine"))
    assert inbox.refusal is not None
    assert (inbox.refusal.status, inbox.refusal.param) == (400, "rid")
    world.output(one, end=done())
    (again,), (inbox,) = world.open(submit("mine"))
    assert world.gateway.find("mine") == (again,)
    world.output(one, "late")
    assert inbox.take() is None, "a late output of the first must not reach its successor"


def test_an_abort_by_rid_takes_the_whole_group_and_only_the_exact_name(world: World) -> None:
    group, _ = world.open(submit("a"), submit("a"))
    (longer,), _ = world.open(submit("ab"))
    assert world.gateway.find("a") == group
    world.gateway.abort(world.gateway.find("a"), message="enough")
    assert world.sent(Abort) == [Abort(group, Cause.CLIENT, "enough")]
    assert world.gateway.find("nobody") == ()
    assert world.gateway.live() == (*group, longer)


def test_aborts_go_in_the_control_lane_and_only_once(world: World) -> None:
    (one,), _ = world.open(submit())
    world.context.take_sent()
    assert world.gateway.abort([one, 99]) == (one,)
    assert world.gateway.abort([one]) == (one,)
    (sent,) = world.context.take_sent()
    assert sent.lane is Lane.CONTROL


def test_a_gone_client_stays_on_the_books_until_its_request_ends(world: World) -> None:
    (one,), (inbox,) = world.open(submit())
    heard: list[int] = []
    world.gateway.when_ended(one, lambda: heard.append(one))
    world.gateway.abort([one], Cause.DISCONNECT)
    world.output(one, "unread")
    assert (world.gateway.num_live, heard) == (1, [])
    world.output(one, "", done(Cause.DISCONNECT))
    assert inbox.take() is None
    assert heard == [one]
    assert world.gateway.num_live == 0
    assert world.gateway.totals.ended == {Cause.DISCONNECT: 1}


def test_clients_that_are_gone_together_read_nothing_any_more(world: World) -> None:
    requests, inboxes = world.open(submit(), submit(), submit())
    world.gateway.abort(requests, Cause.DISCONNECT)
    for request in requests:
        world.output(request, "unread")
    assert [inbox.take() for inbox in inboxes] == [None] * 3


@pytest.mark.parametrize("late", ["output", "accepted", "refused", "second end"])
def test_anything_after_the_end_is_counted_and_dropped(world: World, late: str) -> None:
    (one,), (inbox,) = world.open(submit())
    world.output(one, end=done())
    inbox.take()
    message = {
        "output": Outputs((Output(one, "x", (1,)),)),
        "accepted": Accepted(one, 1),
        "refused": Refused(one, Cause.INVALID, "no"),
        "second end": Outputs((Output(one, "", (), done=done()),)),
    }[late]
    world.gateway.receive(message)
    assert inbox.take() is None
    assert world.gateway.totals.violations.total() == 1
    world.gateway.check()


def test_an_output_for_a_number_never_given_is_told_apart(world: World) -> None:
    world.output(77)
    assert world.gateway.totals.violations == {"incarnation": 1}


def test_who_watches_an_end_hears_of_it_once(world: World) -> None:
    (one, two), _ = world.open(submit(), submit())
    heard: list[int] = []
    assert world.gateway.when_ended(one, lambda: heard.append(one))
    assert world.gateway.when_ended(two, lambda: heard.append(two))
    world.output(one, end=done())
    world.gateway.receive(Refused(two, Cause.INVALID, "no"))
    assert heard == [one, two]
    assert not world.gateway.when_ended(one, lambda: heard.append(0))


def test_stopping_gives_every_open_request_its_end(world: World) -> None:
    _, inboxes = world.open(submit(), submit())
    world.gateway.stopped("test")
    for inbox in inboxes:
        assert inbox.done is not None
        assert inbox.done.cause is Cause.DRAINED
    _, (late,) = world.open(submit())
    assert late.refusal is not None
    assert late.refusal.cause is Cause.DRAINED
    world.gateway.check()


def test_draining_refuses_newcomers_and_tells_the_scheduler_once(world: World) -> None:
    (one,), (inbox,) = world.open(submit())
    world.context.take_sent()
    world.gateway.drain(3.0)
    world.gateway.drain(3.0)
    drains = [sent for sent in world.context.take_sent() if isinstance(sent.message, Drain)]
    assert drains == [("scheduler", Drain(3.0), Lane.CONTROL)], "it does not wait behind requests"
    _, (late,) = world.open(submit())
    assert late.refusal is not None
    world.output(one, end=done())
    assert inbox.done is not None
    assert inbox.done.cause is Cause.LENGTH, "what runs may finish"


@pytest.mark.parametrize("peer", ["tokenizer", "scheduler", "worker", "detokenizer"])
def test_a_lost_vital_peer_ends_everything_open_and_refuses_the_rest(world: World, peer: str) -> None:
    (one,), (inbox,) = world.open(submit())
    world.gateway.ask(GetState(), world.answers.append, 2.0)
    world.gateway.receive(Down(peer, "it broke"))
    assert inbox.done is not None
    assert inbox.done.cause is Cause.INTERNAL
    assert [answer.ok for answer in world.answers] == [False]
    _, (late,) = world.open(submit())
    assert late.refusal is not None
    assert peer in late.refusal.message
    world.output(one, "still on its way")
    assert world.gateway.totals.violations.total() == 0
    assert world.gateway.totals.late_outputs == 1


def test_the_scheduler_hears_of_a_lost_peer_for_requests_that_are_being_ended_too(world: World) -> None:
    (one, two), _ = world.open(submit(), submit())
    world.gateway.abort([one], Cause.DISCONNECT)
    world.context.take_sent()
    world.gateway.receive(Down("worker", "it broke"))
    (told,) = world.sent(Abort)
    assert (told.requests, told.cause) == ((one, two), Cause.INTERNAL)


def test_nobody_tells_a_scheduler_that_is_gone_what_became_of_its_requests(world: World) -> None:
    world.open(submit(), submit())
    world.context.take_sent()
    world.gateway.receive(Down("scheduler", "it broke"))
    assert not [sent for sent in world.context.take_sent() if sent.to == "scheduler"]


def test_a_lost_helper_ends_nothing(world: World) -> None:
    world.open(submit())
    world.gateway.receive(Down("watchdog", "it broke"))
    assert world.gateway.num_live == 1
    assert world.gateway.lost is None


# ---- asks ----


def test_an_ask_is_answered_with_its_own_reply(world: World) -> None:
    first = world.gateway.ask(GetState(detail=True), world.answers.append, 2.0)
    second = world.gateway.ask(FlushCache(2.0), world.answers.append, 7.0)
    assert world.sent(object) == [Ask(first, GetState(True)), Ask(second, FlushCache(2.0))]
    world.gateway.receive(Reply(second, True, "flushed"))
    world.gateway.receive(Reply(first, True, body={"running": 1}))
    assert [(answer.ticket, answer.message) for answer in world.answers] == [(second, "flushed"), (first, "")]
    assert not any(isinstance(timer.message, AskExpired) and timer.claim() for timer in world.context.timers)
    world.context.advance(60.0)
    assert len(world.answers) == 2


def test_an_ask_without_a_reply_is_answered_by_its_timeout_and_the_late_reply_dropped(world: World) -> None:
    ticket = world.gateway.ask(GetState(), world.answers.append, 2.0)
    world.context.advance(1.9)
    assert world.answers == []
    world.context.advance(0.2)
    assert [(answer.ok, answer.ticket) for answer in world.answers] == [(False, ticket)]
    world.gateway.receive(Reply(ticket, True))
    assert len(world.answers) == 1
    assert world.gateway.asks.num_late == 1


def test_an_ask_to_nobody_is_answered_at_once(world: World) -> None:
    world.context.gone.add("scheduler")
    world.gateway.ask(GetState(), world.answers.append, 2.0)
    assert [answer.ok for answer in world.answers] == [False]


def test_stopping_answers_every_pending_ask(world: World) -> None:
    world.gateway.ask(GetState(), world.answers.append, 2.0)
    world.gateway.ask(FlushCache(100.0), world.answers.append, 105.0)
    world.gateway.stopped("test")
    assert [answer.ok for answer in world.answers] == [False, False]


def test_a_stall_is_kept_until_the_loop_moves_again(world: World) -> None:
    world.gateway.receive(Stalled(12.5))
    assert world.gateway.pace.seconds == 12.5
    world.gateway.receive(Stalled(0.0))
    assert world.gateway.pace.seconds == 0.0


# ---- measures ----


def test_a_single_token_has_no_time_from_one_to_the_next(world: World) -> None:
    (one,), _ = world.open(submit())
    world.output(one, end=done(num_output=1))
    durations = world.gateway.requests.durations[Operation.TEXT_COMPLETION]
    assert (durations.first_token.count, durations.output_token.count) == (1, 0)


def test_times_are_measured_from_the_submission(world: World) -> None:
    (one,), _ = world.open(submit())
    world.context.advance(0.5)
    world.output(one)
    world.context.advance(0.3)
    world.output(one)
    world.output(one, end=done(num_output=3))
    gateway = world.gateway.requests
    durations = gateway.durations[Operation.TEXT_COMPLETION]
    assert durations.first_token.total == pytest.approx(0.5)
    assert durations.request.total == pytest.approx(0.8)
    assert durations.output_token.total == pytest.approx(0.15)
    totals = gateway.totals
    assert (totals.prompt_tokens, totals.cached_tokens, totals.generated_tokens) == (5, 2, 3)


def test_a_value_on_a_bound_counts_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.count == 5
    assert histogram.total == 14.0


def test_a_rate_forgets_what_is_older_than_its_window() -> None:
    rate = Rate()
    for second in range(100):
        rate.add(second + 0.1, 30)
        rate.add(second + 0.9, 10)
    assert rate.per_second(100.0) == 40.0
    assert rate.per_second(100.0 + WINDOW_S / 2) == 20.0
    assert rate.per_second(500.0) == 0.0


# ---- sinks ----


def test_a_slow_reader_finds_one_merged_delta() -> None:
    inbox = Inbox()
    score = TokenLogprob(7, -0.5, "x")
    for number in range(1000):
        inbox.push(Output(1, f"{number},", (number,), (score,), (score,) if number == 0 else ()))
    delta = inbox.take()
    assert delta is not None
    assert delta.text == "".join(f"{number}," for number in range(1000))
    assert delta.tokens == tuple(range(1000))
    assert len(delta.logprobs) == 1000
    assert delta.prompt_logprobs == (score,)
    assert inbox.take() is None


def test_a_reader_of_whole_answers_is_woken_by_the_end_alone() -> None:
    class Counting(Inbox):
        woken = 0

        def ready(self) -> None:
            self.woken += 1

    inbox = Counting(whole=True)
    for _ in range(10):
        inbox.push(Output(1, "x", (1,)))
    assert inbox.woken == 0
    inbox.push(Output(1, "", (), done=done()))
    assert inbox.woken == 1


# ---- any history ----


class Histories(RuleBasedStateMachine):
    """Whatever happens in whatever order, each request ends exactly once and the books balance."""

    opened = Bundle("opened")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(limit=6)
        self.inboxes: dict[int, Inbox] = {}

    @rule(target=opened, rid=st.sampled_from(["", "", "a", "b"]))
    def submit(self, rid: str) -> int:
        (request,), (inbox,) = self.world.open(submit(rid))
        self.inboxes[request] = inbox
        return request

    @rule(request=opened)
    def output(self, request: int) -> None:
        self.world.output(request)

    @rule(request=consumes(opened), cause=st.sampled_from([Cause.LENGTH, Cause.EOS, Cause.TIMEOUT]))
    def end(self, request: int, cause: Cause) -> None:
        self.world.output(request, end=done(cause))

    @rule(request=opened, cause=st.sampled_from([Cause.CLIENT, Cause.DISCONNECT]))
    def abort(self, request: int, cause: Cause) -> None:
        self.world.gateway.abort([request], cause)

    @rule(request=opened)
    def refuse(self, request: int) -> None:
        self.world.gateway.receive(Refused(request, Cause.INVALID, "no"))

    @rule()
    def ask(self) -> None:
        self.world.gateway.ask(GetState(), self.world.answers.append, 2.0)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def wait(self, seconds: float) -> None:
        self.world.context.advance(seconds)

    @invariant()
    def books_balance(self) -> None:
        self.world.gateway.check()
        tickets = [answer.ticket for answer in self.world.answers]
        assert len(tickets) == len(set(tickets))
        live = set(self.world.gateway.live())
        for request, inbox in self.inboxes.items():
            if request in live:
                assert not inbox.final
            assert inbox.done is None or inbox.refusal is None

    def teardown(self) -> None:
        gateway = self.world.gateway
        gateway.stopped("the test is over")
        gateway.check()
        assert gateway.num_live == 0
        assert gateway.totals.submitted == gateway.totals.ended.total() == len(self.inboxes)


TestHistories = Histories.TestCase


def test_a_replica_that_leaves_is_let_go_when_its_last_client_has_had_all(world: World) -> None:
    (request,), _ = world.open(submit())
    world.gateway.receive(Placed(request, "recorder.1"))
    world.gateway.receive(ReplicaLeft(1, "recorder.1", ("scheduler.1",), whole=True))
    world.gateway.settled()
    assert world.sent(Parted) == []
    world.output(request, end=done())
    world.gateway.settled()
    assert world.sent(Parted) == [Parted(1)]
