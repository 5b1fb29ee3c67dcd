"""Whom the router tells what, and in which order, when replicas come and go: prefill and decode replicas that know each
other as soon as there are requests, and those that have to be linked first."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pawl.actors.control import Ask
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Generate
from pawl.actors.messages.links import Linked, PeerAddress
from pawl.actors.messages.replicas import ReplicaFailed, ReplicaUp
from pawl.actors.names import DECODE, PREFILL, ROUTER, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down, Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.loops.orders.limits import SetState
from pawl.loops.orders.requests import Drain
from tests.actors.test_links import Starts
from tests.actors.test_router import asked

D, P, Q, E = names_of(0, DECODE), names_of(1, PREFILL), names_of(2, PREFILL), names_of(3, DECODE)
PAIRS = [(P, D), (P, E), (Q, D), (Q, E)]
COME_AND_GO: list[Any] = [
    Down(P.storage, "failed"),
    Down(D.scheduler, "failed"),
    ReplicaUp(names_of(5, PREFILL)),
    ReplicaUp(names_of(6, DECODE)),
    ReplicaFailed("no memory", PREFILL),
    Drain(3.0),
]
BEGIN = ["gateway ReplicaJoined recorder.0", "gateway ReplicaJoined recorder.3", "gateway ReplicaCounts 2"]
LOST = ["gateway ReplicaLost recorder.0", "gateway Stalled 0.0"]
MEET = [
    f"{to}"
    for prefill in (1, 2)
    for decode in (0, 3)
    for to in (f"desk.{prefill} DecoderUp scheduler.{decode}", f"scheduler.{decode} PrefillerUp desk.{prefill}")
]
PARTED = ["scheduler.0 PrefillerDown desk.1", "scheduler.3 PrefillerDown desk.1"]
LAST = [
    ["gateway NotReplaced a replica could not be started again: no memory"],
    ["scheduler.3 Drain 3.0", "scheduler.6 Drain 3.0"],
]
KNOWN = [
    BEGIN,
    [*MEET, "gateway Placed 1", "scheduler.0 Generate 1"],
    [*PARTED, "gateway ReplicaLost recorder.1"],
    ["desk.2 DecoderDown scheduler.0", *LOST, "gateway Placed 1", "scheduler.3 Generate 1", "gateway ReplicaCounts 2"],
    ["desk.5 DecoderUp scheduler.3", "scheduler.3 PrefillerUp desk.5"],
    [
        "gateway ReplicaJoined recorder.6",
        *("desk.2 DecoderUp scheduler.6", "scheduler.6 PrefillerUp desk.2"),
        *("desk.5 DecoderUp scheduler.6", "scheduler.6 PrefillerUp desk.5"),
        "gateway ReplicaCounts 2",
    ],
    *LAST,
]
LINKED = [
    [*BEGIN, *(f"{prefill.linker} AwaitPeer {decode.linker}" for prefill, decode in PAIRS)],
    *(
        [f"{decode.linker} JoinPeer {prefill.linker}", *MEET[2 * number : 2 * number + 2]]
        for number, (prefill, decode) in enumerate(PAIRS)
    ),
    [*PARTED, "linker.0 EndPeer linker.1", "linker.3 EndPeer linker.1", "gateway ReplicaLost recorder.1"],
    ["desk.2 DecoderDown scheduler.0", "linker.2 EndPeer linker.0", *LOST, "gateway ReplicaCounts 2"],
    ["linker.5 AwaitPeer linker.3"],
    [
        "gateway ReplicaJoined recorder.6",
        *("linker.2 AwaitPeer linker.6", "linker.5 AwaitPeer linker.6"),
        "gateway ReplicaCounts 2",
    ],
    *LAST,
]


@pytest.mark.parametrize(("linked", "wanted"), [(False, KNOWN), (True, LINKED)])
def test_everybody_is_told_of_everybody_in_order_and_ahead_of_requests(linked: bool, wanted: list[list[str]]) -> None:
    router = Router(RoundRobin(4), (D, P, Q, E), Starts(), linked=linked)
    context = ManualContext(router, ROUTER)

    def told(*messages: Any) -> list[str]:
        for message in messages:
            router.receive(message)
        sent = context.take_sent()
        assert all(each.lane is Lane.CONTROL or isinstance(each.message, Generate) for each in sent)
        return [f"{to} {type(message).__name__} {msgspec.structs.astuple(message)[0]}" for to, message, _ in sent]

    said = [told()]
    if linked:
        for number, (prefill, decode) in enumerate(PAIRS, 1):
            address = PeerAddress(prefill.linker, decode.linker, number, "ipc://there")
            met = Linked(prefill.linker, decode.linker, number), Linked(decode.linker, prefill.linker, number)
            said.append(told(address, *met))
    else:
        said.append(told(asked(1)))
    said += [told(message) for message in COME_AND_GO]
    assert said == wanted


def test_who_prefills_and_is_lost_owes_no_answer_any_more() -> None:
    router = Router(RoundRobin(4), (D, P, Q), Starts())
    context = ManualContext(router, ROUTER)
    router.receive(Ask(9, SetState(max_running=2), "gateway"))
    asks = {sent.to: sent.message.ticket for sent in context.take_sent() if isinstance(sent.message, Ask)}
    assert [*asks] == [each.scheduler for each in (D, P, Q)]
    for each in (D, Q):
        router.receive(Reply(asks[each.scheduler], True))
    assert not [sent for sent in context.take_sent() if isinstance(sent.message, Reply)]
    router.receive(Down(P.worker, "failed"))
    replies = [sent.message for sent in context.take_sent() if isinstance(sent.message, Reply)]
    assert [(reply.ticket, reply.ok) for reply in replies] == [(9, True)]
    assert not router.fleet.questions.waits_for(P.replica)
