"""Replicas that come and go before the router, an exception at any of whose lines leaves none half counted."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors import agenda, fleet, fleet_size, joining, links, prefillers, replica_asks, router
from pawl.actors.control import Ask
from pawl.actors.control.scaling import ScaleReplicas
from pawl.actors.messages.control import Reply
from pawl.actors.messages.links import AwaitPeer, JoinPeer, Linked, PeerAddress
from pawl.actors.messages.replicas import (
    NoneLeft,
    NotReplaced,
    Parted,
    ReplicaCounts,
    ReplicaFailed,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaLost,
    ReplicaUp,
)
from pawl.actors.names import DECODE, FRONT, PREFILL, ROUTER, UNIFIED, Names, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down
from pawl.actors.scaling import Rule
from pawl.actors.simulation.manual import ManualContext
from pawl.loops.orders.limits import SetState
from pawl.loops.orders.serving import Pause
from tests.actors.raising import Strike, each_struck
from tests.actors.test_router import asked

MODULES = {False: (agenda, fleet, fleet_size, joining, replica_asks, router), True: (links, prefillers)}
"""What a life goes through where nobody prefills for others, and what it goes through beside where somebody does."""
FIRST_NEW = 10
"""Number of the first replica that is started later."""


class Starts:
    """Starts whatever it is told to, as soon as that is looked for."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        """Replicas that were lost, or that have left, each time that it was told to end one."""
        self.why_not = ""
        """None is started any more."""
        self.overs = 0
        self.due: list[str] = []
        """Roles of those that are to come."""

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        self.ended.append(lost.replica)
        why_not = why_not or self.why_not
        self.due += [] if why_not else [lost.role]
        return why_not

    def add(self, role: str) -> str:
        self.due.append(role)
        return ""

    def end(self, names: Names) -> None:
        self.ended.append(names.replica)

    def over(self, name: str, reason: str) -> None:
        self.overs += 1


class Life:
    """Two replicas of which one is lost, a third that is added and lost as it joins, one that cannot be started, one
    that leaves; and, apart, a prefill replica that is lost. In the end all are lost."""

    def __init__(self, strike: Strike, *, apart: bool) -> None:
        self._strike, self.starts, self._num_new = strike, Starts(), FIRST_NEW
        first = [names_of(number, DECODE if apart else UNIFIED) for number in range(2)]
        first += [names_of(2, PREFILL)] * apart
        rule = Rule(1, 4, 1 << 20)
        self.router = Router(RoundRobin(4), first, self.starts, rule=rule, linked=apart)
        self.context = ManualContext(self.router, ROUTER)
        self.told: list[Any] = []
        """What the gateway heard."""
        self.answers, self.late = True, list[int]()
        """Whether schedulers answer, and the questions that are still to be answered."""
        self._live(apart=apart)

    def _live(self, *, apart: bool) -> None:
        self.tell(asked(1))
        self.tell(Ask(30, SetState(max_running=4), FRONT.gateway))
        self.loses("scheduler.0")
        if apart:
            self.loses("storage.2")
        self.answers = False
        self.tell(Ask(31, ScaleReplicas(3), FRONT.gateway))
        self.answers = True
        self.loses(f"scheduler.{self._num_new - 1}")  # as it joins
        for ticket in self.late:
            self.tell(Reply(ticket, True))
        self.tell(Ask(32, Pause(), FRONT.gateway))
        self.tell(Ask(33, ScaleReplicas(4), FRONT.gateway), come=False)
        started, self.starts.due = self.starts.due, []
        for role in started:
            self.tell(ReplicaFailed("no memory", role))
        self.tell(Ask(34, ScaleReplicas(2), FRONT.gateway))
        self.context.advance(1.0)
        self.carry()
        size = self.router.fleet.size
        self.at_rest = len(self.router.replicas), size.wanted, size.num_starting, len(size.leaving)
        self.starts.why_not = "there were enough"
        for number in list(self.router.replicas):
            self.loses(f"scheduler.{number}")

    def loses(self, name: str) -> None:
        self.context.gone.add(name)
        self.tell(Down(name, "failed"))

    def tell(self, message: Any, *, come: bool = True) -> None:
        self._strike.deliver(self.router, message)
        self.carry(come=come)

    def carry(self, *, come: bool = True) -> None:
        """What the router has sent, all that is said to it because of that, and those that are started."""
        while self.context.sent or (come and self.starts.due):
            if not self.context.sent:
                number, self._num_new = self._num_new, self._num_new + 1
                self._strike.deliver(self.router, ReplicaUp(names_of(number, self.starts.due.pop(0))))
                continue
            (sent, *self.context.sent) = self.context.sent
            match sent.message:
                case Ask(ticket=ticket) if self.answers:
                    self._strike.deliver(self.router, Reply(ticket, True))
                case Ask(ticket=ticket):
                    self.late.append(ticket)
                case AwaitPeer(peer=peer, attempt=attempt):
                    self._strike.deliver(self.router, PeerAddress(sent.to, peer, attempt, "here"))
                case JoinPeer(peer=peer, attempt=attempt):
                    for pair in ((sent.to, peer), (peer, sent.to)):
                        self._strike.deliver(self.router, Linked(*pair, attempt))
                case _ if sent.to == FRONT.gateway:
                    self.told.append(sent.message)
                    if isinstance(sent.message, ReplicaLeft):
                        self._strike.deliver(self.router, Parted(sent.message.replica))


def wrong(life: Life) -> list[str]:
    """What does not hold of a life in which one line has failed."""
    found, size = [], life.router.fleet.size
    serving, wanted, starting, leaving = life.at_rest
    if (serving, starting, leaving) != (wanted, 0, 0) or not wanted <= 3:
        found.append(f"serving, wanted, starting, leaving are {life.at_rest}")
    lost = [each.recorder for each in life.told if isinstance(each, ReplicaLost)]
    came = [each.recorder for each in life.told if isinstance(each, ReplicaJoined)]
    if len({*lost}) < len(lost) or len({*came}) < len(came) or not {*lost} >= {"recorder.0", "recorder.1"} - {*lost}:
        found.append(f"{came} came, {lost} were lost")
    if len({*life.starts.ended}) < len(life.starts.ended):
        found.append(f"{life.starts.ended} were ended")
    if life.starts.overs != 1 or sum(isinstance(each, NoneLeft) for each in life.told) != 1:
        found.append(f"it was over {life.starts.overs} times")
    counts = [each for each in life.told if isinstance(each, ReplicaCounts)]
    if (size.num_starting, size.taking, counts[-1].serving, counts[-1].starting) != (0, [], 0, 0):
        found.append(f"{size.num_starting} are started in the end, and the last word is {counts[-1]}")
    if life.router.routed or not any(isinstance(each, NotReplaced) for each in life.told):
        found.append(f"{sorted(life.router.routed)} are open")
    return found


@pytest.mark.parametrize("apart", [False, True], ids=["beside each other", "apart"])
def test_an_exception_at_any_line_leaves_no_replica_half_counted(apart: bool) -> None:
    def life(strike: Strike) -> Life:
        return Life(strike, apart=apart)

    assert wrong(life(Strike(MODULES[apart]))) == []
    tried = list(each_struck(MODULES[apart], life, said="5786d38f" if apart else "a9f0c2ac"))
    assert {name: wrong(life) for name, life in tried if wrong(life)} == {}
    assert len(tried) > (50 if apart else 400)
