"""Properties of a loop's memory: `conservation`, `single_owner`, `row_shape`, `hold_accounting`,
`auxiliary_conservation`, `allocation_is_a_transaction`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pawl.lifecycle.properties import conservation, sharing
from pawl.lifecycle.states import State
from pawl.loops.properties.base import StateProperty
from pawl.memory import checks
from pawl.memory.violation import MemoryViolation

if TYPE_CHECKING:
    from pawl.loops.loop import Loop


def at_rest(loop: Loop) -> bool:
    """Nobody waits or runs, no step is in flight, and nothing is on its way from lower tiers."""
    return not (loop.table.row_of or loop.in_flight or loop.memory.pages.quarantined)


class Conservation(conservation.Conservation, StateProperty):
    """At every step, for each pool: free + owned + cached + deferred + quarantined = total, sets pairwise disjoint; a
    page that a step takes as free is in nobody's use; when no request is live, no page is owned or deferred."""

    def check(self, loop: Loop) -> None:
        pages = loop.memory.pages
        for pool in loop.memory.pools:
            pool.check()
        if (pages.owned or pages.deferred) and at_rest(loop):
            raise MemoryViolation("at rest no page is owned or deferred", **pages.counters())

    def check_all(self, loop: Loop) -> None:
        for pool in loop.memory.pools:
            pool.check_all()


class SingleOwner(sharing.SingleOwner, StateProperty):
    """A page that can be written has one owner; a second free is an error: a page comes into the cache once and leaves
    it once, and what the cache has is not taken as free; referrers of each page are counted."""

    def check_all(self, loop: Loop) -> None:
        memory = loop.memory
        checks.check_referrers(memory)
        shared = (memory.pages.refcount > 1) & ~memory.pages.in_cache
        if shared.any():
            raise MemoryViolation("a page that is not cached has one owner", pages=np.flatnonzero(shared))


class RowShape(StateProperty):
    """0 <= protected <= committed <= allocated <= row width: what a row holds of the cache is committed, what is
    committed or in flight has pages, no page is spare, and no row is longer than its request may get."""

    name: ClassVar[str] = "row_shape"

    def check_all(self, loop: Loop) -> None:
        checks.check_lengths(loop.memory)
        checks.check_windows(loop.memory)
        table, memory = loop.table, loop.memory
        rows = loop.queues.running()
        slots = table.slot[rows]
        length = memory.page_table.length[slots]
        decoding = table.state[rows] == State.DECODING
        committed = np.where(decoding, table.num_tokens[rows] - 1, table.num_computed[rows])
        holds = [memory.page_table.holds[slot] for slot in slots.tolist()]
        protected = np.array([hold.num_tokens if hold is not None else 0 for hold in holds])
        wrong = (length > table.max_length[rows]) | (committed > length)
        if loop.in_flight:
            # A row whose first admission is in flight holds what others have committed.
            wrong |= protected > length
        else:
            wrong |= (length != committed) | (protected > committed)
        if wrong.any():
            bad = int(wrong.argmax())
            raise MemoryViolation(
                "protected <= committed <= allocated <= the row's width",
                row=int(rows[bad]),
                protected=int(protected[bad]),
                committed=int(committed[bad]),
                length=int(length[bad]),
                most=int(table.max_length[rows[bad]]),
            )


class HoldAccounting(sharing.HoldAccounting, StateProperty):
    """Holds of a node = its live holders + held children, all zero at rest: no page leaves the cache while a request
    uses it, or before the pages that go on from it."""

    def check(self, loop: Loop) -> None:
        checks.check_cached(loop.memory)
        if loop.memory.cache.held and at_rest(loop):
            raise MemoryViolation("at rest nothing of the cache is held", held=loop.memory.cache.held)

    def check_all(self, loop: Loop) -> None:
        loop.memory.cache.check_all()


class AuxiliaryConservation(StateProperty):
    """Slots, rows, promises, reservations, fetches: one live owner each, none at rest."""

    name: ClassVar[str] = "auxiliary_conservation"

    def check(self, loop: Loop) -> None:
        if not at_rest(loop):
            return
        memory = loop.memory
        left = (
            memory.escrow.total,
            memory.slots.total - memory.slots.free,
            loop.queues.num_waiting,
            loop.queues.num_running,
        )
        if any(left):
            names = ("promised", "slots", "waiting", "running")
            raise MemoryViolation("nothing is left at rest", **dict(zip(names, left, strict=True)))

    def check_all(self, loop: Loop) -> None:
        loop.memory.slots.check()
        checks.check_idle_slots(loop.memory)
        loop.queues.check(loop.table.row_of.values())
        for companion in loop.companions:
            companion.check()
        rows, slots = loop.queues.running(), loop.memory.slots.used
        if sorted(loop.table.slot[rows].tolist()) != slots.tolist():
            raise MemoryViolation("each slot in use has one row", rows=rows, slots=slots)


class AllocationIsATransaction(StateProperty):
    """A failed allocation leaves the state digest as it was, and what was promised can be had: the outcome is to wait,
    to retract, or a named abort, never an exception out of the loop. Who is let in leaves everybody at work the pages
    to the next safe point, and the oldest of them those to its end."""

    name: ClassVar[str] = "allocation_is_a_transaction"

    def check(self, loop: Loop) -> None:
        checks.check_restored(loop.memory)
        checks.check_promises(loop.memory)
        loop.memory.windows.check()

    def check_admitted(self, loop: Loop) -> None:
        table, memory, rows = loop.table, loop.memory, loop.queues.oldest_first()
        lengths = np.minimum(table.num_tokens[rows] + loop.planner.lookahead, table.max_length[rows])
        admitted = set(loop.planning.admitted) if loop.planning is not None else ()
        if len(rows) and rows[0] not in admitted:  # else an older one has come back, or nobody was at work
            lengths[0] = table.max_length[rows[0]]
        slots = table.slot[rows]
        secured = memory.page_table.num_pages[slots] + memory.escrow.promised[slots]
        short = secured * memory.page_size < lengths
        if short.any():
            bad = int(short.argmax())
            raise MemoryViolation(
                "whoever is at work has pages, or promises, to its safe point when somebody is admitted",
                request=table.info(int(rows[bad])).request,
                pages=int(secured[bad]),
                length=int(lengths[bad]),
            )

    def check_all(self, loop: Loop) -> None:
        loop.memory.escrow.check_all()
        checks.check_digest(loop.memory)
