"""What an actor answers, and goes on from, when the handling of a message has failed: nobody waits for ever, and who
could be served twice is served as after the first time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.actors.control import Ask
from pawl.actors.control.profiling import StopProfile
from pawl.actors.control.state import GetState
from pawl.actors.grammar import BROKEN, GrammarCompiler
from pawl.actors.messages.adapters import EmptyAdapterSlot, ReadAdapter
from pawl.actors.messages.control import Reply
from pawl.actors.messages.execution import AwaitRunner, Execute, ExecuteFailed, ResetWorker, RunnerBack
from pawl.actors.messages.experts import SwitchExperts
from pawl.actors.messages.grammar import Compile, Release
from pawl.actors.messages.hand_over import EndOfPages, Expect, HandedPages, PagesEnd, Received, Taken, TicketOver
from pawl.actors.messages.memory import MoveMemory
from pawl.actors.messages.transfer import (
    Blocks,
    Dropped,
    EmptyHost,
    Fence,
    Fenced,
    Fetch,
    Fill,
    Filled,
    Save,
    Saved,
    SchedulerStops,
    TierReport,
)
from pawl.actors.messages.weights import UNREAD, Stage, Swap
from pawl.actors.names import NAMES
from pawl.actors.runtime.actor import MOST_IN_A_ROW, Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.stager import Stager
from pawl.actors.storage import Storage
from pawl.actors.tiers.store import TierStore
from pawl.actors.weight_questions import CheckWeights
from pawl.actors.worker import Worker
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.plain import Plain
from pawl.gpu.step_runner import PlannedMove
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import StepBatch
from pawl.lifecycle.weight_source import FromDisk
from pawl.loops.orders.adapters import AdapterFailed
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.grammars import GrammarReady
from pawl.loops.orders.memory import MoveEnded
from pawl.loops.orders.requests import Abort, Finish
from pawl.loops.orders.weights import WeightsFailed, WeightsSwapped
from pawl.loops.recovery import FAILED_ORDER
from pawl.memory.tiers.host import HostPool
from tests.actors.test_router import asked, given, routed
from tests.actors.test_scheduler import Bench
from tests.gpu.grammar_tools import ghost_words

ERROR = RuntimeError("a client's own words")
PAGES = np.array([1, 2], np.int32)
KEYS = (b"a" * 16, b"b" * 16)
DATA = np.zeros((2, 32), np.uint8)


def ghost() -> Ghost:
    return Ghost(num_pages=4, page_size=2, num_slots=2, max_context=8)


def spared(actor: Any, message: Any, context: ManualContext) -> list[tuple[str, Any]]:
    """Whom the actor tells what, when the handling of `message` has failed; it goes on."""
    context.take_sent()
    assert actor.spares(message, ERROR)
    assert actor.contained is ERROR
    told = [(sent.to, sent.message) for sent in context.take_sent() if not isinstance(sent.message, TierReport)]
    return [(to, replied(message) if isinstance(message, Reply) else message) for to, message in told]


def replied(reply: Reply) -> tuple[int, bool, str]:
    """What a reply says."""
    return reply.ticket, reply.ok, reply.message


# ---- the worker ----


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (Save(3, PAGES, KEYS), (NAMES.scheduler, Saved(3))),
        (Fill(3, PAGES, DATA, 0), (NAMES.scheduler, Filled(3, 0))),
        (Fence(3), (NAMES.scheduler, Fenced(3))),
        (Ask(7, GetState(), "gateway"), ("gateway", (7, False, FAILED_ORDER))),
        (Swap(0), (NAMES.scheduler, WeightsSwapped(0))),
        (
            MoveMemory(3, ResidencyEvent.RELEASE, (MemoryTag.WEIGHTS,)),
            (NAMES.scheduler, MoveEnded(3, (MemoryTag.WEIGHTS,))),
        ),
        (
            SwitchExperts(PlannedMove(7, 3, 2, 2.0, 1.0), "router", 8),
            ("router", (8, True, "3 experts were moved.")),
        ),
        (AwaitRunner(), (NAMES.stager, RunnerBack())),
        (EndOfPages(3, 4), (NAMES.storage, EndOfPages(3, 4))),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_worker_answers_what_it_failed_at(message: Any, answer: tuple[str, Any]) -> None:
    worker = Worker(ghost())
    worker.runner.placing = Placing()
    context = ManualContext(worker, NAMES.worker)
    assert spared(worker, message, context) == [answer]


def test_after_a_failed_save_the_fills_behind_it_are_written_and_a_failed_fill_is_not() -> None:
    worker = Worker(ghost())
    context = ManualContext(worker, NAMES.worker)
    first, second = Fill(1, PAGES, DATA, 4), Fill(2, PAGES, DATA, 4)
    worker.receive(first)
    worker.receive(second)
    assert spared(worker, first, context) == [(NAMES.scheduler, Filled(1, 0))]
    assert spared(worker, Save(4, PAGES, KEYS), context) == [
        (NAMES.scheduler, Saved(4)),
        (NAMES.scheduler, Filled(2, 2)),
    ]
    # A Save from before is answered and lets nothing be read again.
    assert spared(worker, Save(2, PAGES, KEYS), context) == [(NAMES.scheduler, Saved(2))]
    worker.receive(Save(4, PAGES, KEYS))
    assert [sent.message for sent in context.take_sent()] == [Saved(4)]


def test_nothing_is_saved_of_a_device_that_has_lost_a_step_before_it_is_reset() -> None:
    worker, context, batch = launched()
    assert spared(worker, None, context) == [(NAMES.scheduler, ExecuteFailed(batch.step, "RuntimeError"))]
    worker.receive(Save(1, PAGES, KEYS))
    assert [(sent.to, sent.message) for sent in context.take_sent()] == [(NAMES.scheduler, Saved(1))]
    worker.receive(ResetWorker(batch.step + 1, next_save=2))
    worker.receive(Save(2, PAGES, KEYS))
    assert [(sent.to, sent.message.number) for sent in context.take_sent()] == [(NAMES.storage, 2)]


def test_a_fence_that_failed_holds() -> None:
    worker = Worker(ghost())
    context = ManualContext(worker, NAMES.worker)
    spared(worker, Fence(3), context)
    worker.receive(Fill(3, PAGES, DATA, 0))
    assert [sent.message for sent in context.take_sent()] == [Filled(3, 0)]


def launched() -> tuple[Worker, ManualContext, StepBatch]:
    """A worker that has launched a step, and not answered."""
    bench = Bench(pacing="lockstep")
    bench.tell(bench.submit(1, [1, 2, 3]))
    (batch,) = (sent.message.batch for sent in bench.context.take_sent() if isinstance(sent.message, Execute))
    runner = Ghost.for_shape(bench.scheduler.config)
    runner.depth = 1
    worker = Worker(runner)
    context = ManualContext(worker, NAMES.worker)
    worker.receive(Execute(batch))
    return worker, context, batch


def test_steps_that_a_failed_worker_had_launched_are_lost_and_those_after_them_until_it_is_reset() -> None:
    worker, context, batch = launched()
    context.take_sent()
    lost = ExecuteFailed(batch.step, "RuntimeError")  # and none of its words: they may quote a prompt
    assert spared(worker, None, context) == [(NAMES.scheduler, lost)]
    assert spared(worker, None, context) == [], "each is told once"
    assert spared(worker, Execute(batch), context) == [(NAMES.scheduler, lost)]
    worker.receive(ResetWorker(batch.step + 1))
    assert spared(worker, Execute(batch), context) == [], "nobody waits for it any more"


def test_all_steps_that_were_launched_are_lost_with_the_worker_in_their_order() -> None:
    worker, context, batch = launched()
    worker._launched.append((batch.step + 1, object()))
    lost = [ExecuteFailed(step, "RuntimeError") for step in (batch.step, batch.step + 1)]
    assert spared(worker, None, context) == [(NAMES.scheduler, each) for each in lost]


def test_a_worker_answers_no_step_that_it_had_launched_before_it_was_reset() -> None:
    worker, context, batch = launched()
    worker.receive(ResetWorker(batch.step + 1))
    worker.settled()
    assert context.take_sent() == []


class Placing:
    """Experts that are elsewhere as soon as they are told to be."""

    def due(self) -> bool:
        return False

    def stage(self) -> PlannedMove | None:
        return None

    def switch(self, ticket: int) -> None: ...


BETWEEN_STEPS: list[tuple[Any, str, Any]] = [
    (Swap(0), NAMES.scheduler, WeightsSwapped(0)),
    (MoveMemory(4, ResidencyEvent.RELEASE, (MemoryTag.WEIGHTS,)), NAMES.scheduler, MoveEnded(4, (MemoryTag.WEIGHTS,))),
    (SwitchExperts(PlannedMove(7, 3, 2, 2.0, 1.0), "router", 8), "router", (8, True, "3 experts were moved.")),
    (Ask(7, StopProfile(), "router"), "router", (7, False, "no profile is under way")),
    (AwaitRunner(), NAMES.stager, RunnerBack()),
]


@pytest.mark.parametrize(("message", "to", "answer"), BETWEEN_STEPS, ids=lambda each: type(each).__name__)
def test_steps_come_back_before_a_worker_does_anything_between_them(message: Any, to: str, answer: Any) -> None:
    worker, context, batch = launched()
    worker.runner.placing = Placing()
    worker.receive(message)
    step, *said = context.take_sent()
    assert (step.to, step.message.result.step, step.lane) == (NAMES.scheduler, batch.step, Lane.CONTROL)
    heard = [(sent.to, replied(sent.message) if isinstance(sent.message, Reply) else sent.message) for sent in said]
    assert heard == [(to, answer)]


# ---- the stager ----


@pytest.mark.parametrize(
    ("message", "answers"),
    [
        (Stage(3, FromDisk("ghost:b")), [(NAMES.scheduler, WeightsFailed(3, f"{UNREAD}: RuntimeError"))]),
        (
            ReadAdapter(4, 1, FromDisk("x")),
            [(NAMES.scheduler, AdapterFailed(4, "the server failed to read the adapter: RuntimeError"))],
        ),
        (EmptyAdapterSlot(1), []),
        (Ask(7, CheckWeights(), "gateway"), [("gateway", (7, False, f"{UNREAD}: RuntimeError"))]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_stager_answers_what_it_failed_at(message: Any, answers: list[tuple[str, Any]]) -> None:
    stager = Stager(ghost())
    assert spared(stager, message, ManualContext(stager, NAMES.stager)) == answers


# ---- the storage ----


def storage() -> tuple[Storage, ManualContext]:
    made = Storage(TierStore(HostPool(4, 32), None, eager=True))
    return made, ManualContext(made, NAMES.storage)


def handed(ticket: int) -> HandedPages:
    return HandedPages(ticket, "storage.0", 5, KEYS, np.zeros(2, np.uint64), (DATA,))


def test_a_storage_answers_what_it_failed_at() -> None:
    actor, context = storage()
    assert spared(actor, Blocks(3, KEYS, DATA), context) == [(NAMES.scheduler, Saved(3))]
    ((to, fill),) = spared(actor, Fetch(3, KEYS, PAGES, 9), context)
    assert (to, fill.ticket, fill.pages.tolist(), len(fill.data), fill.after) == (NAMES.worker, 3, [1, 2], 0, 9)
    actor.receive(Expect(6, KEYS))
    context.take_sent()
    assert spared(actor, handed(6), context) == [("storage.0", Taken(NAMES.storage, 5))]
    assert spared(actor, handed(7), context) == [("storage.0", TicketOver(NAMES.storage, 7))], "nobody expects it"
    over = ("storage.0", TicketOver(NAMES.storage, 6))
    assert spared(actor, PagesEnd(6, "storage.0", 0), context) == [(NAMES.scheduler, Received(6, 0)), over]
    assert spared(actor, handed(6), context) == [over], "nor that any more"
    assert spared(actor, Expect(8, KEYS), context) == [(NAMES.scheduler, Received(8, 0))]


def test_host_memory_is_empty_after_a_flush_that_failed_and_the_scheduler_hears_what_is_gone() -> None:
    actor, context = storage()
    actor.receive(Blocks(1, KEYS, DATA))
    assert spared(actor, EmptyHost(1), context) == [(NAMES.scheduler, Dropped(KEYS))]
    assert len(actor.store.host) == 0
    actor.receive(SchedulerStops())
    assert spared(actor, Blocks(2, KEYS, DATA), context) == [], "who stops is told nothing"


def test_a_storage_that_fails_at_everything_is_given_up() -> None:
    actor, _ = storage()
    assert [actor.spares(EmptyHost(1), ERROR) for _ in range(MOST_IN_A_ROW + 1)] == [True] * MOST_IN_A_ROW + [False]


# ---- grammars ----


def test_a_grammar_that_failed_ends_its_request_and_the_next_one_is_compiled() -> None:
    actor = GrammarCompiler(Grammars("plain", Plain, ghost_words()))
    context = ManualContext(actor, NAMES.grammar)
    grammar, ended = Grammar(GrammarKind.REGEX, "ab"), Abort((1,), Cause.INTERNAL, BROKEN)
    for request in (1, 2):
        actor.receive(Compile(request, grammar))
    assert spared(actor, None, context) == [(NAMES.scheduler, ended)], "the oldest is at fault"
    assert not actor.settled()
    assert context.take(NAMES.scheduler) == [GrammarReady(2)]
    assert spared(actor, Release(2), context) == []
    assert actor.num_open == 0
    actor.receive(Compile(1, grammar))
    actor.receive(Compile(3, grammar))
    assert spared(actor, Compile(1, grammar), context) == [(NAMES.scheduler, ended)]
    assert not actor.settled()
    assert context.take(NAMES.scheduler) == [GrammarReady(3)]


# ---- the scheduler ----


@pytest.mark.parametrize("after_failure", ["a question", "an order", "a message"])
def test_a_scheduler_that_failed_answers_who_asked_and_the_requests_at_work_get_their_tokens(
    after_failure: str,
) -> None:
    bench = Bench(pacing="lockstep")
    bench.tell(bench.submit(1, [1, 2, 3]), bench.submit(2, [4, 5]))
    message = {"a question": Ask(7, GetState(), "gateway"), "an order": Ask(7, FlushCache(), "gateway")}.get(
        after_failure, FlushCache()
    )
    told = spared(bench.scheduler, message, bench.context)
    replies = [(to, each) for to, each in told if isinstance(each, tuple)]
    assert replies == ([("gateway", (7, False, FAILED_ORDER))] if isinstance(message, Ask) else [])
    resets = [each for _, each in told if isinstance(each, ResetWorker)]
    assert len(resets) == (after_failure != "a question"), "who only looks has changed nothing"
    if not resets:
        return
    bench.scheduler.settled()
    bench.rest()
    assert {request: end.cause for request, end in bench.ended.items()} == {1: Cause.LENGTH, 2: Cause.LENGTH}
    assert bench.scheduler.loop.counters.steps_lost == 1


def test_a_scheduler_that_fails_at_every_order_is_given_up_and_never_for_a_question_or_an_abort() -> None:
    bench = Bench()
    for message in (Ask(7, GetState(), "gateway"), Abort((1,))):
        assert all(bench.scheduler.spares(message, ERROR) for _ in range(MOST_IN_A_ROW + 1))
    said = [bench.scheduler.spares(FlushCache(), ERROR) for _ in range(MOST_IN_A_ROW + 1)]
    assert said == [True] * MOST_IN_A_ROW + [False]


def test_only_those_of_the_named_requests_end_that_a_scheduler_has() -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1, 2, 3]), bench.submit(2, [4, 5]), bench.submit(3, [6]))
    of = bench.scheduler.requests_of
    assert (of(Abort((3, 9, 1))), of(Finish(2, 1)), of(Finish(9, 1)), of(GrammarReady(1))) == ((3, 1), (2,), (), (1,))
    assert bench.scheduler.spares(Abort((3, 9)), ERROR)
    bench.scheduler.settled()
    bench.rest()
    assert {n: end.cause for n, end in bench.ended.items()} == {
        1: Cause.LENGTH,
        2: Cause.LENGTH,
        3: Cause.INTERNAL,
    }


def test_who_is_still_to_come_is_ended_though_the_order_has_failed_at_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.tell(bench.submit(1, [1, 2, 3]), bench.submit(2, [4, 5]))
    requests, table = bench.scheduler.loop.requests, bench.scheduler.loop.table

    def fails(*_: Any) -> None:
        monkeypatch.undo()
        requests.begin(table.row_of[2])
        raise ERROR

    monkeypatch.setattr(requests, "abort", fails)
    bench.context.deliver(Abort((2, 3), Cause.CLIENT))
    assert bench.scheduler.contained is ERROR
    bench.scheduler.settled()
    bench.tell(bench.submit(3, [6]))
    bench.rest()
    ends = {number: end.cause for number, end in bench.ended.items()}
    assert (ends[1], ends[3]) == (Cause.LENGTH, Cause.CLIENT)


# ---- the router ----


def test_a_router_that_failed_for_a_request_has_it_ended_by_who_has_it_and_else_by_itself() -> None:
    router, context = routed(2)
    router.receive(asked(1))
    assert len(given(context, 0)) == 1
    context.take_sent()
    router.end_request(1)
    (sent,) = context.take_sent()
    assert (sent.to, sent.message.requests, sent.message.cause, sent.lane) == (
        "scheduler.0",
        (1,),
        Cause.INTERNAL,
        Lane.CONTROL,
    )
    router.end_request(2)
    (sent,) = context.take_sent()
    assert (sent.to, sent.message.request, sent.message.cause, sent.message.status) == (
        NAMES.gateway,
        2,
        Cause.INTERNAL,
        500,
    )
