"""The router, an exception at any of whose lines costs one request at the most."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from pawl.actors import placement, replica_asks, routed, router
from pawl.actors.control import Ask
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import (
    Admitted,
    Ended,
    Generate,
    Opened,
    Refused,
    StepTokens,
    TextOptions,
    Timing,
    Usage,
)
from pawl.actors.names import FRONT, ROUTER, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.manual import ManualContext
from pawl.lifecycle.states import Cause
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort, Drain, Finish
from pawl.loops.orders.sessions import OpenSession
from pawl.loops.recovery import FAILED
from pawl.memory.arrays import Int32s
from tests.actors.raising import Strike, each_struck
from tests.actors.test_router import PROMPT, Starts, asked

COUNT = 5
"""Tokens that each request gets."""
NOTHING = Usage(3, 0, 0)


def drawn(request: int, index: int) -> int:
    """Token number `index` of a request, whoever draws it."""
    return 100 * request + index


class Replica:
    """What a scheduler says of the requests that it is given."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows: dict[int, int] = {}
        self.left: dict[int, int] = {}
        """Request -> index of its next token."""

    def hears(self, message: Any) -> list[Any]:
        match message:
            case Generate(request=request, resumed=resumed):
                row = next(row for row in range(9) if row not in self.rows.values())
                self.rows[request] = row
                self.left[request] = 0 if resumed is None else len(resumed.output)
                if resumed is not None:
                    assert resumed.output.tolist() == [drawn(request, index) for index in range(self.left[request])]
                    assert resumed.num_retractions == 1
                opened = Opened(row, request, message.text_options, 3, message.tokens, replica=self.number)
                return [opened, self._told(admitted=(Admitted(row, 0, Timing(0.0, 0.0)),))]
            case Abort(requests, cause):
                return [self.ends(request, cause) for request in requests if request in self.left]
            case Ask(ticket=ticket):
                return [Reply(ticket, True)]
            case Finish(request):
                return [self.ends(request, Cause.STOP_STRING)] if request in self.left else []
        return []

    def step(self) -> list[Any]:
        """One token for everybody; who has all ends."""
        if not self.left:
            return []
        rows = [self.rows[request] for request in self.left]
        tokens = [drawn(request, index) for request, index in self.left.items()]
        self.left = {request: index + 1 for request, index in self.left.items()}
        told = self._told(rows, tokens)
        return [told, *(self.ends(request, Cause.LENGTH) for request in list(self.left) if self.left[request] >= COUNT)]

    def ends(self, request: int, cause: Cause) -> StepTokens:
        del self.left[request]
        return self._told(ended=(Ended(self.rows.pop(request), request, cause, NOTHING, Timing(0.0)),))

    def _told(self, rows: list[int] | Int32s = (), tokens: list[int] = (), **more: Any) -> StepTokens:  # type: ignore[assignment]
        return StepTokens(np.array(rows, np.int32), np.array(tokens, np.int32), replica=self.number, **more)


