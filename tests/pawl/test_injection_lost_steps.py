"""An exception at any line while the engine deals with what the world does to it: a step that the worker has lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pytest

from pawl.actors.simulation.choice import Kind, Option
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.strategies.simple import Fair
from pawl.lifecycle.journal import Journal
from pawl.loops.recovery import recover
from pawl.testing.injection import Place, inject, places_of
from pawl.testing.workload import Workload
from tests.mutants.mutant import Edit, planted
from tests.pawl.test_injection import with_drafts, with_grammars, without, workload

LOST = (4, 5, 9)
"""Steps that the worker loses, of those it is given."""
FAULTS = Faults(strike=len(LOST))
HANDLING = (
    *("Scheduler._failed", "Scheduler._reset_worker", "Loop.failed", "undo_newest", "lose_runner", "lose_pages"),
    *("Ledger.abort", "Transaction.rollback", "Journal.rolled_back", "ScheduledBatch.first_hits"),
    *("ScheduledBatch.at_work", "Requests.blame", "Requests.retract", "Requests.retracted", "Queues.retract"),
)
SAMPLE = "Requests.blame", "Journal.rolled_back"


class Losing(Fair):
    """The steps of these numbers are lost."""

    def __init__(self) -> None:
        super().__init__()
        self._number = 0

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        if kind is not Kind.STRIKE or "step" not in options[0].label:
            return 0
        self._number += 1
        return int(self._number in LOST)


def losing(seed: int) -> Losing:
    return Losing()


def broken(asked: Workload, functions: Sequence[str], hits_of: Callable[[Place], Collection[int]]) -> list[str]:
    """What does not hold after an exception at these hits of their lines."""
    places = [place for place in places_of(asked, losing, FAULTS) if place.function in functions]
    assert {place.function for place in places} == set(functions)
    tried = [(place, hit) for place in places for hit in sorted(hits_of(place))]
    results = [(*each, inject(asked, *each, strategy=losing, faults=FAULTS).error) for each in tried]
    return [f"{place}, hit {hit}: {error}" for place, hit, error in results if error is not None]


def test_an_exception_at_a_sample_of_lines_about_a_lost_step_ends_nobody_whom_the_loss_would_not_end() -> None:
    assert broken(workload(), SAMPLE, lambda place: {(1 + place.hits) // 2}) == []


@pytest.mark.slow
@pytest.mark.parametrize("asked", [workload(), with_drafts(), with_grammars()], ids=["plain", "drafts", "grammars"])
def test_an_exception_at_any_line_about_a_lost_step_ends_nobody_whom_the_loss_would_not_end(asked: Workload) -> None:
    assert broken(asked, HANDLING, lambda place: {1, (1 + place.hits) // 2, place.hits}) == []


HALF_DONE = {
    "half a record of a rollback is made again": (
        Edit(Journal.rolled_back, "self._rolled_back = step", "pass"),
        "Journal.precede.<locals>.emit_after_changes",
    ),
    "a step that is lost is nobody's": (Edit(recover, "requests.blame(loop.lost, now)", "pass"), "Requests.blame"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "function"), HALF_DONE.values(), ids=list(HALF_DONE))
def test_a_lost_step_that_is_not_gone_on_with_is_found_out(edit: Edit, function: str) -> None:
    asked = workload()
    places = [place for place in places_of(asked, losing, FAULTS) if place.function == function]
    tried = [(place, hit + 1) for place in places for hit in range(place.hits)]
    with planted(without(edit)):
        assert any(inject(asked, *each, strategy=losing, faults=FAULTS).error for each in tried)
