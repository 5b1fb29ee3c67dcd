"""What reaches a loop from outside, beside the workers' answers: requests, and orders.

A live scheduler and a replay hand them in here, so both apply them with the same code.

An order is data that is recorded as it arrives (`Delivered`), and one function of it and the loop. What follows from it
(endings, a flush) is recorded by the loop, and must come out the same when the order is given again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from pawl.lifecycle.numbers import Newest, passed
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause
from pawl.lifecycle.weight_source import Sent
from pawl.loops.adapter import AdapterEffects
from pawl.loops.adapters import Adapters
from pawl.loops.loop import Loop
from pawl.loops.requests import NO_OUTPUT
from pawl.loops.residency import MemoryKeeper
from pawl.loops.sessions import Begun
from pawl.loops.weight_groups import GroupKeeper, Members
from pawl.loops.weights import Served, WeightKeeper
from pawl.memory.arrays import Int32s

STOPPING = "the server stops"


class Outcome(NamedTuple):
    """What became of an order, for whoever gave it."""

    ok: bool
    message: str = ""
    facts: dict[str, Any] = {}  # noqa: RUF012 - never changed
    after_steps: bool = False
    """It is to be told when the steps that are in flight have come back."""


DONE = Outcome(True)
LATER = Outcome(True)
"""Of an order that has begun something: who gave it is answered when that has ended."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that a loop is told to do; each is in a module of `loops/orders/`.

    The tag is the order's name in traces. It never changes, and neither does the meaning of a field.
    """

    at_rest: ClassVar[bool] = False
    """It can be done only while the loop rests. Such an order has a field `timeout_s`: how long to wait for that; 0:
    now or not at all."""

    def can_be_done(self, loop: Loop) -> bool:
        """Whether the loop rests, as far as an order `at_rest` needs."""
        return loop.at_rest

    def recorded(self) -> Order:
        """What a trace has of it: all but what is too large, and decides nothing here."""
        return self

    def apply(self, intake: Intake, now: float) -> Outcome | None:
        """Do it, between two steps: no step is being planned, and some may be in flight. None: it cannot fail, and
        there is nothing to tell."""
        raise NotImplementedError


class WaitEnds(Order, frozen=True, tag="wait_ends"):
    """The order that waits under this number waits no longer: the loop rests, or the time is over. It is done now, as
    far as it can be."""

    number: int

    def apply(self, intake: Intake, now: float) -> None:
        order = intake.waiting.pop(self.number, None)
        if order is not None:
            intake.number = self.number
            intake.answer(self.number, order.apply(intake, now))


class Caller(Protocol):
    """Who hands in what arrives, and hears of it again."""

    def answered(self, number: int, outcome: Outcome) -> None:
        """The order with this number is done, or refused."""

    def remind(self, delay_s: float, order: Order) -> None:
        """Deliver `order` in so many seconds."""

    def stage(self, ticket: int, source: Sent, last: bool) -> None:
        """Have new weights laid out beside the old ones; WeightsStaged or WeightsFailed is to follow."""

    @property
    def members(self) -> Members:
        """Of trainers' groups."""

    def exchanged(self, served: Served) -> None:
        """These weights are served from now on."""

    @property
    def adapter_effects(self) -> AdapterEffects:
        """What adapters need of others."""