class Life:
    """Requests of two replicas, of which first one is lost and then the other: some are aborted, some have found their
    stop string, one is refused, one waits for room, and in the end all is over."""

    def __init__(self, strike: Strike) -> None:
        self.router = Router(RoundRobin(4), [names_of(number) for number in range(2)], Starts())
        self.context = ManualContext(self.router, ROUTER)
        self.replicas = [Replica(number) for number in range(2)]
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.ends: defaultdict[int, list[Cause]] = defaultdict(list)
        self.opened: list[int] = []
        self.replies: list[Reply] = []
        self._strike = strike
        self._refuses = 6
        for request in (1, 2, 3, 4):
            self.tell(asked(request))
        self.steps(2)
        self.tell(Finish(1, 2))
        self.tell(Abort((2, 9), Cause.CLIENT, "enough"))
        self.steps(1)
        self.context.full.add("scheduler.0")
        self.context.full.add("scheduler.1")
        self.tell(asked(5))
        self.context.full.clear()
        self.context.advance(1.0)
        self.tell(asked(6))
        self.tell(asked(7))
        self.steps(1)
        self.loses(1, Abort((4,), Cause.INTERNAL, "broken"), Abort((7,), Cause.CLIENT, "enough"))
        self.tell(Ask(30, FlushCache()))
        self.tell(asked(8))
        self.steps(COUNT + 2)
        self.at_rest = [(each.num_open, each.num_tokens) for each in self.router.replicas.values()]
        for request in range(9, 15):
            self.tell(asked(request))
        self.steps(2)
        self.loses(0, Finish(10, 1), Abort((11,), Cause.INTERNAL, "broken"), Abort((12,), Cause.CLIENT, "enough"))
        self.tell(Finish(13, 2))
        self.tell(Abort((14,), Cause.CLIENT, "enough"))
        self.tell(Opened(0, 14, TextOptions(), 3, PROMPT, replica=0))  # by one that is lost
        self.tell(Ask(31, FlushCache()))

    def loses(self, number: int, *orders: Any) -> None:
        """A replica, which does not hear of these any more."""
        self.context.gone.add(f"scheduler.{number}")
        self.replicas[number].left.clear()
        for order in orders:
            self.tell(order)
        self.tell(Down(f"scheduler.{number}", "failed"))

    def tell(self, message: Any) -> None:
        self._strike.deliver(self.router, message)
        self.carry()

    def carry(self) -> None:
        """What the router has sent, and all that is said to it because of that."""
        while self.context.sent:
            (sent, *self.context.sent) = self.context.sent
            for answer in self._answers(sent.to, sent.message):
                self._strike.deliver(self.router, answer)

    def steps(self, count: int) -> None:
        for _ in range(count):
            for replica in self.replicas:
                for message in replica.step():
                    self.tell(message)

    def _answers(self, to: str, message: Any) -> list[Any]:
        if to == FRONT.detokenizer and isinstance(message, Opened):
            assert message.row == message.request
            self.opened.append(message.request)
        elif to == FRONT.detokenizer and isinstance(message, StepTokens):
            for row, token in zip(message.rows.tolist(), message.tokens.tolist(), strict=True):
                self.tokens[row].append(token)
            for end in message.ended:
                assert end.row == end.request
                self.ends[end.request].append(end.cause)
        elif to == FRONT.gateway and isinstance(message, Refused):
            self.ends[message.request].append(message.cause)
        elif to == FRONT.gateway and isinstance(message, Reply):
            self.replies.append(message)
        for replica in self.replicas:
            if to == f"scheduler.{replica.number}":
                if isinstance(message, Generate) and message.request == self._refuses:
                    return [Refused(6, Cause.OVERLOADED, "no room", 503)]
                return replica.hears(message)
        return []


ENDS = {
    **dict.fromkeys((1, 10, 13), Cause.STOP_STRING),
    **dict.fromkeys((2, 7, 9, 12, 14), Cause.CLIENT),
    **dict.fromkeys((4, 11), Cause.INTERNAL),
    6: Cause.OVERLOADED,
}
"""The others get all their tokens."""


