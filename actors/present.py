"""What was ordered of all replicas and lasts: what one that was just started must be told, to be as the others are."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from pawl.lifecycle.machines.memory import MemoryTag, in_order
from pawl.loops.intake import Order
from pawl.loops.orders.adapters import LoadAdapter, LoadNumberedAdapter, UnloadAdapter
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.limits import SetState, SlowDown
from pawl.loops.orders.memory import ReleaseMemory, ResumeMemory
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.orders.sessions import CloseSession, OpenSession
from pawl.loops.orders.weight_groups import JoinWeightGroup, LeaveWeightGroup, ReceiveWeights
from pawl.loops.orders.weights import PutWeights, RenameWeights, UpdateWeights

OF_WEIGHTS = (UpdateWeights, RenameWeights, PutWeights, ReceiveWeights)
PASSING = (FlushCache, OpenSession, CloseSession)
"""Orders after which a replica is as it was started, but for sessions, which are lost with theirs."""
SENT = "weights that were sent are in the replicas alone; send them by /update_weights_from_disk"
JOINED = "replicas are in a trainer's group, which another one cannot join now, and none can leave"
REST_S = 60.0
"""How long memory that is to be released may be needed by what was ordered before."""


def lasts(message: msgspec.Struct) -> bool:
    """Whether a replica that was started later would not know of it."""
    return isinstance(message, Order) and not isinstance(message, PASSING)


class Held:
    """What came of the orders about weights that were carried out."""

    def __init__(self, before: Held | None = None) -> None:
        """`before`: the same as these."""
        self.update: UpdateWeights | None = None if before is None else before.update
        self.version: str | None = None if before is None else before.version
        self.sent: bool = before is not None and before.sent

    def done(self, order: UpdateWeights | RenameWeights | PutWeights | ReceiveWeights) -> None:
        """It was carried out."""
        match order:
            case UpdateWeights():
                self.update, self.sent = order, False
                self.version = order.weight_version or self.version
            case RenameWeights(version):
                self.version = version
            case _:
                self.sent = True

    def orders(self) -> list[Order]:
        """For one that serves what it was started with."""
        if self.update is not None:
            return [msgspec.structs.replace(self.update, weight_version=self.version, abort_all_requests=False)]
        return [] if self.version is None else [RenameWeights(self.version, abort_all_requests=False)]


class Present:
    """The orders that all have carried out, as few as come to the same."""

    def __init__(self) -> None:
        self._newest_adapter = 0
        self._adapters: dict[str, LoadNumberedAdapter] = {}
        self._limits = SetState()
        self._delay: SlowDown | None = None
        self.weights = Held()
        """Of one replica at the least, where not all have carried out the same."""
        self._released: set[MemoryTag] = set()
        self.paused = False
        """Generation is."""
        self._groups: set[str] = set()

    def numbered(self, message: msgspec.Struct) -> msgspec.Struct:
        """An adapter has the same number in all replicas, whatever any of them has refused before."""
        if not isinstance(message, LoadAdapter):
            return message
        self._newest_adapter += 1
        return LoadNumberedAdapter(**msgspec.structs.asdict(message), number=self._newest_adapter)

    def done(self, order: msgspec.Struct) -> None:
        """It was carried out."""
        match order:
            case LoadNumberedAdapter():
                self._adapters[order.name] = order
            case UnloadAdapter(name):
                self._adapters.pop(name, None)
            case SetState():
                self._limits = SetState(**self._limits.given() | order.given())
            case SlowDown():
                self._delay = order
            case _ if isinstance(order, OF_WEIGHTS):
                self.weights.done(order)
                if isinstance(order, UpdateWeights):
                    self._released.discard(MemoryTag.WEIGHTS)  # new ones are resident
            case ReleaseMemory(tags):
                self._released |= set(tags or MemoryTag)
            case ResumeMemory(tags):
                self._released -= set(tags or MemoryTag)
            case Pause() | Continue():
                self.paused = isinstance(order, Pause)
            case JoinWeightGroup():
                self._groups.add(order.group_name)
            case LeaveWeightGroup(group):
                self._groups.discard(group)
            case _:
                raise TypeError(f"nobody knows what a {type(order).__name__} comes to")

    @property
    def fixed(self) -> str:
        """Why there can be no other number of replicas; empty: there can."""
        return JOINED if self._groups else ""

    @property
    def untellable(self) -> str:
        """Why another replica cannot be brought to where these are; empty: it can."""
        return SENT if self.weights.sent else self.fixed

    def orders(self, named: Collection[str] | None) -> list[Order]:
        """To be given to it, one after the other. `named`: the adapters that requests may name; None: nobody serves."""
        if named is not None:  # the others have made room for newer ones
            self._adapters = {name: order for name, order in self._adapters.items() if name in named}
        orders = self.weights.orders()
        orders += self._adapters.values()
        orders += [self._limits] if self._limits.given() else []
        orders += [] if self._delay is None else [self._delay]
        if self._released:
            orders.append(ReleaseMemory(tags=in_order(self._released), timeout_s=REST_S))
        return [*orders, Pause()] if self.paused else orders
