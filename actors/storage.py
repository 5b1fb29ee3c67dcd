"""The storage actor: pages below the device, in host memory and in files. The one place that waits for a disk.

It owns its thread, so a slow disk slows nobody else: whoever waits for a page does so with a lease.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import structlog

from pawl.actors.messages.hand_over import (
    EndOfPages,
    Expect,
    ForgetReceiver,
    ForgetSender,
    HandedPages,
    OfferAnswer,
    OfferPages,
    PagesEnd,
    Received,
    SendPages,
    Taken,
    TicketOver,
    Unexpect,
)
from pawl.actors.messages.transfer import (
    Blocks,
    Dropped,
    EmptyHost,
    Fetch,
    Fill,
    Found,
    Saved,
    SchedulerStops,
    TierReport,
    ToStorage,
)
from pawl.actors.names import DECODE, NAMES, PREFILL, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.tiers.files import UInt8s
from pawl.actors.tiers.hand_over import Incoming, Outgoing
from pawl.actors.tiers.shared_pages import Memory, Readers, shared_reader
from pawl.actors.tiers.store import TierStore
from pawl.memory.arrays import Int32s

log = structlog.get_logger("pawl.storage")

FOUND_AT_ONCE = 8192
"""Keys in one message at the start."""
CLOSE_S = 5.0
"""How long an orderly stop may take to file what is only in host memory."""


class Readable(Protocol):
    """Host memory that others can read."""

    @property
    def memory(self) -> Memory:
        """Where it is."""


class Storage(Actor):
    """Answers every Blocks with one Saved and every Fetch with one Fill."""

    accepts = ToStorage

    def __init__(
        self,
        store: TierStore,
        names: Names = NAMES,
        shared: Readable | None = None,
        readers: Readers = shared_reader,
    ) -> None:
        """`shared` is the store's host memory, where other processes can read it; `readers` read that of others."""
        self._names = names
        self.store = store
        self._shared = shared
        """Held: it can be read as long as it is."""
        memory = None if shared is None else shared.memory
        self.outgoing = Outgoing(names.storage, store, lambda to, message: self.context.send(to, message), memory)
        self.incoming = Incoming(store, readers)
        self.era = 0
        """Flushes that it has heard of."""
        self._told: dict[str, int] = {}
        self._heard = True
        """Whether the scheduler listens."""
        self._answered = False
        """Who has sent what is handled now has the answer."""

    def started(self) -> None:
        keys = self.store.scan()
        for start in range(0, len(keys), FOUND_AT_ONCE):
            self._tell(Found(self.era, tuple(keys[start : start + FOUND_AT_ONCE])))
        if keys:
            log.info("pages from before", pages=len(keys))

    def receive(self, message: Any) -> None:
        self._answered = False
        match message:
            case Blocks(number, keys, data):
                self._answered = self._tell(Saved(number, self._keep(keys, data)))
            case Fetch(ticket, keys, pages, after):
                self._answered = self._fill(ticket, pages, self.store.read(keys), after)
            case EmptyHost(era):
                self._empty(era)
            case SchedulerStops():
                self._heard = False
            case HandedPages() | PagesEnd() | Expect() | Unexpect() | ForgetSender() | OfferPages():
                self._sent_here(message)
            case _:
                self._send_away(message)
        self._tell_dropped()

    def _send_away(self, message: SendPages | ForgetReceiver | EndOfPages | OfferAnswer | Taken | TicketOver) -> None:
        """For a decode replica."""
        match message:
            case SendPages():
                self.outgoing.open(message)
            case ForgetReceiver(storage):
                self.outgoing.forget(storage)
            case EndOfPages(job, num_cached):
                self.outgoing.end(job, num_cached)
            case OfferAnswer(storage, readable):
                self.outgoing.answered(storage, readable)
            case Taken(storage, number):
                self.outgoing.taken(storage, number)
            case TicketOver(storage, ticket):
                self.outgoing.over(storage, ticket)
        self.outgoing.pump()

    def _sent_here(self, message: HandedPages | PagesEnd | Expect | Unexpect | ForgetSender | OfferPages) -> None:
        """From a prefill replica, or about what it sends."""
        match message:
            case Expect(ticket, keys):
                self.incoming.expect(ticket, keys)
            case Unexpect(ticket):
                self.incoming.unexpect(ticket)
            case ForgetSender(sender):
                self.incoming.forget(sender)
            case OfferPages(sender):
                self._answer(sender, OfferAnswer(self._names.storage, self.incoming.offered(message)))
            case HandedPages():
                kept = self.incoming.keep(message)
                if kept:
                    self._tell(Found(self.era, kept))
                if self.incoming.gave_up(message.storage):
                    self._answer(message.storage, OfferAnswer(self._names.storage, False))
                self._took(message)
            case PagesEnd(ticket, sender, num_cached):
                count = self.incoming.end(ticket)
                if count is not None:
                    self._answered = self._tell(Received(ticket, count, num_cached))
                self._answer(sender, TicketOver(self._names.storage, ticket))

    def _took(self, message: HandedPages) -> None:
        expected = self.incoming.wanted(message.ticket)
        name, answer = self._names.storage, Taken(self._names.storage, message.number)
        self._answer(message.storage, answer if expected else TicketOver(name, message.ticket))

    def _answer(self, sender: str, answer: Taken | TicketOver | OfferAnswer) -> None:
        self.context.send(sender, answer, Lane.CONTROL)

    def _empty(self, era: int) -> None:
        self.era = era
        self.store.empty_host()

    def _keep(self, keys: tuple[bytes, ...], data: UInt8s) -> tuple[bytes, ...]:
        kept = self.store.keep(keys, data)
        self.outgoing.kept(kept)
        self.outgoing.pump()
        return kept

    def settled(self) -> None:
        counts = self.store.counts() | self._handed_over()
        if counts != self._told:
            self._told = counts
            self._tell(TierReport(counts))
        self.progressed()

    def _handed_over(self) -> dict[str, int]:
        """Pages that went from replica to replica; none of one that has no other."""
        if self._names.role == PREFILL:
            return self.outgoing.counts()
        return self.incoming.counts() if self._names.role == DECODE else {}

    def spares(self, message: Any, error: Exception) -> bool:
        """Errors of a disk end in a miss further down. What comes here is a defect, and costs no more than a miss
        either: nobody waits for an answer for ever. But host memory that cannot be emptied must not be read."""
        self.told_of(error)
        self.store.host.reclaim()
        match message:
            case Blocks(number) if not self._answered:
                self._tell(Saved(number))
            case Fetch(ticket, _, pages, after) if not self._answered:
                self._fill(ticket, pages, np.empty((0, 0), np.uint8), after)
            case EmptyHost(era):
                self._empty(era)
            case HandedPages():  # a second word of it says nothing new
                self._took(message)
            case Unexpect(ticket):
                self.incoming.unexpect(ticket)
            case ForgetSender(sender):
                self.incoming.forget(sender)
            case SchedulerStops():
                self._heard = False
            case Expect(ticket):  # what comes is not kept
                self.incoming.unexpect(ticket)
                self._tell(Received(ticket, 0))
            case PagesEnd(ticket, sender):
                self.incoming.unexpect(ticket)
                if not self._answered:
                    self._tell(Received(ticket, 0))
                self._answer(sender, TicketOver(self._names.storage, ticket))
        self._tell_dropped()
        return self.survives()

    def stopped(self, reason: str) -> None:
        self.incoming.close()
        ends_at = self.context.now() + CLOSE_S
        self.store.close(lambda: self.context.now() < ends_at)

    def _fill(self, ticket: int, pages: Int32s, data: UInt8s, after: int) -> bool:
        # Ahead of steps that are queued: none of them touches these pages, and a request waits.
        return self.context.send(self._names.worker, Fill(ticket, pages, data, after), Lane.CONTROL)

    def _tell_dropped(self) -> None:
        """The last word about a message, whatever came of it: what it brought may have left again meanwhile."""
        dropped = self.store.take_dropped()
        if dropped:
            self._tell(Dropped(dropped))

    def _tell(self, message: Saved | Found | Dropped | TierReport | Received) -> bool:
        return self._heard and self.context.send(self._names.scheduler, message, Lane.CONTROL)
