"""Properties of what a loop does with its requests: `work_conserving`, `observability_conservation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pawl.lifecycle.properties import observability_conservation
from pawl.loops.properties.base import StateProperty
from pawl.memory.violation import MemoryViolation

if TYPE_CHECKING:
    from pawl.loops.loop import Loop


class WorkConserving(StateProperty):
    """No idle step while an admissible request waits: with nothing in flight, nothing on its way from lower tiers and
    no page kept for such, whoever waits or runs can go on, as each fits alone. Nor does a prompt that has begun starve
    beside requests that decode: each step goes on with one, unless pages are short or it measures what those take."""

    name: ClassVar[str] = "work_conserving"

    def check_held_back(self, loop: Loop) -> None:
        if loop.planner.max_step_s is not None and loop.limits.times.measuring:
            return
        queues, table, memory = loop.queues, loop.table, loop.memory
        row = min(queues.prefilling, key=table.order.__getitem__)
        slot = int(table.slot[row])
        length = int(memory.page_table.length[slot])
        end = min(length + loop.limits.now.prefill_chunk, int(table.num_tokens[row]))
        pages = -(-end // memory.page_size) - int(memory.page_table.num_pages[slot])
        free = pages <= memory.pages.free + memory.cache.evictable and not memory.windows.pools
        if free and pages - int(memory.escrow.promised[slot]) <= max(memory.unpromised, 0):
            raise MemoryViolation("a prompt that has begun goes on", request=table.info(row).request, computed=length)

    def check_idle(self, loop: Loop) -> None:
        queues = loop.queues
        if queues.idle or loop.in_flight or queues.held_up or loop.memory.pages.quarantined:
            return
        raise MemoryViolation(
            "nobody waits while nothing is done", running=queues.num_running, waiting=queues.num_waiting
        )


class ObservabilityConservation(observability_conservation.ObservabilityConservation, StateProperty):
    """received = finished + aborted + live; every total of `Closed` is the sum over the requests; and the changes of
    the cache, replayed from nothing, give the pages that are counted as cached."""

    def check(self, loop: Loop) -> None:
        counters, live = loop.counters, len(loop.table.row_of)
        if counters.received != counters.finished + counters.aborted + live:
            raise MemoryViolation(
                "received = finished + aborted + live",
                received=counters.received,
                finished=counters.finished,
                aborted=counters.aborted,
                live=live,
            )
