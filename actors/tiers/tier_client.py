"""The scheduler's part in moving pages: turns what the loop wants of the lower tiers into messages, and back."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pawl.actors.messages.hand_over import EndOfPages, ToDecoder
from pawl.actors.messages.transfer import (
    Dropped,
    EmptyHost,
    Fence,
    Fenced,
    Fetch,
    Filled,
    Found,
    FromStorage,
    PagesFromWorker,
    Save,
    Saved,
    SchedulerStops,
    TierReport,
)
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.loops.loop import Loop
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.tiers import PageFetch, PrefillOrder, TierEffects
from pawl.memory.arrays import Int32s
from pawl.memory.tiers.keys import PageKey


class LeaseEnded(msgspec.Struct, frozen=True, tag=True):
    """Timer: a fetch has taken as long as its requests may wait for it."""

    ticket: int
    resolved: int
    """Newest step that was resolved when the fetch began."""


class PrefillOverdue(msgspec.Struct, frozen=True, tag=True):
    """Timer: a prefill elsewhere has taken as long as its request may wait for it."""

    ticket: int


TierMessage: TypeAlias = FromStorage | PagesFromWorker | LeaseEnded | ToDecoder | PrefillOverdue
"""What the scheduler is told about lower tiers."""


class TierClient:
    """Effects of `LowerTiers`, and its inputs, for one scheduler actor."""

    _tiers: LowerTiers

    def __init__(self, actor: Actor, lease_s: float, names: Names) -> None:
        self._names = names
        self._actor = actor
        self._lease_s = lease_s
        self.report: dict[str, int] = {}
        """What the storage said last about itself."""

    def attach(self, loop: Loop) -> None:
        """Everything that comes in is for this loop's companion. Comes before any message."""
        self._tiers = loop.companion(LowerTiers)

    @property
    def effects(self) -> TierEffects:
        """Where the loop's decisions go."""
        return self

    @property
    def next_save(self) -> int:
        """Number of the save that comes next."""
        return self._tiers.saving.number + 1

    # ---- effects ----

    def save(self, number: int, pages: Int32s, keys: tuple[PageKey, ...]) -> None:
        self._actor.context.send(self._names.worker, Save(number, pages, keys))

    def fetch(self, order: PageFetch) -> None:
        # Ahead of the pages that come down: a request waits for this. A storage that is gone answers by the lease.
        fetch = Fetch(order.ticket, order.keys, order.pages, order.after)
        self._actor.context.send(self._names.storage, fetch, Lane.CONTROL)
        self._actor.context.after(self._lease_s, LeaseEnded(order.ticket, order.resolved))

    def fence(self, ticket: int) -> None:
        self._actor.context.send(self._names.worker, Fence(ticket), Lane.CONTROL)

    def empty_host(self, era: int) -> None:
        self._actor.context.send(self._names.storage, EmptyHost(era), Lane.CONTROL)

    def stopped(self) -> None:
        """The scheduler's last message about pages."""
        self._actor.context.send(self._names.storage, SchedulerStops(), Lane.CONTROL)

    # ---- inputs ----

    def receive(self, message: TierMessage, now: float) -> None:
        """Hand one message on to the loop's side."""
        tiers = self._tiers
        match message:
            case Saved(number, keys):
                tiers.saved(number, keys, now)
            case Filled(ticket, count):
                tiers.fetching.filled(ticket, count, now)
            case Fenced(ticket):
                tiers.fetching.fenced(ticket, now)
            case LeaseEnded(ticket, resolved) if tiers.memory.ledger.num_in_flight and (
                tiers.memory.ledger.resolved == resolved
            ):
                # The worker has been at one step all this time: without the fetch nobody would be further.
                self._actor.context.after(self._lease_s, message)
            case LeaseEnded(ticket):
                tiers.fetching.expired(ticket, now)
            case Dropped(keys):
                tiers.dropped(keys, now)
            case Found(era, keys):
                tiers.found(era, keys, now)
            case TierReport(counts):
                self.report = counts

    def prefill(self, order: PrefillOrder) -> None:
        raise NotImplementedError("of a decode replica")

    def cancel(self, ticket: int, prefiller: int) -> None:
        raise NotImplementedError("of a decode replica")

    def end_of_pages(self, request: int, num_cached: int) -> None:
        self._actor.context.send(self._names.worker, EndOfPages(request, num_cached))

    def state(self) -> dict[str, dict[str, int]]:
        """Everything countable about the lower tiers, for people, by the name that the whole has."""
        return {"tiers": self._tiers.statistics() | self.report}


class NoTierClient:
    """In place of a `TierClient`, where there are no tiers below the device."""

    next_save = 0
    effects = None

    def attach(self, loop: Loop) -> None: ...

    def receive(self, message: TierMessage, now: float) -> None: ...

    def stopped(self) -> None: ...

    def state(self) -> dict[str, dict[str, int]]:
        return {}
