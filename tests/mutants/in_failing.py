"""Defects that show where something fails half-way, and in what lasts behind it: names of weights, the order of those
who wait."""

from __future__ import annotations

from pawl.actors.fleet import Fleet
from pawl.actors.scheduler import Scheduler
from pawl.loops.intake import Intake
from pawl.loops.recovery import recover
from pawl.loops.requests import Requests
from pawl.loops.weights import WeightKeeper
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(group: Group, name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, group, broken, "", what, edits)


FAILING = (
    _mutant(
        Group.MEMORY,
        "memory_is_believed_after_a_failure",
        "conservation",
        "The scheduler fails in the middle of a step, and goes on with the memory that it has changed by half.",
        Edit(recover, "loop.memory.replace(loop.fresh_memory(), written)", "pass"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "who_fails_without_a_row_has_no_end",
        "bounded_progress",
        "The scheduler fails at a request before that has a row, and nobody tells its client.",
        Edit(Scheduler.end_request, "elif requests.opened != request:", "elif False:"),
    ),
    _mutant(
        Group.LIFECYCLE,
        "retracted_requests_fill_the_queue",
        "limits_hold",
        "Requests that lost their memory take the places of those that wait: who comes is refused beside free ones.",
        Edit(
            Requests._refusal,
            "len(self.queues.waiting) >= self.limits.max_queued",
            "self.queues.num_waiting >= self.limits.max_queued",
        ),
    ),
    _mutant(
        Group.CONTROL,
        "order_that_waits_is_forgotten_by_a_failure",
        "quiescent_flush",
        "The scheduler fails while an order waits for rest: its sender is told that it failed, and then it is done.",
        Edit(Intake.owed, "return {*self.waiting, *begun,", "return {*begun,"),
    ),
    _mutant(
        Group.CONTROL,
        "weights_without_a_name_lose_it",
        "weight_epochs",
        "An update that names no version, and so keeps the name, has replies call the weights as at the start.",
        Edit(WeightKeeper.swapped, "update.version or self.served.version", 'update.version or "default"'),
    ),
    _mutant(
        Group.CONTROL,
        "who_comes_alone_is_taken_for_the_one_before",
        "adapter_references",
        "All replicas are gone, another one comes, and the gateway still believes what the last of them had served.",
        Edit(Fleet._tell_of_it, "if len(self.replicas) == 1:", "if False:"),
    ),
)
