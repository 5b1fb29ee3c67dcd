"""Properties of what a loop does with its requests: `work_conserving`, `observability_conservation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pawl.lifecycle.properties import observability_conservation
from pawl.lifecycle.states import FINISH_CAUSES
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
        measuring = loop.planner.max_step_s is not None and loop.limits.times.measuring
        if not measuring and loop.planning is not None and not loop.planning.short:
            raise MemoryViolation("a prompt that has begun goes on", prompts=len(loop.queues.prefilling))

    def check_idle(self, loop: Loop) -> None:
        queues = loop.queues
        if queues.idle or loop.in_flight or queues.held_up or loop.memory.pages.quarantined:
            return
        raise MemoryViolation(
            "nobody waits while nothing is done", running=queues.num_running, waiting=queues.num_waiting
        )


class ObservabilityConservation(observability_conservation.ObservabilityConservation, StateProperty):
    """received = finished + aborted + live, and as many ends are counted by their causes, also in a checkpoint; every
    total of `Closed` is the sum over the requests; and the changes of the cache, replayed from nothing, give the pages
    that are counted as cached."""

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

    def check_all(self, loop: Loop) -> None:
        counters = loop.counters
        finished = sum(count for cause, count in counters.by_cause.items() if cause in FINISH_CAUSES)
        aborted = sum(count for cause, count in counters.by_cause.items() if cause not in FINISH_CAUSES)
        if (finished, aborted) != (counters.finished, counters.aborted):
            raise MemoryViolation(
                "ends = ends by cause",
                finished=counters.finished,
                aborted=counters.aborted,
                finished_by_cause=finished,
                aborted_by_cause=aborted,
            )
        if not counters.accepted_tokens <= counters.draft_tokens >= counters.drafts:
            raise MemoryViolation(
                "of the tokens that were drafted some were right, one at least was in each draft",
                right=counters.accepted_tokens,
                drafted=counters.draft_tokens,
                drafts=counters.drafts,
            )