def wrong(life: Life) -> list[str]:
    """What does not hold of a life in which one line has failed."""
    found, failed = [], [request for request, causes in life.ends.items() if causes == [Cause.INTERNAL]]
    lost = [request for request in failed if ENDS.get(request) is not Cause.INTERNAL]
    for request in range(1, 15):
        tokens = [drawn(request, index) for index in range(COUNT)]
        if request not in lost and life.ends[request] != [ENDS.get(request, Cause.LENGTH)]:
            found.append(f"{request} has ended {life.ends[request]}")
        if life.tokens[request] != tokens[: len(life.tokens[request])]:
            found.append(f"{request} has had {life.tokens[request]}")
        if request not in lost and request not in ENDS and len(life.tokens[request]) < COUNT:
            found.append(f"{request} has had {len(life.tokens[request])} tokens")
    if len(lost) > 1:
        found.append(f"{lost} are lost")
    if life.opened != sorted(set(life.opened)) or not {1, 3, 5, 8, 10} - {*lost} <= {*life.opened}:
        found.append(f"{life.opened} were opened")
    if [reply.ticket for reply in life.replies] != [30, 31] or life.replies[1].ok:
        found.append(f"{life.replies} were the answers")
    if len(lost) + (not life.replies[0].ok) > 1:
        found.append(f"{lost} are lost, and an order")
    open_ = [(replica.num_open, replica.num_tokens) for replica in life.router.replicas.values()]
    if life.router.routed or open_ or life.at_rest != [(0, 0)]:
        found.append(f"{sorted(life.router.routed)} are open, {open_}, {life.at_rest}")
    return found


def test_an_exception_at_any_line_of_the_router_costs_one_request_at_the_most() -> None:
    modules = router, routed, placement
    assert wrong(Life(Strike(modules))) == []
    tried = list(each_struck(modules, Life, said="ec72602e"))
    assert len(tried) > 100
    assert {name: wrong(life) for name, life in tried if wrong(life)} == {}
    assert all(life.router.num_contained == 1 for _, life in tried)


@pytest.mark.parametrize(
    "message", [Opened(1, 2, TextOptions(), 3, PROMPT, replica=1), Finish(2, 1)], ids=lambda each: type(each).__name__
)
def test_what_fails_twice_for_the_sake_of_one_request_ends_that_one(message: Any) -> None:
    spared, context = fails_twice(message)
    assert spared
    assert context.take("scheduler.1") == [Abort((2,), Cause.INTERNAL, FAILED)]
    assert context.take("scheduler.0") == []


def test_what_fails_twice_and_is_of_no_request_ends_the_router() -> None:
    with pytest.raises(Broken):
        fails_twice(Drain(3.0))


class Broken(Exception):
    """What a message comes to, whenever it comes."""


def fails_twice(message: Any) -> tuple[bool, ManualContext]:
    """Whether a router with a request at each of two replicas goes on behind a message that it can never handle."""
    made = Router(RoundRobin(4), [names_of(number) for number in range(2)], Starts())
    context = ManualContext(made, ROUTER)
    for request in (1, 2):
        made.receive(asked(request))
    context.take_sent()
    handle = made.receive

    def receive(each: Any) -> None:
        if each is message:
            raise Broken
        handle(each)

    made.receive = receive  # type: ignore[method-assign]
    return made.spares(message, Broken()), context


def test_who_has_ended_is_remembered_for_so_many_that_ended_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed, "MOST_ENDED", 2)
    others = routed.Others()
    for request in (1, 2, 3):
        others.end(request, replica=7)
    order = Abort((1,), Cause.INTERNAL)
    assert [others.abort(request, order) for request in (1, 2, 3)] == [routed.NOBODY, 7, 7]
    assert [others.came(request) for request in (2, 3)] == [None, None]


def test_an_order_for_who_was_refused_on_its_way_is_forgotten_when_a_later_one_comes() -> None:
    others, order = routed.Others(), Abort((4, 5, 6, 7), Cause.CLIENT)
    for request in (4, 5, 6, 7):
        assert others.abort(request, order) == routed.NOBODY
    assert others.came(6) is order
    assert list(others._early) == [7]
    assert others.came(8) is None
    assert others._early == {}


def test_names_of_sessions_are_remembered_up_to_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_asks, "MOST_SESSIONS", 2)
    life = Router(RoundRobin(4), [names_of(0)], Starts())
    ManualContext(life, ROUTER)
    for ticket, name in enumerate("abac"):
        life.receive(Ask(ticket, OpenSession(capacity=9, session=name)))
    assert list(life.fleet.questions.sessions) == ["a", "c"], "the one that was opened last twice stays"
