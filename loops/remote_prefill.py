"""Prompts that a prefill replica computes: the decode replica's side, a companion of its loop.

    QUEUED ──► RESERVING ──► RECEIVING ──received──► QUEUED, whose pages are below the device now: they are fetched
                   │             │                           like any others (loops/fetching.py)
                   │             ├─ the lease ends ─────────► QUEUED ┐ what has come is fetched,
                   └─────────────┴─ the prefill replica dies ► QUEUED ┘ and the rest is computed here

What a prefill replica sends are copies of pages, each under a key of all that it depends on, and they go into the tier
below the device. So nothing that is sent late, twice, damaged or for a request that has ended can reach a page of the
device: at the worst it is a page that nobody looks for. A request that waits here owns room below the device, by count.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import msgspec
import numpy as np

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.namespaces import adapter_of
from pawl.lifecycle.records import TierTold
from pawl.lifecycle.snapshot import Plain
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.companion import Companion
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.queues import Queues
from pawl.loops.tiers import PrefillOrder, RemoteConfig, TierEffects
from pawl.memory.tiers.keys import PageKey, page_keys, split_keys

_WAITING = [int(State.QUEUED_RESERVING), int(State.QUEUED_RECEIVING)]
LOOK_AHEAD = 64
"""Waiting requests that are looked at in one turn, from the head of the queue."""


class RemoteCounts(msgspec.Struct):
    """Since the start."""

    begun: int = 0
    received: int = 0
    short: int = 0
    """Those of them that brought less than was wanted."""
    overdue: int = 0
    left: int = 0
    """Prefills whose requests ended meanwhile."""
    lost: int = 0
    """Prefills given up because their replica died, or this one's device."""
    pages: int = 0
    """Pages that were sent."""


@dataclass(eq=False)
class _Prefill:
    """One that is under way, or (without a prefiller) waits for room."""

    row: int
    keys: tuple[PageKey, ...]
    """Of the pages of its prompt that are missing, in order."""
    prefiller: int | None = None

    @property
    def num_pages(self) -> int:
        """Pages that it brings, or will."""
        return len(self.keys)


