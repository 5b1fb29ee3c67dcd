"""Replicas that were started while the engine runs: each is told what the others know, and then takes part."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Reply, Stalled
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.replica_asks import ReplicaAsks
from pawl.actors.routed import Replica, that_needs
from pawl.loops.intake import Order


class Joining:
    """Those that do not take part yet."""

    def __init__(
        self, questions: ReplicaAsks, up: Callable[[Replica], None], refused: Callable[[Replica, str], None]
    ) -> None:
        """`up` hears of one that is as the others are, `refused` of one that cannot be, and why."""
        self.replicas: dict[int, Replica] = {}
        """By number."""
        self._to_tell: dict[int, deque[Order]] = {}
        self._questions = questions
        self._up = up
        self._refused = refused

    def begin(self, replica: Replica, orders: list[Order]) -> None:
        """One was started; it is given `orders`, one after the other, and those that come meanwhile."""
        if untellable := self._questions.present.untellable:  # since its start was asked for
            self._refused(replica, untellable)
            return
        self.replicas[replica.number] = replica
        self._to_tell[replica.number] = deque(orders)
        self._go_on(replica)

    def stopped(self) -> None:
        """Nobody joins any more."""
        self.replicas.clear()
        self._to_tell.clear()

    def ordered(self, order: Order | None) -> None:
        """The others have carried this out; None: they have refused what was ordered."""
        untellable = self._questions.present.untellable
        for replica in list(self.replicas.values()):
            if untellable:
                self._forget(replica)
                self._refused(replica, untellable)
                continue
            told_all = not self._to_tell[replica.number]
            if order is not None:
                self._to_tell[replica.number].append(order)
            if told_all:  # at once, as the others were: what it is at may need this to end
                self._go_on(replica)

    def hears(self, message: object) -> bool:
        """Whether one of these has said it, of itself."""
        replica = self.replicas.get(getattr(message, "replica", 0))
        if replica is None or not isinstance(message, Stalled | AdaptersNamed | WeightsServed):
            return False
        replica.hears(message)
        return True

    def without(self, name: str) -> Replica | None:
        """The one that cannot go on without the actor `name`. It is none of these any more."""
        replica = that_needs(self.replicas, name)
        if replica is not None:
            self._forget(replica)
        return replica

    def _forget(self, replica: Replica) -> None:
        del self.replicas[replica.number], self._to_tell[replica.number]

    def _go_on(self, replica: Replica) -> None:
        orders = self._to_tell[replica.number]
        if orders:
            self._questions.tell(replica, orders.popleft(), lambda reply: self._answered(replica, reply))
        elif not self._questions.num_lasting and not self._questions.waits_for(replica.number):
            # Else what the others are at may be to be told.
            self._forget(replica)
            self._up(replica)

    def _answered(self, replica: Replica, reply: Reply) -> None:
        if replica.number not in self.replicas:
            return
        if reply.ok:
            self._go_on(replica)
        else:
            self._forget(replica)
            self._refused(replica, reply.message)
