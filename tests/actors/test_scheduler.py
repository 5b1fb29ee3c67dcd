"""The scheduler actor by itself: what it answers, to whom, and that nobody is left without an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec import structs

from pawl.actors.control import Ask
from pawl.actors.control.state import GetState
from pawl.actors.messages.control import Heartbeat, Reply, Stalled
from pawl.actors.messages.execution import Execute, Executed, ExecuteFailed, ResetWorker
from pawl.actors.messages.generate import Ended, Generate, Opened, StepTokens, TextOptions
from pawl.actors.messages.grammar import Compile, Release
from pawl.actors.messages.transfer import Dropped
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.runtime.actor import Lane
from pawl.actors.scheduler import HEARTBEAT_S, Scheduler
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.turn_timer import HeartbeatDue, SelfCheck, TurnDue
from pawl.actors.watchdog import OLD_STEP_S, Watchdog
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.records import Closed
from pawl.lifecycle.request import SamplingParameters, SessionParameters
from pawl.lifecycle.states import Cause, State
from pawl.loops.intake import WaitEnds
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.grammars import GrammarFailed, GrammarReady
from pawl.loops.orders.requests import Abort, CheckDeadlines, Drain, EndAll, Finish
from pawl.loops.orders.sessions import OpenSession
from pawl.loops.orders.weights import UpdateWeights, WeightsStaged, WeightsSwapped
from pawl.loops.select import LoopConfig
from pawl.memory.prefix.namespace import namespace_of
from pawl.testing.expectations import simulated_grammars
from tests.loops.driver import first_record


class Bench:
    """A scheduler whose worker is a ghost that the test steps by hand."""

    def __init__(self, **overrides: Any) -> None:
        settings = {"num_pages": 64, "page_size": 4, "max_context": 128, "max_running": 4, "max_queued": 8}
        config = LoopConfig(**(settings | overrides))
        self.scheduler = Scheduler(config, 60.0, first_record(config))
        self.context = ManualContext(self.scheduler, "scheduler")
        self.ghost = Ghost.for_shape(config)
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, Ended] = {}
        self._request_of: dict[int, int] = {}

    def tell(self, *messages: Any) -> None:
        """Deliver messages together, then let the scheduler settle."""
        for message in messages:
            self.scheduler.receive(message)
        self.scheduler.settled()
        self._listen()

    def submit(self, request: int, prompt: list[int], max_new_tokens: int = 6, **changes: Any) -> Generate:
        return Generate(
            request=request,
            rid=f"r{request}",
            tokens=np.array(prompt, np.int32),
            sampling=SamplingParameters(temperature=0.0, max_new_tokens=max_new_tokens),
            text_options=TextOptions(),
            **changes,
        )

    def work(self) -> bool:
        """Run the oldest launched step. False when none is launched."""
        for index, sent in enumerate(self.context.sent):
            if isinstance(sent.message, Execute):
                del self.context.sent[index]
                self.tell(Executed(self.ghost.launch(sent.message.batch)))
                return True
        return False

    def rest(self) -> None:
        for _ in range(500):
            if not self.work():
                return
        raise AssertionError("no rest")

    def _listen(self) -> None:
        for message in self.context.take("detokenizer"):
            match message:
                case Opened():
                    self._request_of[message.row] = message.request
                    self.tokens[message.request] = []
                case StepTokens():
                    for row, token in zip(message.rows.tolist(), message.tokens.tolist(), strict=True):
                        self.tokens[self._request_of[row]].append(token)
                    for end in message.ended:
                        assert end.request not in self.ended
                        self.ended[end.request] = end


def test_requests_that_arrive_together_are_answered_with_their_tokens() -> None:
    bench = Bench()
    bench.tell(*(bench.submit(number, [number, 2, 3], 5) for number in range(1, 7)))
    bench.rest()
    for number in range(1, 7):
        assert bench.tokens[number] == expected([number, 2, 3], 5)
        assert bench.ended[number].cause == Cause.LENGTH
        assert bench.ended[number].usage.completion_tokens == 5


def test_salt_and_weight_version_decide_who_shares_pages() -> None:
    bench = Bench(weights="w1")
    for number, salt in ((1, "a"), (2, "a"), (3, "b"), (4, "")):
        bench.tell(bench.submit(number, list(range(12)), 2, namespace=salt))
        bench.rest()
    assert [bench.ended[number].usage.cached_tokens for number in range(1, 5)] == [0, 8, 0, 0]
    namespaces = {block.namespace for block in bench.scheduler.loop.memory.cache.content().values()}
    assert namespaces == {namespace_of(salt=salt, weights="w1") for salt in ("a", "b", "")}


def test_the_time_that_a_request_has_had_elsewhere_is_part_of_its_time() -> None:
    bench = Bench()
    bench.context.time_s = 100.0
    bench.tell(bench.submit(1, [1]), bench.submit(2, [2], timeout_s=5.0))
    bench.tell(bench.submit(3, [3], timeout_s=5.0, age_s=4.5))
    table = bench.scheduler.loop.table
    assert [table.deadline[table.row_of[request]] for request in (1, 2, 3)] == [160.0, 105.0, 100.5]


def test_one_execute_a_step_whatever_the_number_of_requests() -> None:
    bench = Bench(pacing="lockstep")
    bench.tell(*(bench.submit(number, [number], 3) for number in range(1, 5)))
    assert sum(isinstance(sent.message, Execute) for sent in bench.context.sent) == 1


def test_an_abort_that_overtakes_its_request_still_ends_it() -> None:
    bench = Bench()
    bench.tell(Abort((1,), Cause.CLIENT))
    bench.tell(bench.submit(1, [1, 2, 3]))
    assert bench.ended[1].cause == Cause.CLIENT
    assert bench.tokens[1] == []
    bench.rest()
    assert bench.tokens[1] == []


@pytest.mark.parametrize("steps", range(6))
def test_an_abort_ends_the_request_at_any_step_and_silences_it(steps: int) -> None:
    bench = Bench()
    bench.tell(bench.submit(1, list(range(30)), 40), bench.submit(2, [5, 6], 12))
    for _ in range(steps):
        bench.work()
    bench.tell(Abort((1,), Cause.DISCONNECT))
    assert bench.ended[1].cause == Cause.DISCONNECT
    seen = len(bench.tokens[1])
    bench.rest()
    assert len(bench.tokens[1]) == seen
    assert bench.tokens[2] == expected([5, 6], 12)


def test_a_late_abort_of_a_finished_request_changes_nothing() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1], 2))
    bench.rest()
    bench.tell(Abort((1,), Cause.CLIENT))
    bench.tell(bench.submit(2, [1], 2))
    bench.rest()
    assert bench.ended[1].cause == bench.ended[2].cause == Cause.LENGTH


def test_a_stop_string_counts_only_the_tokens_up_to_it() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1, 2], 30))
    for _ in range(6):
        bench.work()
    bench.tell(Finish(1, 3))
    bench.rest()
    assert bench.ended[1].cause == Cause.STOP_STRING
    assert bench.ended[1].usage.completion_tokens == 3
    counters = bench.scheduler.loop.counters
    assert counters.generated_tokens == 3


def test_deadlines_are_checked_while_requests_live_and_not_after() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1], 50, timeout_s=1.0))
    timers = [timer for timer in bench.context.timers if isinstance(timer.message, CheckDeadlines)]
    assert len(timers) == 1
    bench.context.time_s += 2.0
    bench.tell(CheckDeadlines())
    assert bench.ended[1].cause == Cause.TIMEOUT
    bench.rest()
    assert sum(isinstance(timer.message, CheckDeadlines) for timer in bench.context.timers) == 1


def test_deadlines_are_checked_again_for_whoever_comes_after_a_rest() -> None:
    bench = Bench()
    for request in (1, 2):
        bench.tell(bench.submit(request, [1, 2, 3]))
        timers = [timer for timer in bench.context.timers if isinstance(timer.message, CheckDeadlines)]
        assert len(timers) == request
        bench.rest()
        bench.tell(CheckDeadlines())


def test_own_times_are_kept_whether_they_are_shorter_or_longer_than_the_usual_one() -> None:
    bench = Bench()
    bench.context.time_s = 3.0
    bench.tell(bench.submit(1, [1, 2, 3], timeout_s=6.0))
    bench.context.time_s = 7.0  # while the first step is at work
    for request, timeout_s in ((2, None), (3, 900.0)):
        bench.tell(bench.submit(request, [1, 2, 3], timeout_s=timeout_s))
    table = bench.scheduler.loop.table
    assert table.deadline[table.live_rows()].tolist() == [9.0, 67.0, 907.0]


@pytest.mark.parametrize("priority", [0, 5])
def test_a_request_has_the_namespace_of_its_salt_whatever_its_priority(priority: int) -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1, 2, 3], namespace="a salt", priority=priority))
    table = bench.scheduler.loop.table
    assert table.info(table.row_of[1]).namespace == namespace_of(salt="a salt", weights=bench.scheduler.config.weights)


def test_flush_now_refuses_while_requests_live_and_tells_what_is_live() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, list(range(20)), 4))
    bench.tell(Ask(9, FlushCache()))
    (reply,) = bench.context.take("gateway")
    assert isinstance(reply, Reply)
    assert (reply.ticket, reply.ok) == (9, False)
    assert reply.body["running"] == 1
    bench.rest()
    bench.tell(Ask(10, FlushCache()))
    (reply,) = bench.context.take("gateway")
    assert reply.ok
    assert bench.scheduler.loop.memory.pages.free == 64


def test_a_patient_flush_waits_for_rest_and_one_that_waits_too_long_is_refused() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, list(range(20)), 4), Ask(1, FlushCache(5.0)))
    assert bench.context.take("gateway") == []
    bench.rest()
    assert [reply.ok for reply in bench.context.take("gateway")] == [True]
    bench.tell(bench.submit(2, list(range(20)), 4), Ask(2, FlushCache(5.0)))
    bench.tell(WaitEnds(2))
    assert [reply.ok for reply in bench.context.take("gateway")] == [False]
    bench.rest()
    assert bench.tokens[2] == expected(list(range(20)), 4)
    assert bench.context.take("gateway") == []


def test_a_lost_step_resets_the_worker_and_requests_go_on() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, list(range(9)), 8), bench.submit(2, [4], 8))
    bench.work()
    executes = [sent.message for sent in bench.context.sent if isinstance(sent.message, Execute)]
    bench.context.sent.clear()
    bench.ghost.reset()
    bench.tell(*(ExecuteFailed(message.batch.step, "gone") for message in executes))
    resets = [sent for sent in bench.context.sent if isinstance(sent.message, ResetWorker)]
    assert [sent.lane for sent in resets] == [Lane.CONTROL]
    assert resets[0].message.next_step > executes[-1].batch.step
    bench.rest()
    assert bench.tokens[1] == expected(list(range(9)), 8)
    assert bench.tokens[2] == expected([4], 8)


def test_draining_refuses_what_comes_and_ends_what_is_left_after_the_grace() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1], 100))
    bench.tell(Drain(3.0))
    bench.tell(bench.submit(2, [1], 4))
    assert bench.ended[2].cause == Cause.DRAINED
    assert 1 not in bench.ended
    bench.tell(EndAll())
    assert bench.ended[1].cause == Cause.DRAINED


def test_stopping_answers_everyone_and_closes_the_trace() -> None:
    bench = Bench()
    bench.tell(*(bench.submit(number, [number], 50) for number in range(1, 7)), Ask(1, FlushCache(9.0)))
    bench.work()
    bench.scheduler.stopped("stopped")
    bench._listen()
    assert {end.cause for end in bench.ended.values()} == {Cause.DRAINED}
    assert len(bench.ended) == 6
    assert [reply.ok for reply in bench.context.take("gateway")] == [False]
    records = [record for batch in bench.context.take("recorder") for record in batch.records]
    assert isinstance(records[-1], Closed)
    assert records[-1].counts.live == 0


def test_the_watchdog_hears_at_regular_times_how_old_the_oldest_step_is() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1], 4))
    bench.context.time_s += 7.0
    bench.tell(HeartbeatDue())
    assert bench.context.take("watchdog") == [Heartbeat(None), Heartbeat(pytest.approx(7.0))]


@pytest.mark.parametrize("message", [HeartbeatDue(), SelfCheck(), TurnDue(), CheckDeadlines(), Dropped((b"key",))])
def test_what_nobody_says_again_comes_once_more_where_something_fails_at_it(message: Any) -> None:
    bench = Bench()
    assert bench.scheduler.spares(message, KeyError())
    assert bench.context.take("scheduler") == [message]


def test_an_abort_that_fails_behind_the_end_of_its_request_is_no_abort_again_but_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, order = Bench(), Abort((1,), Cause.CLIENT)
    bench.tell(bench.submit(1, [1, 2, 3]), bench.submit(2, [4, 5]))
    bench.work()
    loop = bench.scheduler.loop
    after = type(loop.memory.ledger).after

    def fails(ledger: Any, fence: int, gives_back: Any, *what: Any) -> None:
        if gives_back == loop.table.free:
            raise KeyError
        after(ledger, fence, gives_back, *what)

    with monkeypatch.context() as patched:
        patched.setattr(type(loop.memory.ledger), "after", fails)
        with pytest.raises(KeyError) as raised:
            bench.scheduler.receive(order)
    assert 1 not in loop.table.row_of
    assert bench.scheduler.spares(order, raised.value)
    assert any(isinstance(sent.message, ResetWorker) for sent in bench.context.sent)
    assert len(loop.table._free) + len(loop.table.row_of) == len(loop.table.attempt)
    loop.check_all()


def test_a_heartbeat_that_comes_once_more_is_the_only_one() -> None:
    bench = Bench()
    bench.tell(HeartbeatDue(), HeartbeatDue())
    bench.context.take("watchdog")
    bench.context.advance(2 * HEARTBEAT_S)
    assert len(bench.context.take("watchdog")) == 2


def test_a_step_that_never_comes_back_is_a_stall_within_half_a_second_of_its_limit() -> None:
    bench, watchdog = Bench(), Watchdog(stall_s=30.0)
    watching = ManualContext(watchdog, "watchdog")
    bench.context.advance(0.1)
    bench.tell(bench.submit(1, [1], 4))
    told: list[tuple[float, Stalled]] = []
    for _ in range(350):
        bench.context.advance(0.1)
        watching.advance(0.1)
        for heartbeat in bench.context.take("watchdog"):
            watchdog.receive(heartbeat)
        told += [(bench.context.now() - 0.1, message) for message in watching.take("gateway")]
    first_old = next(age for age, message in told if message.oldest_step_s)
    first_stall = next(age for age, message in told if message.seconds)
    assert (OLD_STEP_S <= first_old <= 1.0, 30.0 <= first_stall <= 30.5) == (True, True)
    assert all(age - message.oldest_step_s <= 0.5 for age, message in told)


def test_state_tells_requests_pages_and_counters() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1, 2, 3], 4))
    bench.tell(Ask(3, GetState(detail=True)))
    (reply,) = bench.context.take("gateway")
    assert reply.body["requests"] == {"prefilling": 1}
    assert reply.body["live"][0]["rid"] == "r1"
    assert sum(reply.body["pages"][name] for name in ("free", "owned", "cached", "deferred", "quarantined")) == 64


@pytest.mark.parametrize("state", [state for state in State if not state.terminal])
def test_state_lists_every_state_under_its_own_name(state: State) -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1, 2, 3], 4))
    bench.scheduler.loop.table.state[0] = state
    bench.tell(Ask(3, GetState(detail=True)))
    (reply,) = bench.context.take("gateway")
    assert [each["state"] for each in reply.body["live"]] == [*reply.body["requests"]] == [state.name.lower()]


def test_state_tells_the_pages_of_the_second_pool_where_there_is_one() -> None:
    bench = Bench(window=8, num_window_pages=40)
    bench.tell(Ask(3, GetState()))
    (reply,) = bench.context.take("gateway")
    assert reply.body["window_pages"]["total"] == 40


def test_a_broken_law_is_counted_and_the_engine_goes_on() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1, 2, 3], 4))
    bench.scheduler.loop.memory.pages.free -= 1
    bench.work()
    assert bench.scheduler.violations
    bench.scheduler.loop.memory.pages.free += 1
    bench.rest()
    assert bench.tokens[1] == expected([1, 2, 3], 4)
    bench.tell(SelfCheck())
    assert sum(bench.scheduler.violations.values()) >= 1


def test_who_is_told_that_new_weights_serve_knows_which_by_then() -> None:
    bench = Bench()
    scheduler, context = bench.scheduler, bench.context
    scheduler.receive(Ask(7, UpdateWeights(model_path="/new"), "router"))
    for order in (WeightsStaged(1, "f"), WeightsSwapped(1)):
        scheduler.receive(order)
        scheduler.settled()
    told = [sent for sent in context.take_sent() if isinstance(sent.message, WeightsServed | Reply)]
    assert [type(sent.message) for sent in told] == [WeightsServed, Reply]
    assert {sent.lane for sent in told} == {Lane.CONTROL}, "one lane, or the reply could overtake"


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("end", ["stop string", "abort", "deadline", "end of all", "failure"])
def test_a_grammar_is_let_go_however_its_request_ends(end: str, compiled: bool) -> None:
    bench = Bench()
    bench.ghost = Ghost.for_shape(bench.scheduler.config, grammars=simulated_grammars())
    grammar = Grammar(GrammarKind.REGEX, "[ab]*")
    sampling = SamplingParameters(temperature=0.0, max_new_tokens=9, grammar=grammar)
    bench.tell(structs.replace(bench.submit(1, [97, 98]), sampling=sampling, timeout_s=5.0))
    assert [type(each) for each in bench.context.take("grammar")] == [Compile]
    if compiled:
        bench.tell(GrammarReady(1))
        bench.work()
        assert bench.tokens[1]
    match end:
        case "stop string":
            bench.tell(Finish(1, len(bench.tokens[1])))
        case "abort":
            bench.tell(Abort((1,)))
        case "deadline":
            bench.context.advance(60.0)
            bench.tell()
        case "end of all":
            bench.tell(EndAll())
        case _:
            bench.tell(Abort((1,), Cause.INTERNAL) if compiled else GrammarFailed(1, "it is none"))
    assert bench.ended.keys() == {1}
    assert bench.context.take("grammar") == [Release(1)]


def test_a_step_that_is_refused_behind_a_lost_one_counts_for_nobody() -> None:
    bench = Bench(pacing="overlap")
    bench.tell(bench.submit(1, [1, 2, 3]))
    for step in (1, 2):  # the second was launched before anybody knew
        bench.tell(ExecuteFailed(step, "lost"))
    counters, row = bench.scheduler.loop.counters, bench.scheduler.loop.table.row_of[1]
    lost, strikes = counters.steps_lost, bench.scheduler.loop.table.info(row).strikes
    in_flight = [scheduled.step for scheduled in bench.scheduler.loop.in_flight]
    assert (strikes, min(in_flight) > 2) == (1, True)
    for step in (1, 2):
        bench.tell(ExecuteFailed(step, "lost"))
    assert (counters.steps_lost, bench.scheduler.loop.table.info(row).strikes) == (lost, strikes)
    assert [scheduled.step for scheduled in bench.scheduler.loop.in_flight] == in_flight


def test_a_turn_goes_on_from_the_one_it_names_and_one_that_it_replaces_ends_before_it_begins() -> None:
    bench = Bench(max_queued=1, max_running=1)
    bench.tell(OpenSession("s", 0))
    session = SessionParameters("s")
    bench.tell(bench.submit(1, [1, 2], 2, session=session))
    bench.rest()
    after = structs.replace(session, rid="r1")
    bench.tell(bench.submit(2, [3], 2, session=after))
    bench.rest()
    assert bench.tokens[2] == expected([1, 2, *bench.tokens[1], 3], 2)
    bench.tell(bench.submit(3, [4], 9, session=after))
    bench.work()
    bench.tell(bench.submit(4, [5], 2, session=structs.replace(session, rid="r3", replace=True)))
    assert bench.ended[3].cause == Cause.CLIENT
    bench.rest()
    assert bench.tokens[4] == expected([1, 2, *bench.tokens[1], 4, *bench.tokens[3], 5], 2)