class RemotePrefill(Companion):
    """Every prefill elsewhere of one decode replica. Stands ahead of the lower tiers among the companions."""

    def __init__(
        self, queues: Queues, journal: Journal, effects: TierEffects, config: RemoteConfig, tiers: LowerTiers
    ) -> None:
        self.queues = queues
        self.journal = journal
        self.effects = effects
        self.config = config
        self.tiers = tiers
        self.counts = RemoteCounts()
        self.ready: set[int] = set()
        """Prefill replicas that have said that they are there."""
        self._tickets = 0
        self._prefills: dict[int, _Prefill] = {}
        """By ticket, in the order in which they were wanted."""
        self._decided: set[int] = set()
        """Rows of waiting requests whose prompts have gone elsewhere once, or need not."""

    @property
    def num_pages(self) -> int:
        """Pages on their way."""
        return sum(each.num_pages for each in self._prefills.values() if each.prefiller is not None)

    # ---- with the loop ----

    def turning(self, now: float) -> None:
        for ticket, prefill in self._prefills.items():
            if prefill.prefiller is None and not self._begin(ticket, prefill, now):
                return

    def planning(self, now: float) -> None:
        # Whoever looks into the cache changes it, and a plan is the moment of which there is always a record.
        state = self.queues.table.state
        if self.ready:
            for row in list(islice(self.queues.waiting, LOOK_AHEAD)):
                if row not in self._decided and state[row] == State.QUEUED:
                    self._consider(row, now)
        self.turning(now)

    def _consider(self, row: int, now: float) -> None:
        self._decided.add(row)
        info = self.queues.table.info(row)
        if info.sampling.needs_whole_prompt or adapter_of(info.namespace):
            return  # adapters have other numbers elsewhere
        missing = self._missing(row)
        if 0 < len(missing) <= self.config.max_pages:
            self._tickets += 1
            self._prefills[self._tickets] = _Prefill(row, tuple(missing))
            self._move(row, Event.RESERVE, Cause.NONE, now)

    def _missing(self, row: int) -> list[PageKey]:
        """Keys of the pages of a prompt that neither the device nor the tiers below it have."""
        table, tiers = self.queues.table, self.tiers
        # The last token is always computed, so a page that ends with it is of no use.
        tokens = table.known(row)[:-1]
        keys = page_keys(tiers.device.root(table.info(row).namespace), tokens, self.queues.memory.page_size)
        start = len(self.queues.cached_pages(row))
        return keys[start + tiers.index.reach(keys, start) :]

    def _begin(self, ticket: int, prefill: _Prefill, now: float) -> bool:
        """Send one that waits for room to a prefill replica. False where there is none yet."""
        if not self.ready or self.num_pages + prefill.num_pages > self.config.max_pages:
            return False
        load = dict.fromkeys(sorted(self.ready), 0)
        for other in self._prefills.values():
            if other.prefiller is not None:
                load[other.prefiller] += other.num_pages
        prefill.prefiller = min(load, key=load.__getitem__)
        row, table, size = prefill.row, self.queues.table, self.queues.memory.page_size
        whole = (int(table.num_tokens[row]) - 1) // size
        tokens, info = table.known(row)[: whole * size + 1].copy(), table.info(row)
        self.counts.begun += 1
        most = (whole - prefill.num_pages) * size
        self._move(row, Event.GRANT, Cause.NONE, now, most)
        info.most_cached = most
        self.effects.prefill(PrefillOrder(ticket, prefill.prefiller, tokens, info.namespace, prefill.keys))
        return True

    def left(self, row: int) -> None:
        self._decided.discard(row)
        for ticket in [ticket for ticket, prefill in self._prefills.items() if prefill.row == row]:
            self.counts.left += 1
            self._cancel(ticket)

    def lost(self, now: float) -> None:
        """The device is lost, its weights are exchanged, or a failure came in between: who waits is asked of the
        table."""
        for ticket in list(self._prefills):
            self.counts.lost += 1
            self._cancel(ticket)
        table = self.queues.table
        live = table.live_rows()
        for row in live[np.isin(table.state[live], _WAITING)].tolist():
            self.tiers.fetching.forget(row)
            self._move(row, Event.RESTORE, Cause.WORKER_LOST, now)

    # ---- what is told ----

    def received(self, ticket: int, count: int, num_cached: int, now: float) -> None:
        """A prefill has ended, and `count` of its pages are below the device. Its replica's cache had the first
        `num_cached` tokens, so these count as cached; what was computed for this very request does not."""
        prefill = self._prefills.get(ticket)
        if prefill is None or prefill.prefiller is None:
            return
        self.journal.tiers("received", ticket, count, (), now, num_cached)
        del self._prefills[ticket]
        self.counts.received += 1
        self.counts.short += count < prefill.num_pages
        self.counts.pages += count
        self.tiers.fetching.forget(prefill.row)
        info = self.queues.table.info(prefill.row)
        most = max(info.most_cached, num_cached)
        self._move(prefill.row, Event.RECEIVE, Cause.NONE, now, most)
        info.most_cached = most

    def overdue(self, ticket: int, now: float) -> None:
        """A lease has ended."""
        if ticket in self._prefills:
            self.journal.tiers("overdue", ticket, 0, (), now)
            self.counts.overdue += 1
            self._give_up([ticket], Cause.TIMEOUT, now)

    def prefiller_up(self, prefiller: int, now: float) -> None:
        """One more prefill replica is there; one that comes back has another number."""
        self.journal.tiers("prefiller_up", prefiller, 0, (), now)
        self.ready.add(prefiller)

    def prefiller_down(self, prefiller: int, now: float) -> None:
        """A prefill replica is gone. Without any nobody waits for one."""
        if prefiller not in self.ready:
            return
        self.journal.tiers("prefiller_down", prefiller, 0, (), now)
        self.ready.discard(prefiller)
        gone = [ticket for ticket, each in self._prefills.items() if each.prefiller == prefiller or not self.ready]
        self._give_up(gone, Cause.WORKER_LOST, now)

    def _give_up(self, tickets: list[int], cause: Cause, now: float) -> None:
        """The requests go on without."""
        for ticket in tickets:
            row = self._prefills[ticket].row
            self.counts.lost += cause is Cause.WORKER_LOST
            self._cancel(ticket)
            self.tiers.fetching.forget(row)
            self._move(row, Event.RESTORE, cause, now)

    def _cancel(self, ticket: int) -> None:
        prefill = self._prefills.pop(ticket)
        if prefill.prefiller is not None:
            self.effects.cancel(ticket, prefill.prefiller)

    def _move(self, row: int, event: Event, cause: Cause, now: float, num_cached: int | None = None) -> None:
        self.journal.move(self.queues.table, row, event, cause, now, num_cached=num_cached)

    def told(self, record: TierTold) -> None:
        match record.kind:
            case "received":
                self.received(record.ticket, record.count, record.num_cached, record.time)
            case "overdue":
                self.overdue(record.ticket, record.time)
            case "prefiller_up":
                self.prefiller_up(record.ticket, record.time)
            case "prefiller_down":
                self.prefiller_down(record.ticket, record.time)

    # ---- for checkpoints, people and tests ----

    def snapshot(self) -> Plain:
        return {
            "tickets": self._tickets,
            "counts": msgspec.to_builtins(self.counts),
            "ready": sorted(self.ready),
            "prefills": [(ticket, p.row, b"".join(p.keys), p.prefiller) for ticket, p in self._prefills.items()],
            "decided": sorted(self._decided),
        }

    def restore(self, plain: Plain) -> None:
        self._tickets, self.ready, self._decided = plain["tickets"], set(plain["ready"]), set(plain["decided"])
        self.counts = msgspec.convert(plain["counts"], RemoteCounts)
        self._prefills = {
            ticket: _Prefill(row, tuple(split_keys(keys)), prefiller)
            for ticket, row, keys, prefiller in plain["prefills"]
        }

    def statistics(self) -> dict[str, int]:
        """Counters since the start, and what is under way now."""
        waiting = sum(each.prefiller is None for each in self._prefills.values())
        return {
            "prefillers": len(self.ready),
            "receiving": len(self._prefills) - waiting,
            "reserving": waiting,
            **{f"prefills_{name}": count for name, count in msgspec.to_builtins(self.counts).items()},
        }

    def check(self) -> None:
        table = self.queues.table
        live = table.live_rows()
        for state, begun in ((State.QUEUED_RESERVING, False), (State.QUEUED_RECEIVING, True)):
            rows = sorted(live[table.state[live] == state].tolist())
            known = sorted(p.row for p in self._prefills.values() if (p.prefiller is not None) == begun)
            if rows != known:
                raise AssertionError(f"rows {rows} are {state.name}, but prefills have rows {known}")
        if self.num_pages > self.config.max_pages:
            raise AssertionError(f"{self.num_pages} pages are on their way, and there is room for fewer")
