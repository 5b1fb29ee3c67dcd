"""What comes up from the lower cache tiers, in two phases, while its request waits.

    QUEUED ──begin──► QUEUED_FETCHING ──filled──► QUEUED, admitted in its old place with a longer prefix
                            │
                            ├─ the lease ends ──► QUEUED, goes on without    ┐ the fetch is abandoned: its pages stay in
                            ├─ the worker is lost ──► QUEUED                 │ quarantine until the worker has answered
                            └─ it ends (abort, timeout, drain)               ┘ that it will write no more

A fetch holds the device's prefix that it continues, and reserves a page for each page it brings, out of what is not
promised to anybody. Once its pages are cached it lets go of everything: they are ordinary cache pages, and a request
that waits owns nothing that others may come to need. Requests that wait for the same page share one fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.snapshot import Plain
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.queues import Queues
from pawl.loops.tiers import PageFetch, TierConfig, TierEffects
from pawl.memory.arrays import Int32s
from pawl.memory.page_pool import Reservation
from pawl.memory.prefix.base import Hold
from pawl.memory.snapshot import holds_at, place_of_hold
from pawl.memory.tiers.index import TierIndex
from pawl.memory.tiers.keys import DeviceKeys, PageKey, page_keys, split_keys

LOOK_AHEAD = 16
"""Waiting requests that are looked at in one turn, from the head of the queue."""
MAX_FETCHES = 8
"""Fetches of one request while it waits: each brings it further, unless its pages leave again before it is admitted."""
PAUSE_LEASES = 8
"""For so many leases after one has ended nothing is fetched, unless the tiers answer earlier."""


class FetchCounts(msgspec.Struct):
    """Since the start."""

    begun: int = 0
    filled: int = 0
    """Fetches that brought all they were to bring."""
    short: int = 0
    """Fetches that brought less: a page was gone, or not what it should be."""
    expired: int = 0
    left: int = 0
    """Fetches whose requests ended meanwhile."""
    lost: int = 0
    """Fetches under way when the worker was lost."""
    pages: int = 0
    """Pages brought."""


@dataclass(eq=False)
class _Wish:
    """What a waiting request would like to have."""

    keys: list[PageKey]
    num_fetches: int = 0
    settled: bool = False
    """There is nothing more to be had for it."""


@dataclass(eq=False)
class _Fetch:
    """One fetch under way. Without a hold it is abandoned: it only waits for its writer's end."""

    keys: Sequence[PageKey]
    tokens: Int32s
    namespace: str
    reservation: Reservation
    hold: Hold | None
    rows: list[int] = field(default_factory=list)


def _plain(fetch: _Fetch) -> tuple[Any, ...]:
    """The fetch as a checkpoint holds it."""
    pages, generations = fetch.reservation
    place = None if fetch.hold is None else place_of_hold(fetch.hold)
    keys = b"".join(fetch.keys)
    return keys, fetch.tokens.tobytes(), fetch.namespace, pages.tobytes(), generations.tobytes(), place, fetch.rows


