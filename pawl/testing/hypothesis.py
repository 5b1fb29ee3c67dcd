"""Workload and schedule drawn by Hypothesis, which shrinks both together.

@given(workload=workloads(policy="lpm"), schedule=schedules(), faults=fault_budgets())
def test_mine(workload, schedule, faults):
    check_schedule(workload, schedule, faults=faults)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.quiet import silence
from pawl.testing.cluster import NO_FAULTS, Cluster
from pawl.testing.exploring import most_steps, scenario_of
from pawl.testing.replica import quick_properties, record_properties
from pawl.testing.workload import Workload, drawn_workload

if TYPE_CHECKING:
    from hypothesis import strategies as st

    from pawl.actors.simulation.strategies.drawn import Drawn


class FromHypothesis:
    """Chance that Hypothesis shrinks."""

    def __init__(self, draw: st.DrawFn) -> None:
        from hypothesis import strategies as st

        self._draw, self._st = draw, st

    def pick(self, options: Any) -> Any:
        return self._draw(self._st.sampled_from(options))

    def within(self, low: int, high: int) -> int:
        return self._draw(self._st.integers(low, max(low, high)))

    def chance(self, share: float) -> bool:
        return self._draw(self._st.booleans())


def workloads(*, max_requests: int = 5, **shape: Any) -> st.SearchStrategy[Workload]:
    """Hypothesis strategy: workloads that shrink to few, short, plain requests. Fields of `shape` are fixed."""
    from hypothesis import strategies as st

    @st.composite
    def strategy(draw: st.DrawFn) -> Workload:
        return drawn_workload(FromHypothesis(draw), max_requests, shape)

    return strategy()


def fault_budgets(*, most: int = 1) -> st.SearchStrategy[Faults]:
    """Hypothesis strategy: how often steps may be lost, timers be late, and clocks jump or outrun the work in one run;
    shrinks to none of it."""
    from hypothesis import strategies as st

    times = st.integers(0, most)
    return st.builds(Faults, strike=times, rush=times, late=times, jump=times)


def schedules() -> st.SearchStrategy[Drawn]:
    """Hypothesis strategy: schedules that shrink to the fair one. Each serves for one run."""
    from hypothesis import strategies as st

    from pawl.actors.simulation.strategies.drawn import Drawn

    return st.builds(Drawn, st.data())


def check_schedule(
    workload: Workload, schedule: Drawn, *, faults: Faults = NO_FAULTS, replayed: bool = False
) -> Cluster:
    """Serve the workload under this schedule; gives back the engine at rest. What failed is raised, PropertyFailed for
    a property, with the decisions that were not fair in its notes.

    `replayed`: the run is also replayed from its own records, which takes a third of the time.
    """
    properties = record_properties if replayed else quick_properties
    case = scenario_of(workload, faults, properties)(schedule)
    assert isinstance(case, Cluster)
    try:
        with silence():
            drive(case, max_steps=most_steps(workload))
    except Exception as error:
        for at, _, label in case.system.choices.deviations():
            error.add_note(f"decision {at}: {label}")
        raise
    return case
