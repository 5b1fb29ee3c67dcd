"""The decode scheduler's part in prefills elsewhere: turns what the loop wants of them into messages, and back."""

from __future__ import annotations

from pawl.actors.messages.hand_over import (
    CancelPrefill,
    Expect,
    ForgetSender,
    Prefill,
    PrefillerDown,
    PrefillerUp,
    Received,
    Unexpect,
)
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.tiers.tier_client import NoTierClient, PrefillOverdue, TierClient, TierMessage
from pawl.lifecycle.namespaces import salt_of
from pawl.loops.loop import Loop
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.select import LoopConfig
from pawl.loops.tiers import PrefillOrder


class HandOverClient(TierClient):
    """Effects of `RemotePrefill` as well, and its inputs."""

    _remote: RemotePrefill

    def __init__(self, actor: Actor, lease_s: float, names: Names, prefill_lease_s: float) -> None:
        super().__init__(actor, lease_s, names)
        self._prefill_lease_s = prefill_lease_s
        self._desks: list[str] = []
        """By number, those of the dead too."""
        self._ready: dict[str, int] = {}
        """Numbers of desks that are there."""

    def attach(self, loop: Loop) -> None:
        super().attach(loop)
        self._remote = loop.companion(RemotePrefill)

    # ---- effects ----

    def prefill(self, order: PrefillOrder) -> None:
        context, names = self._actor.context, self._names
        # Ahead of whatever may come of it.
        context.send(names.storage, Expect(order.ticket, order.keys), Lane.CONTROL)
        asked = Prefill(
            ticket=order.ticket,
            scheduler=names.scheduler,
            tokens=order.tokens,
            salt=salt_of(order.namespace),
            keys=order.keys,
        )
        # Not behind what cancels it. A desk that is gone answers by the lease.
        context.send(self._desks[order.prefiller], asked, Lane.CONTROL)
        context.after(self._prefill_lease_s, PrefillOverdue(order.ticket))

    def cancel(self, ticket: int, prefiller: int) -> None:
        names, send = self._names, self._actor.context.send
        send(names.storage, Unexpect(ticket), Lane.CONTROL)
        send(self._desks[prefiller], CancelPrefill(ticket, names.scheduler), Lane.CONTROL)

    # ---- inputs ----

    def receive(self, message: TierMessage, now: float) -> None:
        match message:
            case Received(ticket, count, num_cached):
                self._actor.context.send(self._names.storage, Unexpect(ticket), Lane.CONTROL)  # where a desk says so
                self._remote.received(ticket, count, num_cached, now)
            case PrefillOverdue(ticket):
                self._remote.overdue(ticket, now)
            case PrefillerUp(name) if name not in self._ready:
                self._ready[name] = len(self._desks)
                self._desks.append(name)
                self._remote.prefiller_up(self._ready[name], now)
            case PrefillerDown(name, storage) if name in self._ready:
                self._actor.context.send(self._names.storage, ForgetSender(storage), Lane.CONTROL)
                self._remote.prefiller_down(self._ready.pop(name), now)
            case _:
                super().receive(message, now)

    def state(self) -> dict[str, dict[str, int]]:
        return super().state() | {"prefill": self._remote.statistics()}


def tier_client_for(actor: Actor, config: LoopConfig, names: Names) -> TierClient | NoTierClient:
    """What a scheduler of this configuration needs."""
    if config.tiers is None:
        return NoTierClient()
    if config.remote is None:
        return TierClient(actor, config.tiers.lease_s, names)
    return HandOverClient(actor, config.tiers.lease_s, names, config.remote.lease_s)
