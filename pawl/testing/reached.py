"""What happened in a simulated run: the events whose frequency says how much an exploration has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pawl.actors.control import ROWS, row_of
from pawl.actors.simulation.faults import FaultKind
from pawl.lifecycle.machines.weight_group import GroupEvent
from pawl.lifecycle.records import Checkpoint, Submitted
from pawl.lifecycle.states import ABORT_CAUSES, FINISH_CAUSES, Cause, Event
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.remote_prefill import RemotePrefill

if TYPE_CHECKING:
    from pawl.testing.cluster import Cluster
    from pawl.testing.replica import SimulatedReplica

NOT_EXPLORED = {
    Cause.HANDED_OVER: "no client's: it ends a prefill for another replica, which is counted as a hand-over",
}
"""Causes of ends that no run reaches, each with why; every other one is an event."""
ENDS = tuple(
    f"end by {cause}" for cause in Cause if cause in FINISH_CAUSES | ABORT_CAUSES and cause not in NOT_EXPLORED
)
FAULTS = {
    FaultKind.RUSH: "rushed clock",
    FaultKind.LATE: "late timer",
    FaultKind.JUMP: "clock jump",
    FaultKind.CRASH: "crash of an actor",
    FaultKind.KILL: "killed process",
    FaultKind.FREEZE: "frozen process",
    FaultKind.PART: "process out of reach",
    FaultKind.FAIL: "line that raises",
}
PLACES = {
    "result": "lost result",
    "no numbers": "token that means nothing",
    "disk": "refusal of the disk",
    "page": "damaged page",
    "link": "refusal of a link",
    "link cut": "cut link",
    "trainer gone": "lost trainer",
    "trainer late": "late trainer",
    "rank 0 dies": "loss of rank 0",
    "rank 1 dies": "loss of rank 1",
    "host of rank 1 dies": "loss of a host of ranks",
    "rank 0 skips a step": "rank 0 diverges",
    "rank 1 skips a step": "rank 1 diverges",
}
"""Where faults strike, beside the launch of a step."""
EVENTS = (
    *(
        "retraction",
        "lost step",
        "two lost steps",
        *PLACES.values(),
        "stale token",
        "full mailbox",
        "lost replica",
        "resumed request",
        "added replica",
        "replica that left",
        "prefix hit",
        "eviction",
        "page saved",
        "page fetched",
        "fetch given up",
        "shared fetch",
        "page handed over",
        "checkpoint",
        "broadcast",
        "wrong draft",
        "right draft",
    ),
    *(row.name for row in ROWS if row.drawn),
    "refused flush-cache",
    *FAULTS.values(),
    *ENDS,
)


def events_of(run: Cluster) -> Iterator[str]:
    """The events of one run."""
    ended = run.desk.totals.ended
    happened = Counter({"full mailbox": run.num_held_back, "lost replica": sum(each.lost for each in run.replicas)})
    if run.starter is not None:
        happened.update({"added replica": run.starter.num_added, "replica that left": run.starter.num_left})
    for replica in run.replicas:
        happened.update(_events_of(replica))
    yield from (name for name, count in happened.items() if count)
    yield from (f"end by {cause}" for cause, count in ended.items() if count)
    for control, answers in zip(run.workload.controls, run.desk.answers, strict=True):
        name = row_of(control.body).name
        yield name
        yield from (f"refused {name}" for answer in answers if not answer.ok)
    budget = run.system.faults
    yield from (name for place, name in PLACES.items() if place in budget.struck)
    yield from (name for kind, name in FAULTS.items() if budget.left[kind] < budget.faults.budget(kind))


def _events_of(replica: SimulatedReplica) -> dict[str, int]:
    loop = replica.scheduler.loop
    counters = loop.counters
    happened: dict[str, int] = {
        "retraction": counters.retractions,
        "lost step": counters.steps_lost,
        "two lost steps": counters.steps_lost > 1,
        "stale token": counters.dropped_tokens,
        "prefix hit": counters.cached_tokens,
        "resumed request": sum(
            isinstance(record, Submitted) and record.num_retractions > 0 for record in replica.trace.records
        ),
        "wrong draft": counters.draft_tokens - counters.accepted_tokens,
        "right draft": counters.accepted_tokens,
        "eviction": loop.memory.cache.statistics().get("evicted_pages", 0),
        "broadcast": any(getattr(record, "event", None) is GroupEvent.RECEIVED for record in replica.trace.records),
        "checkpoint": sum(isinstance(record, Checkpoint) for record in replica.trace.records),
    }
    for companion in loop.companions:
        if isinstance(companion, RemotePrefill):
            happened["page handed over"] = companion.counts.pages
        if isinstance(companion, LowerTiers):
            counts = companion.fetching.counts
            waited = sum(getattr(record, "event", None) is Event.FETCH for record in replica.trace.records)
            happened |= {
                "page saved": companion.saving.counts.saved,
                "page fetched": counts.pages,
                "fetch given up": counts.expired + counts.left + counts.lost,
                "shared fetch": waited - counts.begun,
            }
    return happened