class Intake:
    """Requests and orders, in the order of their arrival, for one loop."""

    def __init__(self, loop: Loop, caller: Caller, served: Served) -> None:
        """`served`: the weights that the engine starts with."""
        self.loop = loop
        self.weights = WeightKeeper(loop, served, caller.exchanged, self._told)
        self.groups = GroupKeeper(loop.journal, self.weights, caller.members, self._told)
        self.memory = MemoryKeeper(
            loop,
            lambda: self.weights.updating,
            lambda number, ok, text: self.answer(number, Outcome(ok, text, self.memory.facts)),
        )
        self.adapters = next((each for each in loop.companions if isinstance(each, Adapters)), None)
        """None: the engine has no slots for any."""
        if self.adapters is not None:
            self.adapters.attach(loop, caller.adapter_effects, self._answer_of_adapters)
        self.waiting: dict[int, Order] = {}
        """Orders that wait for rest, by number."""
        self.begun: Begun | None = None
        """The turn of a session that the next request is."""
        self.draining = False
        """Requests that arrive are ended at once."""
        self.remind: Callable[[float, Order], None] = caller.remind
        self.stage: Callable[[int, Sent, bool], None] = caller.stage
        self.number = 0
        """Of who waits for the outcome of the order that is being carried out."""
        self._answered = caller.answered
        self._newest = Newest()
        self._ended_early: dict[int, tuple[Cause, str]] = {}
        """Aborts that overtook their request."""
        self._ending: tuple[tuple[int, ...], Cause, str] | None = None
        """What `abort_all` is at."""

    # ---- requests ----

    def submit(
        self,
        info: RequestInfo,
        tokens: Int32s,
        priority: int,
        deadline: float,
        now: float,
        output: Int32s = NO_OUTPUT,
    ) -> None:
        """A request has arrived. Those of a kind come in the order of their numbers (`lifecycle/numbers.py`), but for
        those with `output`: another replica has had them, and was lost."""
        self._newest.came(info.request)
        if self.loop.idle:
            self.loop.limits.ready_at = now
        begun, self.begun = self.begun, None
        if begun is not None and begun.turn is not None:
            tokens = begun.turn.tokens
        refused = begun.refusal if begun is not None else ""
        if self.adapters is not None:
            refused = refused or self.adapters.refusal(info.namespace)
        refusal = (Cause.INVALID, refused) if refused else None
        self.loop.requests.submit(info, tokens, priority, deadline, now, refusal, output)
        if begun is not None and info.request in self.loop.table.row_of:
            self.loop.requests.sessions.went_live(begun)
        if self.adapters is not None and info.request in self.loop.table.row_of:
            self.adapters.went_live(info.namespace, now)
        end = self._ended_early.pop(info.request, None)
        for refused_before in passed(info.request, self._ended_early):
            del self._ended_early[refused_before]
        if end is None and self.draining:
            end = (Cause.DRAINED, STOPPING)
        if end is not None:
            self.loop.requests.abort(info.request, end[0], now, end[1])

    def forget(self, request: int) -> None:
        """Something failed for the sake of this request: what came of it before itself is gone, and no other's."""
        self.begun = None
        self._newest.came(request)
        self._ended_early.pop(request, None)

    def abort_all(self, requests: tuple[int, ...], cause: Cause, message: str, now: float) -> None:
        """End these; a recovery from a failure in between goes on with it."""
        self._ending = requests, cause, message
        for request in requests:
            self.abort(request, cause, message, now)
        self._ending = None

    def recovered(self, now: float) -> None:
        """The loop has failed in the middle of something: who was being ended is not live when it goes on."""
        self.loop.requests.sessions.recovered(self.loop.table.row_of)
        if self.adapters is not None:
            self.adapters.recovered(now)
        if self._ending is not None:
            self.abort_all(*self._ending, now)

    def abort(self, request: int, cause: Cause, message: str, now: float) -> None:
        """End a request, also one that is still to come."""
        if self._newest.has_been(request):
            self.loop.requests.abort(request, cause, now, message)
        else:
            self._ended_early[request] = (cause, message)

    # ---- orders ----

    def deliver(self, order: Order, now: float, number: int = 0) -> None:
        """An order has arrived: record it and do it, or let it wait for rest. `number` is of whoever waits for its
        outcome, and no other order's; 0: nobody does."""
        if isinstance(order, WaitEnds) and order.number not in self.waiting:
            return  # it was done before its time was over
        self.loop.journal.delivered(order.recorded(), number, now)
        patience_s: float = getattr(order, "timeout_s") if order.at_rest else 0.0  # noqa: B009
        if patience_s > 0 and not order.can_be_done(self.loop):
            self.waiting[number] = order
            self.remind(patience_s, WaitEnds(number))
        else:
            self.number = number
            self.answer(number, order.apply(self, now))

    def answer(self, number: int, outcome: Outcome | None) -> None:
        """Tell the outcome, where somebody waits for it."""
        if number and outcome is not LATER:
            self._answered(number, outcome or DONE)

    @property
    def owed(self) -> set[int]:
        """Numbers of those who are answered later: their orders wait for rest, or have begun something."""
        begun = {each.asker for each in (self.weights.update, self.memory.move) if each is not None}
        return {*self.waiting, *begun, *self.groups.askers, *(() if self.adapters is None else self.adapters.owed)}

    def _told(self, number: int, ok: bool, text: str) -> None:
        self.answer(number, Outcome(ok, text))

    @property
    def adapter_facts(self) -> dict[str, Any]:
        """What a reply about adapters says of all of them."""
        named = () if self.adapters is None else self.adapters.named()
        return {"loaded_adapters": {adapter.name: adapter.source for adapter in named}}

    def _answer_of_adapters(self, number: int, ok: bool, message: str) -> None:
        self.answer(number, Outcome(ok, message, self.adapter_facts))

    def turn(self, now: float) -> None:
        """All that has arrived has been handed in: let the loop work, and do what waits for rest if it rests."""
        if not self.weights.swapping:
            self.loop.turn(now)
        for number, order in list(self.waiting.items()):
            if order.can_be_done(self.loop):
                self.deliver(WaitEnds(number), now)