class Fetching:
    """Every fetch of one scheduler. `save` sends what is to be saved before pages are overwritten, and says the number
    of the newest save."""

    def __init__(
        self,
        queues: Queues,
        journal: Journal,
        effects: TierEffects,
        config: TierConfig,
        index: TierIndex,
        device: DeviceKeys,
        save: Callable[[], int],
    ) -> None:
        self.queues = queues
        self.memory = queues.memory
        self.journal = journal
        self.effects = effects
        self.config = config
        self.index = index
        self.device = device
        self.counts = FetchCounts()
        self._save = save
        self._tickets = 0
        self._fetches: dict[int, _Fetch] = {}
        self._fetch_of: dict[PageKey, int] = {}
        """First key of a fetch that is not abandoned -> its ticket."""
        self._wishes: dict[int, _Wish] = {}
        self._resume_at = 0.0
        self._overdue: set[int] = set()
        """Fetches whose lease ended and whose answer has not come."""

    @property
    def num_active(self) -> int:
        """Fetches that requests wait for."""
        return len(self._fetch_of)

    def begin(self, now: float) -> None:
        """Start fetches for requests that could be admitted soon."""
        if not len(self.index) or not self.queues.waiting or now < self._resume_at:
            return
        state = self.queues.table.state
        for row in list(islice(self.queues.waiting, LOOK_AHEAD)):
            if self.memory.slots.free <= self.num_active:
                return
            if state[row] == State.QUEUED and not self._consider(row, now):
                return

    def _consider(self, row: int, now: float) -> bool:
        """Fetch for one request, if that brings it further. False when there is no room."""
        wish = self._wish(row)
        if wish.settled:
            return True
        table, memory = self.queues.table, self.memory
        tokens, namespace = table.known(row)[:-1], table.info(row).namespace
        hold = memory.cache.match_and_hold(tokens, namespace)
        start = hold.num_tokens // memory.page_size
        count = min(self.index.reach(wish.keys, start), self.config.max_fetch_pages)
        ticket = self._fetch_of.get(wish.keys[start]) if count else None
        reservation = None
        if count and ticket is None:
            reservation = memory.reserve(count)
        if reservation is None:
            memory.cache.release(hold, memory.ledger.resolved, used=False)
            if ticket is None:
                wish.settled = not count
                return not count
        else:
            ticket = self._order(wish.keys[start : start + count], tokens, namespace, reservation, hold)
        assert ticket is not None
        wish.num_fetches += 1
        wish.settled = wish.num_fetches >= MAX_FETCHES
        self._fetches[ticket].rows.append(row)
        self._move(row, Event.FETCH, Cause.NONE, now, start * memory.page_size)
        return True

    def forget(self, row: int) -> None:
        """The tiers have got pages for a waiting request: what it would like to have is found anew."""
        self._wishes.pop(row, None)

    def _wish(self, row: int) -> _Wish:
        wish = self._wishes.get(row)
        if wish is None:
            table = self.queues.table
            info = table.info(row)
            keys: list[PageKey] = []
            if not info.sampling.needs_whole_prompt:
                # The last token is always computed, so a page that ends with it is of no use.
                tokens = table.known(row)[:-1]
                keys = page_keys(self.device.root(info.namespace), tokens, self.memory.page_size)
            wish = self._wishes[row] = _Wish(keys, settled=not keys)
        return wish

    def _order(self, keys: list[PageKey], tokens: Int32s, namespace: str, reservation: Reservation, hold: Hold) -> int:
        self._tickets += 1
        ticket = self._tickets
        prefix = tokens[: hold.num_tokens + len(keys) * self.memory.page_size].copy()
        self._fetches[ticket] = _Fetch(keys, prefix, namespace, reservation, hold)
        self._fetch_of[keys[0]] = ticket
        self.counts.begun += 1
        # To make room, pages may have left the cache that are to be saved first.
        last_save = self._save()
        resolved = self.memory.ledger.resolved
        self.effects.fetch(PageFetch(ticket, tuple(keys), reservation.pages, last_save, resolved))
        return ticket

    def filled(self, ticket: int, count: int, now: float) -> None:
        """The worker has written the first `count` pages of a fetch and will write no more. Raises ValueError where it
        cannot have written so many."""
        known = self._fetches.get(ticket)
        if known is not None and not 0 <= count <= len(known.keys):
            raise ValueError(f"{count} pages came of a fetch of {len(known.keys)}")
        self.journal.tiers("filled", ticket, count, (), now)
        self._overdue.discard(ticket)
        if not self._overdue:
            self._resume_at = 0.0
        fetch = self._fetches.pop(ticket, None)
        if fetch is None:
            return
        if fetch.hold is None or not count:
            self.memory.withdraw(fetch.reservation)
        if fetch.hold is not None:
            self._arrived(fetch, count, now)

    def _arrived(self, fetch: _Fetch, count: int, now: float) -> None:
        """Cache what came, let go of it, and let the requests go on."""
        memory, hold = self.memory, fetch.hold
        assert hold is not None
        if count:
            length = hold.num_tokens + count * memory.page_size
            hold = memory.publish(fetch.reservation, count, fetch.tokens[:length], fetch.namespace, hold)
        num_cached = hold.num_tokens
        memory.cache.release(hold, memory.ledger.resolved, used=False)
        del self._fetch_of[fetch.keys[0]]
        self.counts.pages += count
        if count == len(fetch.keys):
            self.counts.filled += 1
        else:
            self.counts.short += 1
        for row in fetch.rows:
            self._wishes[row].settled |= count < len(fetch.keys)
            self._move(row, Event.FETCHED, Cause.NONE, now, num_cached)

    def expired(self, ticket: int, now: float) -> None:
        """A lease has ended: the requests go on without, and the tiers get time to recover."""
        fetch = self._fetches.get(ticket)
        if fetch is None or fetch.hold is None:
            return
        self.journal.tiers("expired", ticket, 0, (), now)
        self.counts.expired += 1
        self._overdue.add(ticket)
        self._resume_at = now + PAUSE_LEASES * self.config.lease_s
        rows, fetch.rows = fetch.rows, []
        for row in rows:
            self._wishes[row].settled = True
            self._move(row, Event.RESTORE, Cause.TIMEOUT, now)
        self._abandon(ticket, fetch)

    def fenced(self, ticket: int, now: float) -> None:
        """The worker will write nothing for this fetch any more."""
        fetch = self._fetches.get(ticket)
        if fetch is not None and fetch.hold is None:
            self.journal.tiers("fenced", ticket, 0, (), now)
            del self._fetches[ticket]
            self.memory.withdraw(fetch.reservation)

    def left(self, row: int) -> None:
        """A request has ended, wherever it was."""
        self._wishes.pop(row, None)
        if self.queues.table.state[row] != State.QUEUED_FETCHING:
            return
        for ticket, fetch in self._fetches.items():
            if row in fetch.rows:
                fetch.rows.remove(row)
                if not fetch.rows:
                    self.counts.left += 1
                    self._abandon(ticket, fetch)
                return

    def _abandon(self, ticket: int, fetch: _Fetch) -> None:
        """Presumed abort: nothing of it is wanted; its pages wait for the word of the only one who can write them."""
        assert fetch.hold is not None
        self.memory.cache.release(fetch.hold, self.memory.ledger.resolved, used=False)
        fetch.hold = None
        self._fetch_of.pop(fetch.keys[0], None)
        self.effects.fence(ticket)

    def _move(self, row: int, event: Event, cause: Cause, now: float, num_cached: int | None = None) -> None:
        self.journal.move(self.queues.table, row, event, cause, now, num_cached=num_cached)

    def lost(self, now: float) -> None:
        """The worker is lost, its weights are exchanged, or a failure came in between: nothing comes any more, and
        everybody who waits goes on. Who waits is asked of the table; what for is found anew, as other weights have
        other keys."""
        table = self.queues.table
        for ticket, fetch in self._fetches.items():
            fetch.rows.clear()
            if fetch.hold is not None:
                self.counts.lost += 1
                self._abandon(ticket, fetch)
            else:  # the word of its writer may be lost
                self.effects.fence(ticket)
        self._fetch_of.clear()
        self._overdue &= self._fetches.keys()
        self._wishes.clear()
        live = table.live_rows()
        for row in live[table.state[live] == State.QUEUED_FETCHING].tolist():
            self._wish(row).settled = True
            self._move(row, Event.RESTORE, Cause.WORKER_LOST, now)

    def written(self) -> Iterable[Reservation]:
        """Pages that the worker may write, as far as it has said."""
        return (fetch.reservation for fetch in self._fetches.values())

    def snapshot(self) -> Plain:
        """All that decides."""
        return {
            "tickets": self._tickets,
            "counts": msgspec.to_builtins(self.counts),
            "resume_at": self._resume_at,
            "overdue": sorted(self._overdue),
            "wishes": [(row, b"".join(w.keys), w.num_fetches, w.settled) for row, w in self._wishes.items()],
            "fetches": [(ticket, *_plain(fetch)) for ticket, fetch in self._fetches.items()],
        }

    def restore(self, plain: Plain) -> None:
        """Go on from a snapshot, in a memory that is restored."""
        self._tickets, self._resume_at, self._overdue = plain["tickets"], plain["resume_at"], set(plain["overdue"])
        self.counts = msgspec.convert(plain["counts"], FetchCounts)
        self._wishes = {row: _Wish(split_keys(keys), *rest) for row, keys, *rest in plain["wishes"]}
        for ticket, keys, tokens, namespace, pages, generations, place, rows in plain["fetches"]:
            reservation = Reservation(np.frombuffer(pages, np.int32), np.frombuffer(generations, np.int32))
            hold = None if place is None else holds_at(self.memory, [place])[0]
            known = np.frombuffer(tokens, np.int32)
            fetch = _Fetch(split_keys(keys), known, namespace, reservation, hold, list(rows))
            self._fetches[ticket] = fetch
            if hold is not None:
                self._fetch_of[fetch.keys[0]] = ticket

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what is under way now."""
        return {
            "fetching": self.num_active,
            "abandoned": len(self._fetches) - self.num_active,
            "overdue": len(self._overdue),
            **{f"fetches_{name}": count for name, count in msgspec.to_builtins(self.counts).items()},
        }

    def check(self) -> None:
        """Rows that fetch are those that fetches know, and reservations are all that is in quarantine."""
        table = self.queues.table
        live = table.live_rows()
        fetching = sorted(live[table.state[live] == State.QUEUED_FETCHING].tolist())
        rows = [row for fetch in self._fetches.values() for row in fetch.rows]
        if sorted(rows) != fetching:
            raise AssertionError(f"rows {fetching} fetch, but fetches have rows {sorted(rows)}")
        reserved = sum(len(fetch.reservation.pages) for fetch in self._fetches.values())
        if reserved != self.memory.pages.quarantined:
            raise AssertionError(f"{reserved} pages are reserved, {self.memory.pages.quarantined} in quarantine")
