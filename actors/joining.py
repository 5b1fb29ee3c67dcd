"""Replicas that were started while the engine runs: each is told what the others know, and then takes part."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from pawl.actors.messages.control import Reply
from pawl.actors.replica_asks import ReplicaAsks
from pawl.actors.routed import Replica, Said
from pawl.lifecycle.machines.memory import MemoryTag, in_order
from pawl.loops.intake import Order
from pawl.loops.orders.memory import ReleaseMemory, ResumeMemory


@dataclass
class _Told:
    """What one of them was told, and is to be."""

    orders: deque[Order]
    """To be, one after the other."""
    released: set[MemoryTag] = field(default_factory=set)
    """It was told to release, and not yet to resume."""
    moving: bool = False
    """It does so, and takes no other order about memory meanwhile."""


class Joining:
    """Those that do not take part yet."""

    def __init__(
        self, questions: ReplicaAsks, up: Callable[[Replica], None], refused: Callable[[Replica, str], None]
    ) -> None:
        """`up` hears of one that is as the others are, `refused` of one that cannot be, and why: each then has it
        forgotten."""
        self.replicas: dict[int, Replica] = {}
        """By number."""
        self._told: dict[int, _Told] = {}
        self._questions = questions
        self._up = up
        self._refused = refused

    def begin(self, replica: Replica, orders: list[Order]) -> None:
        """One was started; it is given `orders`, one after the other, and those that come meanwhile."""
        self.replicas[replica.number] = replica
        self._told[replica.number] = _Told(deque(orders))
        if untellable := self._questions.present.untellable:  # since its start was asked for
            self._refused(replica, untellable)
        else:
            self._go_on(replica)

    def stopped(self) -> None:
        """Nobody joins any more."""
        self.replicas.clear()
        self._told.clear()

    def ordered(self, order: Order | None) -> None:
        """The others have carried this out; None: they have refused what was ordered."""
        untellable = self._questions.present.untellable
        for replica in list(self.replicas.values()):
            if untellable:
                self._refused(replica, untellable)
                continue
            told = self._told[replica.number]
            if isinstance(order, ResumeMemory):
                self._resume(replica, told, _tags(order))
                continue
            told_all = not told.orders
            if order is not None:
                told.orders.append(order)
            # At once, as the others were: what it is at may need this to end.
            if told_all and not (told.moving and isinstance(order, ReleaseMemory)):
                self._go_on(replica)

    def hears(self, message: object) -> bool:
        """Whether one of these has said it, of itself."""
        replica = self.replicas.get(getattr(message, "replica", 0))
        if replica is None or not isinstance(message, Said):
            return False
        replica.hears(message)
        return True

    def forget(self, replica: Replica) -> None:
        """It is none of these any more."""
        self.replicas.pop(replica.number, None)
        self._told.pop(replica.number, None)

    def _resume(self, replica: Replica, told: _Told, tags: set[MemoryTag]) -> None:
        """The others have this memory again. What the replica is at, as reading an adapter is, may wait for that: it is
        told before all else where it has released it, and else is not told to release it."""
        kept: deque[Order] = deque()
        for order in told.orders:
            left = _tags(order) - tags if isinstance(order, ReleaseMemory) else None
            if left is None:
                kept.append(order)
            elif left:
                kept.append(msgspec.structs.replace(order, tags=in_order(left)))
        told.orders, resumed = kept, told.released & tags
        if resumed:
            told.orders.appendleft(ResumeMemory(in_order(resumed)))
        if not told.orders or (resumed and not told.moving):
            self._go_on(replica)

    def _go_on(self, replica: Replica) -> None:
        told = self._told[replica.number]
        if told.orders:
            order = told.orders.popleft()
            if isinstance(order, ReleaseMemory | ResumeMemory):
                told.released ^= _tags(order)
                told.moving = True
            self._questions.tell(replica, order, lambda reply: self._answered(replica, order, reply))
        elif not self._questions.num_lasting and not self._questions.waits_for(replica.number):
            # Else what the others are at may be to be told.
            self._up(replica)

    def _answered(self, replica: Replica, order: Order, reply: Reply) -> None:
        if replica.number not in self.replicas:
            return
        if isinstance(order, ReleaseMemory | ResumeMemory):
            self._told[replica.number].moving = False
        if reply.ok:
            self._go_on(replica)
        else:
            self._refused(replica, reply.message)


def _tags(order: ReleaseMemory | ResumeMemory) -> set[MemoryTag]:
    return set(order.tags or MemoryTag)
