"""Whatever is read while ranks are lost is read again: requests wait for it, and get what they get undisturbed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from pawl.actors.simulation.choice import Kind, Option
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.strategies.simple import Fair
from pawl.loops.orders.adapters import LoadAdapter
from pawl.loops.orders.weights import UpdateWeights
from pawl.testing import Workload, explore_workload
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control

LOADS = tuple(Control(body=LoadAdapter(name=name, path=f"ghost:{path}")) for name, path in ("xa", "yb"))
TAKING_TURNS = Workload(
    arrivals=tuple(
        Arrival(prompt=(n + 1, n + 2, 3), max_new_tokens=3, adapter="xyx"[n], at_s=0.001 * n) for n in range(3)
    ),
    shape=Shape(ranks=2, max_loras=1, max_loaded_loras=3, num_pages=12),
    controls=LOADS,
)
"""Two adapters and one slot: each is read again when the other one's requests have ended."""
UPDATED = Workload(
    arrivals=TAKING_TURNS.arrivals[:1],
    shape=TAKING_TURNS.shape,
    controls=(*LOADS[:1], Control(body=UpdateWeights(model_path="ghost:c", weight_version="c"), at_s=0.001)),
)
MOST = 200


class OneDies(Fair):
    """A fair schedule in which a rank, or what is named so, dies at one of its chances, counted from 0."""

    def __init__(self, chance: int, who: str = "rank") -> None:
        super().__init__()
        self.left = chance
        self.label = f"strike {who} "

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        if kind is not Kind.STRIKE or "dies" not in options[1].label or not options[1].label.startswith(self.label):
            return super().choose(kind, options)
        self.left -= 1
        return int(self.left == -1)


def test_wherever_a_rank_dies_adapters_and_weights_are_read_and_nobody_is_refused() -> None:
    reached: Counter[str] = Counter()
    for workload in (TAKING_TURNS, UPDATED):
        for chance in range(MOST):
            dying = OneDies(chance)
            outcome = explore_workload(workload, dying, 1, faults=Faults(strike=1), replayed=chance == 0)
            assert outcome.found is None, (chance, outcome.found)
            reached += outcome.reached
            if dying.left >= 0:  # there are no more
                break
        else:
            raise AssertionError("a run has more chances than it can have")
    assert reached["loss of rank 0"] > 10
    assert not any(name.startswith("refused") for name in reached)


def test_a_request_whose_adapter_is_read_again_between_a_lost_step_and_the_restart_waits() -> None:
    arrivals = tuple(
        Arrival(prompt=(n + 1, n + 2, 3), max_new_tokens=3, adapter="xyxx"[n], at_s=0.001) for n in range(4)
    )
    workload = msgspec.structs.replace(TAKING_TURNS, arrivals=arrivals)
    outcome = explore_workload(workload, "pct", 10, seed=8, faults=Faults(strike=3), shrink=False, replayed=False)
    assert outcome.found is None, outcome.found


def test_a_host_that_dies_with_ranks_of_every_replica_costs_nobody_a_token_and_no_start_is_tried_there() -> None:
    arrivals = tuple(Arrival(prompt=(n + 1, n + 2, 3), max_new_tokens=3, at_s=0.001 * n) for n in range(4))
    shape = Shape(ranks=2, rank_hosts=2, num_pages=12, replicas=2, max_restarts=2)
    reached: Counter[str] = Counter()
    for chance in range(MOST):
        dying = OneDies(chance, "host of rank")
        workload = Workload(arrivals=arrivals, shape=shape)
        outcome = explore_workload(workload, dying, 1, faults=Faults(strike=1), replayed=chance == 0)
        assert outcome.found is None, (chance, outcome.found)
        reached += outcome.reached
        if dying.left >= 0:  # there are no more
            break
    assert reached["loss of a host of ranks"] == chance > 10
    assert reached["lost replica"] == chance
