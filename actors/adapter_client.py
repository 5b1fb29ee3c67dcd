"""The scheduler's side of adapters: what it tells the stager and the gateway."""

from __future__ import annotations

from pawl.actors.messages.adapters import AdaptersNamed, EmptyAdapterSlot, ReadAdapter
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.loops.adapter import Named


class AdapterClient:
    """Sends for the scheduler `actor` (an `AdapterEffects`)."""

    def __init__(self, actor: Actor, names: Names) -> None:
        self._actor = actor
        self._names = names

    def read(self, ticket: int, slot: int, source: str) -> None:
        """Have an adapter read into a slot."""
        self._actor.context.send(self._names.stager, ReadAdapter(ticket, slot, source))

    def empty(self, slot: int) -> None:
        """Have a slot emptied."""
        self._actor.context.send(self._names.stager, EmptyAdapterSlot(slot))

    def named(self, adapters: tuple[Named, ...], resting: tuple[Named, ...]) -> None:
        """Tell which adapters requests may name; those that rest are not listed."""
        message = AdaptersNamed(adapters, self._names.replica, resting)
        self._actor.context.send(self._names.gateway, message, Lane.CONTROL)
