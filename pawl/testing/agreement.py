"""What lasts is the same in all replicas, whenever they came, and is what the front believes, at rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from pawl.actors.control import row_of
from pawl.lifecycle.machines.adapter import MAY_BE_NAMED, AdapterPhase
from pawl.lifecycle.machines.serving import Serving
from pawl.testing.expectations import PropertyFailed

if TYPE_CHECKING:
    from pawl.loops.adapter import Named
    from pawl.testing.cluster import Cluster
    from pawl.testing.replica import SimulatedReplica

Facts = Iterator[tuple[str, str, object]]
"""(property that it is a matter of, what it is, its value)"""

WEIGHTS = "weight_epochs"
NEW_WEIGHTS = frozenset({"update-weights", "put-weights", "receive-weights"})
"""Control messages that bring some."""


def check_agreement(run: Cluster) -> None:
    """Of an engine at rest. Raises PropertyFailed."""
    there, refused = _taking_part(run), weights_refused(run)
    if not there:
        return
    first, *others = [*there, *_prefilling(run)]
    for other in others:
        for (name, what, here), (_, _, elsewhere) in zip(_lasting(first), _lasting(other), strict=True):
            if here != elsewhere and not (refused and name == WEIGHTS):
                who = f"{what} is {here} in replica {first.names.replica}"
                raise PropertyFailed(name, f"{who}, and {elsewhere} in replica {other.names.replica}")
    for name, what, believed, true in _believed(run, there):
        if believed not in true:
            raise PropertyFailed(name, f"{what} is {[*true]}, and the gateway believes {believed}")


def weights_refused(run: Cluster) -> bool:
    """Whether a replica has refused new weights, which others may have taken: then they serve different ones."""
    given = zip(run.workload.controls, run.desk.answers, strict=True)
    return any(
        row_of(control.body).name in NEW_WEIGHTS and not answer.ok for control, answers in given for answer in answers
    )


def _taking_part(run: Cluster) -> list[SimulatedReplica]:
    """Those that take requests."""
    numbers = None if run.router is None else run.router.replicas
    return [each for each in run.serving if not each.lost and (numbers is None or each.names.replica in numbers)]


def _prefilling(run: Cluster) -> list[SimulatedReplica]:
    numbers = () if run.router is None else run.router.fleet.prefillers.replicas
    return [each for each in run.replicas if not each.lost and each.names.replica in numbers]


def _lasting(replica: SimulatedReplica) -> Facts:
    """What all are told alike."""
    scheduler: Any = replica.scheduler
    loop, served = scheduler.loop, scheduler.intake.weights.served
    yield "limits_hold", "what steps are planned within", loop.limits.now
    yield "quiescent_flush", "whether generation is paused", loop.serving
    yield "released_is_still", "memory that is released", loop.released
    yield WEIGHTS, "what is served", (served.version, served.fingerprint)


def _believed(run: Cluster, there: list[SimulatedReplica]) -> Iterator[tuple[str, str, object, Collection[object]]]:
    """(property, what it is, what the gateway believes, what may be believed)"""
    desk, loop, config = run.desk, there[0].scheduler.loop, there[0].scheduler.config
    yield "quiescent_flush", "whether generation is paused", desk.paused, (loop.serving is Serving.PAUSED,)
    told = config.served if desk.weights is None else desk.weights
    served = [each.scheduler.intake.weights.served for each in there]
    yield (
        WEIGHTS,
        "what is served",
        (told.version, told.fingerprint),
        [(each.version, each.fingerprint) for each in served],
    )
    (listed, had) = (_of_all(there, *phases) for phases in ((AdapterPhase.READY,), MAY_BE_NAMED))
    yield "adapter_references", "what requests may name", set(desk.adapters.values()), (listed,)
    rest = {each for each in desk.unloaded.values() if each.name in desk.resting}
    yield "adapter_references", "what requests may name though it rests", rest, (had - listed,)
    yield "released_is_still", "memory that is released", frozenset(desk.released), (loop.released,)


def _of_all(replicas: list[SimulatedReplica], *phases: AdapterPhase) -> set[Named]:
    """Adapters that are so in all of these."""
    keepers = [replica.scheduler.intake.adapters for replica in replicas]
    sets = [{each for phase in phases for each in keeper.named(phase)} for keeper in keepers if keeper is not None]
    return set.intersection(*sets) if sets else set()
