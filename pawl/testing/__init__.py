"""Tools for testing a scheduler by properties: the real actors under a simulator that chooses every delivery.

    from pawl.testing import Workload, explore_workload
    outcome = explore_workload(Workload.random(seed=1), strategy="pct", schedules=200)
    assert outcome.found is None, outcome.found

`workloads()`, `fault_budgets()` and `schedules()` are Hypothesis strategies that shrink together; the pytest plugin
`pawl` has the fixture `explore`; `pawl.testing.contract` has tests for a policy, a cache or a scheduler of your own;
`pawl explore` is the command.
"""

from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.strategies.exhaustive import NotDeterministic
from pawl.testing.apart import apart
from pawl.testing.cluster import NO_FAULTS, cluster
from pawl.testing.contention import contention
from pawl.testing.conversing import conversing
from pawl.testing.crowding import crowding
from pawl.testing.expectations import PropertyFailed
from pawl.testing.exploring import STRATEGIES, Found, explore_workload, load_schedule, replay_schedule
from pawl.testing.hypothesis import check_schedule, fault_budgets, schedules, workloads
from pawl.testing.properties import BoundedOvertaking
from pawl.testing.scarcity import scarcity
from pawl.testing.shape import Shape
from pawl.testing.steering import steering
from pawl.testing.workload import Arrival, Control, Workload

__all__ = [
    "NO_FAULTS",
    "STRATEGIES",
    "Arrival",
    "BoundedOvertaking",
    "Control",
    "Faults",
    "Found",
    "NotDeterministic",
    "PropertyFailed",
    "Shape",
    "Workload",
    "apart",
    "check_schedule",
    "cluster",
    "contention",
    "conversing",
    "crowding",
    "explore_workload",
    "fault_budgets",
    "load_schedule",
    "replay_schedule",
    "scarcity",
    "schedules",
    "steering",
    "workloads",
]
