"""Links between replicas, as a router has them made and linkers make them, driven by hand."""

from __future__ import annotations

from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.actors import links
from pawl.actors.linker import Linker
from pawl.actors.links import AGAIN_S
from pawl.actors.messages.hand_over import DecoderDown, DecoderUp, ForgetSender, PrefillerDown, PrefillerUp
from pawl.actors.messages.links import (
    AwaitPeer,
    EndPeer,
    JoinPeer,
    Linked,
    LinkLost,
    PeerAddress,
    PeerLost,
    PeerMet,
)
from pawl.actors.messages.replicas import ReplicaUp
from pawl.actors.names import DECODE, PREFILL, Names, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.tiers.hand_over_client import HandOverClient
from pawl.loops.tiers import PrefillOrder
from tests.actors.raising import Strike, each_struck

D, P, Q = names_of(0, DECODE), names_of(1, PREFILL), names_of(2, PREFILL)
WHY = "it was silent"


class Starts:
    """A starter that says it starts whatever is lost."""

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        return why_not

    def over(self, name: str, reason: str) -> None: ...


def routed(*names: Names) -> tuple[Router, ManualContext]:
    router = Router(RoundRobin(4), names, Starts(), linked=True)
    return router, ManualContext(router, "router")


def link(router: Router, context: ManualContext, prefill: Names, attempt: int) -> None:
    """Both linkers do as they are told."""
    assert context.take(prefill.linker) == [AwaitPeer(D.linker, attempt)]
    router.receive(PeerAddress(prefill.linker, D.linker, attempt, "ipc://there"))
    assert context.take(D.linker)[-1] == JoinPeer(prefill.linker, attempt, "ipc://there")
    router.receive(Linked(prefill.linker, D.linker, attempt))
    assert (context.take(D.scheduler), context.take(prefill.detokenizer)) == ([], [])
    router.receive(Linked(D.linker, prefill.linker, attempt))
    assert context.take(D.scheduler) == [PrefillerUp(prefill.detokenizer)]
    assert context.take(prefill.detokenizer) == [DecoderUp(D.scheduler, D.storage)]


def test_a_pair_is_told_of_each_other_once_both_have_met() -> None:
    router, context = routed(D, P)
    link(router, context, P, 1)


def test_a_pair_that_has_lost_each_other_is_told_so_and_linked_again_later() -> None:
    router, context = routed(D, P)
    link(router, context, P, 1)
    for _ in range(2):  # each side may say so
        router.receive(LinkLost(D.linker, P.linker, 1, WHY))
        router.receive(LinkLost(P.linker, D.linker, 1, WHY))
    assert context.take(D.scheduler) == [PrefillerDown(P.detokenizer, P.storage)]
    assert context.take(P.detokenizer) == [DecoderDown(D.scheduler)]
    assert set(context.take(P.linker)) == {EndPeer(D.linker, WHY)}
    context.advance(AGAIN_S)
    router.receive(LinkLost(P.linker, D.linker, 1, WHY))  # of the attempt before
    link(router, context, P, 2)


def test_an_address_that_cannot_be_had_is_tried_again() -> None:
    router, context = routed(D, P)
    context.take(P.linker)
    router.receive(LinkLost(P.linker, D.linker, 1, "no port is free"))
    assert context.take(D.scheduler) == []
    context.advance(AGAIN_S)
    link(router, context, P, 2)


def test_of_a_replica_that_is_lost_the_others_are_told_and_the_one_in_its_place_is_linked() -> None:
    router, context = routed(D, P)
    link(router, context, P, 1)
    router.receive(Down(P.scheduler, "killed"))
    assert context.take(D.linker) == [EndPeer(P.linker, f"{P.scheduler} is gone: killed")]
    router.receive(LinkLost(D.linker, P.linker, 1, WHY))
    context.advance(AGAIN_S)
    assert context.take(P.linker) == []
    assert context.take(D.scheduler) == [PrefillerDown(P.detokenizer, P.storage)]
    router.receive(ReplicaUp(Q))
    link(router, context, Q, 2)


def test_who_prefills_is_told_of_a_replica_that_is_lost_and_whose_prompts_nobody_waits_for() -> None:
    router, context = routed(D, P, Q)
    router.receive(Down(D.scheduler, "killed"))
    for prefill in (P, Q):
        assert context.take(prefill.detokenizer) == [DecoderDown(D.scheduler)]


def test_pages_of_who_prefilled_and_is_gone_are_not_read_any_more() -> None:
    told: Any = SimpleNamespace(prefiller_up=lambda *_: None, prefiller_down=lambda *_: None)
    actor: Any = SimpleNamespace(started=lambda: None)
    actor.context = context = ManualContext(actor, D.scheduler)
    client = HandOverClient(actor, 1.0, D, 1.0)
    client._remote = told
    client.receive(PrefillerUp(P.detokenizer), 0.0)
    client.receive(PrefillerDown(P.detokenizer, P.storage), 0.0)
    assert context.take(D.storage) == [ForgetSender(P.storage)]


