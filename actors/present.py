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

PASSING = (FlushCache, OpenSession, CloseSession)
"""Orders after which a replica is as it was started, but for sessions, which are lost with theirs."""
SENT = "weights that were sent are in the replicas alone; send them by /update_weights_from_disk"
JOINED = "replicas are in a trainer's group, which another one cannot join now, and none can leave"
REST_S = 60.0
"""How long memory that is to be released may be needed by what was ordered before."""


def lasts(message: msgspec.Struct) -> bool:
    """Whether a replica that was started later would not know of it."""
    return isinstance(message, Order) and not isinstance(message, PASSING)


class Present:
    """The orders that all have carried out, as few as come to the same."""

    def __init__(self) -> None:
        self._newest_adapter = 0
        self._adapters: dict[str, LoadNumberedAdapter] = {}
        self._limits = SetState()
        self._delay: SlowDown | None = None
        self._weights: UpdateWeights | None = None
        self._version: str | None = None
        self._released: set[MemoryTag] = set()
        self.paused = False
        """Generation is."""
        self._groups: set[str] = set()
        self._sent = False

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
            case UpdateWeights():
                self._weights, self._sent = order, False
                self._released.discard(MemoryTag.WEIGHTS)  # new ones are resident
                self._version = order.weight_version or self._version
            case RenameWeights(version):
                self._version = version
            case PutWeights() | ReceiveWeights():
                self._sent = True
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
        return SENT if self._sent else self.fixed

    def orders(self, named: Collection[str] | None) -> list[Order]:
        """To be given to it, one after the other. `named`: the adapters that requests may name; None: nobody serves."""
        if named is not None:  # the others have made room for newer ones
            self._adapters = {name: order for name, order in self._adapters.items() if name in named}
        orders: list[Order] = []
        if self._weights is not None:
            replaced = msgspec.structs.replace(self._weights, weight_version=self._version, abort_all_requests=False)
            orders.append(replaced)
        elif self._version is not None:
            orders.append(RenameWeights(self._version, abort_all_requests=False))
        orders += self._adapters.values()
        orders += [self._limits] if self._limits.given() else []
        orders += [] if self._delay is None else [self._delay]
        if self._released:
            orders.append(ReleaseMemory(tags=in_order(self._released), timeout_s=REST_S))
        return [*orders, Pause()] if self.paused else orders
