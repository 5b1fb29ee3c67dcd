"""Workload and schedule of a subject drawn by Hypothesis, which shrinks both together.

@given(workload=subject_workloads(Mine), schedule=schedules())
def test_mine(workload, schedule):
    check_subject(Mine, workload, schedule)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pawl.actors.simulation.exploration import drive
from pawl.testing.hypothesis import FromHypothesis
from pawl.testing.subject.exploring import scenario_of
from pawl.testing.subject.port import Subject
from pawl.testing.subject.registry import check_subject_class
from pawl.testing.subject.workload import Workload, drawn_workload

if TYPE_CHECKING:
    from hypothesis import strategies as st

    from pawl.actors.simulation.strategies.drawn import Drawn


def subject_workloads(kind: type[Subject], *, max_requests: int = 4) -> st.SearchStrategy[Workload]:
    """Hypothesis strategy: workloads that shrink to few, short, plain requests. Raises ValueError for what is no
    subject."""
    from hypothesis import strategies as st

    check_subject_class(kind, kind.__qualname__)

    @st.composite
    def strategy(draw: st.DrawFn) -> Workload:
        return drawn_workload(FromHypothesis(draw), kind.offers, max_requests)

    return strategy()


def check_subject(kind: type[Subject], workload: Workload, schedule: Drawn) -> None:
    """Run the workload under this schedule. Raises PropertyFailed, with the calls that were made in its notes."""
    case = scenario_of(kind, workload)(schedule)
    try:
        drive(case)
    except Exception as error:
        error.add_note(case.system.dump())
        raise
