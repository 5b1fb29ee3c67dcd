"""The router, driven by hand: replicas that are added, and that leave, by order and by load."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.control import Ask
from pawl.actors.control.scaling import ScaleReplicas
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Ended, Refused, StepTokens, Timing, Usage
from pawl.actors.messages.memory import MemoryReleased
from pawl.actors.messages.replicas import Parted, ReplicaCounts, ReplicaFailed, ReplicaUp
from pawl.actors.names import FRONT, ROUTER, Names, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.present import JOINED, REST_S, SENT
from pawl.actors.routed import Replica
from pawl.actors.router import Router
from pawl.actors.scaling import Rule
from pawl.actors.simulation.manual import ManualContext
from pawl.lifecycle.machines.memory import MemoryTag, in_order
from pawl.lifecycle.states import Cause
from pawl.lifecycle.weight_source import FromBytes
from pawl.loops.intake import Order
from pawl.loops.orders.limits import SetState
from pawl.loops.orders.memory import ReleaseMemory
from pawl.loops.orders.requests import Drain
from pawl.loops.orders.serving import Pause
from pawl.loops.orders.sessions import CloseSession, OpenSession
from pawl.loops.orders.weight_groups import JoinWeightGroup, LeaveWeightGroup
from pawl.loops.orders.weights import PutWeights, UpdateWeights
from tests.actors.test_router import PROMPT, asked, draws, given, is_lost, opens, ordered, told_next, turn

HIGH = 1 << 20
"""Open requests that no test has."""


class Starts:
    """A starter that says that it starts whatever it is told to."""

    def __init__(self) -> None:
        self.num_added = 0
        self.ended: list[int] = []
        self.given_up: list[int] = []
        self.why_not = ""

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        self.given_up += [lost.replica] if why_not else []
        return why_not

    def add(self, role: str) -> str:
        self.num_added += not self.why_not
        return self.why_not

    def end(self, names: Names) -> None:
        self.ended.append(names.replica)

    def over(self, name: str, reason: str) -> None: ...


def routed(count: int, least: int = 1, most: int = 4, at: int = HIGH) -> tuple[Router, ManualContext, Starts]:
    starts, names = Starts(), [names_of(number) for number in range(count)]
    router = Router(RoundRobin(4), names, starts, rule=Rule(least, most, at, up_s=2.0, down_s=60.0))
    return router, ManualContext(router, ROUTER), starts


def scale(router: Router, context: ManualContext, replicas: int, **fields: Any) -> Reply:
    """The answer to the order."""
    router.receive(Ask(99, ScaleReplicas(replicas, **fields), FRONT.gateway))
    return next(each for each in reversed(context.take(FRONT.gateway)) if isinstance(each, Reply))


def ends(router: Router, request: int, replica: int) -> None:
    """Its scheduler has ended it."""
    end = Ended(0, request, Cause.LENGTH, Usage(len(PROMPT), 1, 0), Timing(0.0, ended=0.0))
    router.receive(StepTokens(PROMPT[:0], PROMPT[:0], ended=(end,), replica=replica))


def test_one_that_is_added_is_told_what_lasts_before_it_takes_requests() -> None:
    router, context, starts = routed(1)
    ordered(router, SetState(max_running=4), 0)
    ordered(router, Pause(), 0)
    reply = scale(router, context, 2)
    assert (reply.ok, reply.body) == (
        True,
        {"wanted": 2, "serving": 1, "starting": 1, "leaving": 0, "on_load": True},
    )
    router.receive(ReplicaUp(names_of(1)))
    router.receive(asked(1))
    told = []
    while orders := told_next(context, 1):
        told += orders
        assert given(context, 1) == []
        router.receive(Reply(router.fleet.questions.asks._next_ticket - 1, True))
    assert (told, starts.num_added) == ([SetState(max_running=4), Pause()], 1)
    router.receive(asked(2))
    assert [each.request for each in given(context, 1)] == [2]


def test_one_that_is_added_keeps_weights_that_were_released_before_others_took_their_place() -> None:
    router, _, _ = routed(1)
    ordered(router, ReleaseMemory(tags=(MemoryTag.WEIGHTS, MemoryTag.KV_CACHE)), 0)
    ordered(router, UpdateWeights(model_path="/new"), 0)
    (update, release) = router.fleet.questions.present.orders(None)
    assert isinstance(update, UpdateWeights)
    assert release == ReleaseMemory(tags=(MemoryTag.KV_CACHE,), timeout_s=REST_S)


def test_one_that_is_added_has_the_memory_that_one_of_the_others_could_not_release() -> None:
    router, _, _ = routed(2)
    present, release = router.fleet.questions.present, ReleaseMemory(tags=(MemoryTag.KV_CACHE,))
    router.receive(Ask(9, release, FRONT.gateway))
    tickets = [router.fleet.questions.asks._next_ticket - each for each in (2, 1)]
    for ticket, ok in zip(tickets, (True, False), strict=True):
        router.receive(Reply(ticket, ok))
    assert present.orders(None) == []
    router.receive(Ask(9, release, FRONT.gateway))
    router.receive(Reply(tickets[0] + 2, True))
    router.receive(Reply(tickets[1] + 2, False, unserved=True))  # it may be gone
    assert len(present.orders(None)) == 1


@pytest.mark.parametrize("unserved", [True, False])
def test_memory_that_nobody_has_released_is_not_what_one_that_is_added_lacks(unserved: bool) -> None:
    router, _, _ = routed(2)
    router.receive(Ask(9, ReleaseMemory(tags=(MemoryTag.KV_CACHE,)), FRONT.gateway))
    for number in (2, 1):
        router.receive(Reply(router.fleet.questions.asks._next_ticket - number, False, unserved=unserved))
    assert router.fleet.questions.present.orders(None) == []


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_as_many_as_are_wanted_are_called_back_and_no_more(wanted: int) -> None:
    router, context, _ = routed(3)
    for request in range(1, 7):
        router.receive(asked(request))
    scale(router, context, 1, grace_s=5.0)
    assert len(router.fleet.size.leaving) == 2
    assert scale(router, context, wanted).body["leaving"] == 3 - wanted
    assert (len(router.fleet.size.leaving), len(router.fleet.size.taking)) == (3 - wanted, wanted)


def test_for_one_that_is_lost_one_of_those_that_leave_is_called_back() -> None:
    router, context, _ = routed(4)
    for request in range(1, 9):
        router.receive(asked(request))
    scale(router, context, 2, grace_s=5.0)
    size = router.fleet.size
    first, last = size.leaving
    is_lost(router, context, size.taking[0].number)
    assert (size.leaving, len(size.taking), first in size.taking) == ([last], 2, True)


def test_memory_that_one_lacks_is_told_until_it_has_it_or_leaves() -> None:
    router, context, _ = routed(2)
    told: list[tuple[MemoryTag, ...]] = []
    for replica, tags in ((0, (MemoryTag.WEIGHTS,)), (1, (MemoryTag.KV_CACHE,)), (0, ()), (7, (MemoryTag.WEIGHTS,))):
        router.receive(MemoryReleased(tags, replica))
        told += [each.tags for each in context.take(FRONT.gateway) if isinstance(each, MemoryReleased)]
    both = in_order((MemoryTag.KV_CACHE, MemoryTag.WEIGHTS))
    assert told == [(MemoryTag.WEIGHTS,), both, (MemoryTag.KV_CACHE,)]
    router.receive(Ask(99, ScaleReplicas(1), FRONT.gateway))
    assert MemoryReleased(()) in context.take(FRONT.gateway)


def test_one_that_leaves_gets_nothing_more_and_is_ended_when_its_last_client_has_had_all() -> None:
    router, context, starts = routed(2)
    for request in (1, 2, 3):  # replica 1 has one, and so less to do
        router.receive(asked(request))
    given(context, 1)
    opens(router, 2, 1)
    scale(router, context, 1)
    router.receive(asked(4))
    assert given(context, 1) == []
    draws(router, 1, "w", 7)
    assert starts.ended == []
    ends(router, 2, 1)
    assert Replica(names_of(1)).left(whole=True) in context.take(FRONT.gateway)
    assert starts.ended == []
    router.receive(Parted(1))
    assert (starts.ended, starts.given_up, sorted(router.replicas)) == ([1], [], [0])


def test_one_that_could_not_be_ended_at_once_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    router, context, starts = routed(2)
    scale(router, context, 1)
    (left,) = router.fleet._parting
    whole = starts.end

    def fails_once(names: Names) -> None:
        monkeypatch.setattr(starts, "end", whole)
        raise RuntimeError("a defect")

    monkeypatch.setattr(starts, "end", fails_once)
    for _ in range(2):
        context.deliver(Parted(left))
    assert (starts.ended, router.num_contained) == ([left], 1)


def test_what_one_that_leaves_has_after_its_time_goes_on_in_another_with_all_tokens() -> None:
    router, context, _ = routed(2)
    for request in (1, 2, 3):
        router.receive(asked(request))
    opens(router, 2, 1)
    draws(router, 1, "w", 7, 8)
    given(context, 0)
    scale(router, context, 1, grace_s=5.0)
    context.advance(5.0)
    (moved,) = given(context, 0)
    assert (moved.request, list(moved.resumed.output) if moved.resumed else []) == (2, [])
    assert Replica(names_of(1)).left(whole=False) in context.take(FRONT.gateway)
    draws(router, 1, "w", 9)  # what it still says is dropped
    assert router.routed[2].tokens == [7, 8]


def test_one_that_is_called_back_takes_requests_again_and_its_time_is_over_for_nobody() -> None:
    router, context, starts = routed(2)
    for request in (1, 2, 3):
        router.receive(asked(request))
    scale(router, context, 1, grace_s=5.0)
    scale(router, context, 2)
    context.advance(5.0)
    assert (starts.num_added, sorted(router.replicas)) == (0, [0, 1])
    given(context, 1)
    router.receive(asked(4))
    assert [each.request for each in given(context, 1)] == [4]


def test_who_leaves_is_called_back_when_another_one_is_lost_and_is_not_replaced_when_it_is_lost_itself() -> None:
    router, context, starts = routed(2)
    for request in (1, 2, 3):
        router.receive(asked(request))
    scale(router, context, 1)
    is_lost(router, context, 0)
    given(context, 1)
    router.receive(asked(4))
    assert [each.request for each in given(context, 1)] == [4]
    assert starts.given_up == [0]
    router, context, starts = routed(2)
    router.receive(asked(1))
    router.receive(asked(2))
    scale(router, context, 1)
    (leaver,) = [number for number, replica in router.replicas.items() if replica.leaving]
    is_lost(router, context, leaver)
    assert (starts.given_up, router.fleet.size.num_missing) == ([leaver], 0)


def test_one_that_comes_when_it_is_too_many_leaves_at_once() -> None:
    router, context, starts = routed(1)
    scale(router, context, 3)
    router.receive(asked(1))
    scale(router, context, 1)
    router.receive(ReplicaUp(names_of(1)))
    router.receive(ReplicaUp(names_of(2)))
    for number in (1, 2):
        router.receive(Parted(number))
    assert (sorted(router.replicas), starts.ended) == ([0], [1, 2])


def test_one_that_cannot_be_started_is_wanted_no_more() -> None:
    router, context, starts = routed(1)
    starts.why_not = "no memory"
    reply = scale(router, context, 2)
    assert (reply.ok, reply.message, reply.body["wanted"]) == (False, "no memory", 1)
    starts.why_not = ""
    scale(router, context, 2)
    router.receive(ReplicaFailed("no such folder"))
    assert [each for each in context.take(FRONT.gateway) if isinstance(each, ReplicaCounts)][-1].wanted == 1
    scale(router, context, 2)
    assert starts.num_added == 2


def test_numbers_out_of_bounds_and_of_replicas_in_a_trainers_group_are_refused() -> None:
    router, context, _ = routed(2, least=2, most=3)
    for replicas in (1, 4):
        assert scale(router, context, replicas).message == f"replicas: 2 to 3, as --dp and --max-dp say, not {replicas}"
    router, context, _ = routed(2, least=2, most=2)
    assert scale(router, context, 3).message.endswith("--max-dp makes room for more")
    router, context, _ = routed(2)
    join = JoinWeightGroup(master_address="localhost", master_port=1, rank_offset=1, world_size=3)
    router.receive(Ask(1, join, FRONT.gateway))
    assert scale(router, context, 1).message == JOINED
    router, context, _ = routed(2)
    router.receive(asked(1))
    router.receive(asked(2))
    scale(router, context, 1)
    router.receive(Ask(1, join, FRONT.gateway))
    assert "a replica leaves" in next(each for each in context.take(FRONT.gateway) if isinstance(each, Reply)).message


def test_a_trainers_group_fixes_the_number_while_it_is_joined_and_as_long_as_anybody_may_be_in_it() -> None:
    router, context, _ = routed(2)

    def answered(message: Order, ok: bool) -> None:
        router.receive(Ask(1, message, FRONT.gateway))
        assert scale(router, context, 1).message == JOINED
        for number in (0, 1):
            for each in [each for each in context.take(f"scheduler.{number}") if isinstance(each, Ask)]:
                router.receive(Reply(each.ticket, ok))

    join = JoinWeightGroup(master_address="localhost", master_port=1, rank_offset=1, world_size=3)
    answered(join, ok=False)
    assert scale(router, context, 2).ok
    answered(join, ok=True)
    assert scale(router, context, 2).message == JOINED
    answered(LeaveWeightGroup(), ok=False)
    assert scale(router, context, 2).ok


def test_one_that_is_at_an_order_leaves_when_it_has_answered() -> None:
    router, context, _ = routed(2)
    router.receive(Ask(1, SetState(max_running=4), FRONT.gateway))
    scale(router, context, 1)
    assert sorted(router.replicas) == [0, 1]
    for number in (0, 1):
        for each in [each for each in context.take(f"scheduler.{number}") if isinstance(each, Ask)]:
            router.receive(Reply(each.ticket, True))
    assert sorted(router.replicas) == [0]


def test_a_load_that_stays_adds_a_replica_and_nobody_is_added_where_the_order_says_so() -> None:
    router, context, starts = routed(1, at=2)
    for request in (1, 2, 3, 4):
        router.receive(asked(request))
    assert starts.num_added == 0
    context.advance(2.0)
    assert (starts.num_added, router.fleet.size.wanted) == (1, 2)
    scale(router, context, 1, on_load=False)
    context.advance(60.0)
    router.receive(asked(5))
    assert (starts.num_added, router.fleet.size.wanted) == (1, 1)


def test_who_leaves_is_called_back_when_nobody_else_serves_though_another_one_is_being_started() -> None:
    router, context, starts = routed(2)
    for request in (1, 2):
        router.receive(asked(request))
        opens(router, request, request - 1)
    given(context, 1)
    scale(router, context, 3)
    scale(router, context, 1)  # 0 stays, 1 leaves, and one is still being started
    is_lost(router, context, 0)
    router.receive(asked(3))
    assert [each.request for each in given(context, 1)] == [1, 3]
    router.receive(ReplicaFailed("no memory", "unified"))
    assert (starts.given_up, router.fleet.size.wanted, router.fleet.lost) == ([0], 1, "")


def test_sessions_of_one_that_leaves_are_closed_there_and_whoever_goes_on_is_told() -> None:
    router, context, starts = routed(2)
    router.receive(asked(1))
    ordered(router, OpenSession("s", 0), 1)
    context.take("scheduler.1")
    context.take(FRONT.gateway)
    scale(router, context, 1)
    (closing,) = context.take("scheduler.1")
    assert closing.message == CloseSession("s")
    router.receive(turn(2))
    (refused,) = [each for each in context.take(FRONT.gateway) if isinstance(each, Refused)]
    ended = "session 's' has ended: its replica leaves. Open it again, and send what it held"
    assert (refused.request, refused.cause, refused.message) == (2, Cause.INVALID, ended)
    assert (len(router.routed), given(context, 1)) == (1, [])
    router.receive(Reply(closing.ticket, True))  # which it had to wait for
    router.receive(Parted(1))
    assert starts.ended == [1]
    router.receive(Ask(7, CloseSession("s"), FRONT.gateway))
    reply = context.take(FRONT.gateway)[-1]
    assert (reply.ticket, reply.ok, reply.message) == (7, False, ended)
    router.receive(turn(3))  # nobody knows of it any more
    assert [each.request for each in given(context, 0)] == [1, 3]


def test_a_session_of_a_lost_replica_may_be_opened_again_elsewhere() -> None:
    router, context, _ = routed(2)
    ordered(router, OpenSession("s", 0), 0)
    router.receive(turn(1))
    is_lost(router, context, 0)
    (refused,) = [each for each in context.take(FRONT.gateway) if isinstance(each, Refused)]
    assert refused.request == 1
    assert refused.message.startswith("session 's' has ended: scheduler.0 is gone: ")
    ordered(router, OpenSession("s", 0), 1)
    router.receive(turn(2))
    assert [each.request for each in given(context, 1)] == [2]


def test_the_trace_of_one_that_owes_an_answer_and_has_no_requests_is_whole() -> None:
    router, context, _ = routed(2)
    router.receive(Ask(1, SetState(max_running=4), FRONT.gateway))
    scale(router, context, 1, grace_s=0.0)
    context.advance(0.0)
    (gone,) = {0, 1} - set(router.replicas)
    assert Replica(names_of(gone)).left(whole=True) in context.take(FRONT.gateway)


def test_a_load_by_which_none_could_be_started_asks_again_once_it_has_been_lower() -> None:
    router, context, starts = routed(1, at=2)
    starts.why_not = "no memory"
    for request in (1, 2, 3):
        router.receive(asked(request))
        opens(router, request, 0)
    context.advance(2.0)
    assert router.fleet.size.wanted == 1
    starts.why_not = ""
    context.advance(60.0)
    router.receive(asked(5))
    opens(router, 5, 0)
    context.advance(60.0)
    assert starts.num_added == 0
    for request in (1, 2, 5):
        ends(router, request, 0)
    router.receive(asked(4))
    context.advance(2.0)
    assert starts.num_added == 1


def test_one_that_is_called_back_and_is_to_leave_again_has_all_its_time_again() -> None:
    router, context, _ = routed(2)
    for request in (1, 2, 3):
        router.receive(asked(request))
    scale(router, context, 1, grace_s=5.0)
    context.advance(4.0)
    scale(router, context, 2)
    scale(router, context, 1, grace_s=5.0)
    context.advance(4.0)
    assert sorted(router.replicas) == [0, 1], "its first time is over, and not its second"
    context.advance(1.0)
    assert len(router.replicas) == 1


def test_while_the_server_drains_a_load_that_stays_adds_nobody() -> None:
    router, context, starts = routed(1, at=1)
    router.receive(asked(1))
    router.receive(Drain(30.0))
    context.advance(10.0)
    assert (starts.num_added, router.fleet.size.wanted) == (0, 1)


def test_once_weights_were_read_by_all_another_one_can_join_whatever_was_sent_before() -> None:
    router, _, _ = routed(1)
    ordered(router, PutWeights(source=FromBytes(b"")), 0)
    assert router.fleet.questions.present.untellable == SENT
    ordered(router, UpdateWeights(model_path="/new"), 0)
    assert (router.fleet.questions.present.untellable, len(router.fleet.questions.present.orders(None))) == ("", 1)
