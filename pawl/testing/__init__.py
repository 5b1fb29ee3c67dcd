"""Tools for testing a scheduler by properties: the real actors under a simulator that chooses every delivery.

    from pawl.testing import Workload, explore_workload
    outcome = explore_workload(Workload.random(seed=1), strategy="pct", schedules=200)
    assert outcome.failure is None, outcome.failure

`workloads()` is the Hypothesis strategy for the same; `pawl explore` runs it from the command line.
"""

from pawl.testing.cluster import cluster
from pawl.testing.expectations import PropertyFailed
from pawl.testing.exploring import STRATEGIES, Found, explore_workload, load_schedule, replay_schedule
from pawl.testing.properties import BoundedOvertaking
from pawl.testing.queues import queue
from pawl.testing.workload import Arrival, Flush, Shape, Workload, workloads

__all__ = [
    "STRATEGIES",
    "Arrival",
    "BoundedOvertaking",
    "Flush",
    "Found",
    "PropertyFailed",
    "Shape",
    "Workload",
    "cluster",
    "explore_workload",
    "load_schedule",
    "queue",
    "replay_schedule",
    "workloads",
]
