"""The desk of a prefill replica: an exception at any of its lines costs one prefill at the most, which its asker then
computes, and leaves nothing behind."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from pawl.actors import prefill_desk
from pawl.actors.messages.control import TraceLoss
from pawl.actors.messages.generate import Ended, Generate, Refused, StepTokens, Timing, Usage
from pawl.actors.messages.hand_over import (
    CancelPrefill,
    DecoderDown,
    DecoderUp,
    ForgetReceiver,
    Prefill,
    Received,
    SendPages,
    TicketOver,
)
from pawl.actors.names import PREFILL, names_of
from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort
from tests.actors.raising import Strike, each_struck

TOKENS = np.arange(9, dtype=np.int32)
NOTHING = np.zeros(0, np.int32)


class Life:
    """Two decode replicas ask, of which one is lost: one prefill is cancelled, one is refused, one finds no room, a
    stranger asks for one, and the others are computed."""

    def __init__(self, strike: Strike) -> None:
        self.names = names_of(0, PREFILL)
        self.desk = PrefillDesk(self.names)
        self.context = ManualContext(self.desk, self.names.router)
        self.refused: list[tuple[str, int]] = []
        """Who asked, and its ticket."""
        self.sent: dict[int, int] = {}
        """Job -> ticket, of pages that the storage is to send."""
        self.over: defaultdict[str, list[int]] = defaultdict(list)
        """Storage -> tickets for which it waits no more."""
        self.begun: dict[int, str] = {}
        """Request -> its name, as the scheduler has it."""
        self.aborted: list[str] = []
        """Names."""
        self.forgotten: list[str] = []
        self.losses = 0
        self._strike = strike
        for number in (1, 2):
            self.tell(DecoderUp(f"scheduler.{number}", f"storage.{number}"))
        for ticket in (1, 2, 3, 4):
            self.asks(1 + ticket % 2, ticket)
        self.tell(CancelPrefill(2, "scheduler.1"))
        self.ends(1)
        self.tell(Refused(3, Cause.OVERLOADED, "no room", 503))
        self.begun.pop(3, None)
        self.context.full.add(self.names.scheduler)
        self.asks(1, 5)
        self.context.full.clear()
        self.asks(3, 6)
        self.tell(TraceLoss("recorder.0", "the disk was full", 1))
        self.asks(2, 7)
        self.tell(DecoderDown("scheduler.2"))
        self.asks(1, 8)
        for request in list(self.begun):
            self.ends(request)

    def asks(self, number: int, ticket: int) -> None:
        self.tell(Prefill(ticket=ticket, scheduler=f"scheduler.{number}", tokens=TOKENS, salt="", keys=(bytes(16),)))

    def ends(self, request: int) -> None:
        """The scheduler has computed it."""
        if self.begun.pop(request, None) is not None:
            end = Ended(0, request, Cause.HANDED_OVER, Usage(9, 0, 0), Timing(0.0))
            self.tell(StepTokens(NOTHING, NOTHING, ended=(end,)))

    def tell(self, message: Any) -> None:
        self._strike.deliver(self.desk, message)
        for sent in self.context.take_sent():
            assert (sent.lane is Lane.DATA) == isinstance(sent.message, Generate), sent
            match sent.message:
                case Received(ticket=ticket, num_cached=0):
                    self.refused.append((sent.to, ticket))
                case SendPages(job=job, ticket=ticket):
                    self.sent[job] = ticket
                case TicketOver(storage=storage, ticket=ticket):
                    self.over[storage].append(ticket)
                case Generate(request=request, rid=rid):
                    self.begun[request] = rid
                case Abort(requests=requests):
                    self.aborted += [self.begun.pop(request) for request in requests if request in self.begun]
                case ForgetReceiver(storage=storage):
                    self.forgotten.append(storage)
                case TraceLoss():
                    self.losses += 1


WHOLE = Life(Strike(()))


def wrong(life: Life) -> list[str]:
    """What does not hold of a life in which one line has failed."""
    found = []
    if life.desk.num_open or life.begun:
        found.append(f"{life.desk._jobs} are open, {life.begun} were begun")
    more = [each for each in life.refused if each not in WHOLE.refused]
    if len(more) > 1 or len(life.refused) != len(set(life.refused)) or not {*WHOLE.refused} <= {*life.refused}:
        found.append(f"{life.refused} were refused")
    for asker, ticket in life.refused:
        if ticket in life.sent.values() and ticket not in life.over[asker.replace("scheduler", "storage")]:
            found.append(f"pages are sent for ticket {ticket} of {asker}, which was refused")
    if not {*WHOLE.aborted} - {f"{asker}/{ticket}" for asker, ticket in more} <= {*life.aborted}:
        found.append(f"{life.aborted} were aborted")
    if {*life.forgotten} != {"storage.2"} or not life.losses or 2 not in life.over["storage.1"]:
        found.append(f"{life.forgotten} were forgotten, {life.losses} losses told, {life.over['storage.1']} are over")
    return found


def test_a_desk_refuses_cancels_and_forgets_what_it_should() -> None:
    assert wrong(WHOLE) == []
    assert WHOLE.refused == [("scheduler.1", 5), ("scheduler.3", 6)]
    assert WHOLE.sent == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 7, 7: 8}
    assert WHOLE.over == {"storage.1": [2, 5]}
    assert WHOLE.aborted == ["scheduler.1/2", "scheduler.2/7"]


def test_an_exception_at_any_line_of_the_desk_costs_one_prefill_at_the_most() -> None:
    tried = list(each_struck((prefill_desk,), Life, said="21b70b13"))
    assert len(tried) > 30
    assert {name: wrong(life) for name, life in tried if wrong(life)} == {}
    assert all(life.desk.num_contained == 1 for _, life in tried)