def test_who_prefills_is_asked_under_a_number_that_nobody_had_before() -> None:
    told = list[int]()
    remote: Any = SimpleNamespace(prefiller_up=lambda number, now: told.append(number), prefiller_down=lambda *_: None)
    actor: Any = SimpleNamespace(started=lambda: None)
    actor.context = context = ManualContext(actor, D.scheduler)
    client = HandOverClient(actor, 1.0, D, 1.0)
    client._remote = remote
    for up in ("desk.1", "desk.2"):
        client.receive(PrefillerUp(up), 0.0)
    client.receive(PrefillerDown("desk.1", "storage.1"), 0.0)
    client.receive(PrefillerUp("desk.3"), 0.0)
    assert told == [0, 1, 2]
    client.prefill(PrefillOrder(7, 2, np.array([1], np.int32), "", ()))
    assert [each.ticket for each in context.take("desk.3")] == [7]


class Dials:
    """A dialer that writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.refused: Exception | None = None

    def wait(self, peer: str) -> str:
        self.asked.append(("wait", peer))
        if self.refused is not None:
            raise self.refused
        return "ipc://here"

    def join(self, peer: str, address: str) -> None:
        self.asked.append(("join", peer, address))
        if self.refused is not None:
            raise self.refused

    def end(self, peer: str, reason: str) -> None:
        self.asked.append(("end", peer, reason))


def linker() -> tuple[Linker, ManualContext, Dials]:
    dials = Dials()
    made = Linker(dials, D)
    return made, ManualContext(made, D.linker), dials


def test_a_linker_says_where_it_waits_whom_it_met_and_whom_it_lost() -> None:
    made, context, dials = linker()
    made.receive(AwaitPeer(P.linker, 1))
    made.receive(PeerMet(P.linker))
    made.receive(PeerLost(P.linker, WHY))
    made.receive(JoinPeer(P.linker, 2, "ipc://there"))
    made.receive(PeerMet(P.linker))
    assert dials.asked == [("wait", P.linker), ("join", P.linker, "ipc://there")]
    assert context.take("router") == [
        PeerAddress(D.linker, P.linker, 1, "ipc://here"),
        Linked(D.linker, P.linker, 1),
        LinkLost(D.linker, P.linker, 1, WHY),
        Linked(D.linker, P.linker, 2),
    ]


@pytest.mark.parametrize("refused", [OSError("no port is free"), ValueError("no address")])
@pytest.mark.parametrize("asked", [AwaitPeer(P.linker, 3), JoinPeer(P.linker, 3, "ipc://there")])
def test_what_cannot_be_linked_is_lost(asked: AwaitPeer | JoinPeer, refused: Exception) -> None:
    made, context, dials = linker()
    dials.refused = refused
    made.receive(asked)
    assert context.take("router") == [LinkLost(D.linker, P.linker, 3, str(refused))]


def test_nothing_is_said_of_a_peer_that_the_router_has_ended() -> None:
    made, context, dials = linker()
    made.receive(JoinPeer(P.linker, 1, "ipc://there"))
    made.receive(EndPeer(P.linker, WHY))
    for late in (PeerMet(P.linker), PeerLost(P.linker, WHY)):
        made.receive(late)
    assert dials.asked[-1] == ("end", P.linker, WHY)
    assert context.take_sent() == []


class Pair:
    """Two replicas are linked, lose each other and are linked again."""

    def __init__(self, strike: Strike) -> None:
        router = Router(RoundRobin(4), [D, P], Starts(), linked=True)
        context = ManualContext(router, "router")
        self.known: list[str] = []
        """What the decode replica hears of the other, each time that it is another word."""
        for _ in range(2):
            (asked, *_) = [message for message in context.take(P.linker) if isinstance(message, AwaitPeer)]
            for message in (
                PeerAddress(P.linker, D.linker, asked.attempt, "ipc://there"),
                Linked(P.linker, D.linker, asked.attempt),
                Linked(D.linker, P.linker, asked.attempt),
                LinkLost(D.linker, P.linker, asked.attempt, WHY),
                LinkLost(P.linker, D.linker, asked.attempt, WHY),
            ):
                strike.deliver(router, message)
                self.known += [type(told).__name__ for told in context.take(D.scheduler)]
            timers, context.timers = context.timers, []
            for timer in timers:
                strike.deliver(router, timer.message)


def test_an_exception_at_any_line_of_links_costs_no_link() -> None:
    def told(life: Pair) -> list[str]:
        """A second word of the same says nothing new."""
        return [word for word, _ in groupby(life.known)]

    whole = ["PrefillerUp", "PrefillerDown"] * 2
    assert told(Pair(Strike(()))) == whole
    tried = list(each_struck((links,), Pair, said="d60a27fb"))
    assert len(tried) > 20
    assert [name for name, life in tried if told(life) != whole] == []
