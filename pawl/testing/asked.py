"""What is recorded of a request, and when it is said to have come so far, beside what its client asked for and saw."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pawl.lifecycle.namespaces import salt_of
from pawl.lifecycle.records import Submitted
from pawl.testing.expectations import PropertyFailed

if TYPE_CHECKING:
    from pawl.testing.clients import Client
    from pawl.testing.cluster import Cluster
    from pawl.testing.replica import SimulatedReplica

ROUNDING_S = 1e-6
"""Of times that are told as so long ago."""


def check_asked(run: Cluster, client: Client) -> None:
    """Whichever replica has the request, it is as its client sent it; and one that goes on from a replica that was lost
    goes on with its deadline, and with what its client was told. Raises PropertyFailed."""
    arrival, request = client.arrival, client.request
    taken = _records_of(run, request)
    for count, (record, replica) in enumerate(taken):
        asked, found = (arrival.priority, arrival.salt), (record.priority, salt_of(record.namespace))
        if found != asked:
            text = f"priority and salt {asked} are {found} in replica {replica.names.replica}"
            raise PropertyFailed("observability_conservation", text, request)
        if count:
            # Who had it at the same time as another may have had it before or after that one.
            latest = taken[count - 1][0].time
            _check_gone_on(run, record, count, [each for each in taken[:count] if each[0].time == latest])


def _records_of(run: Cluster, request: int | None) -> list[tuple[Submitted, SimulatedReplica]]:
    """How replicas took it, the first one first."""
    found = [
        (record, replica)
        for replica in run.serving
        for record in replica.trace.records
        if isinstance(record, Submitted) and record.request == request
    ]
    return sorted(found, key=lambda each: each[0].time)


def _check_gone_on(
    run: Cluster, record: Submitted, count: int, before: list[tuple[Submitted, SimulatedReplica]]
) -> None:
    """`count`: replicas that had it; one of `before` was the last of them."""
    earlier, _ = before[-1]
    deadlines = earlier.deadline, record.deadline
    late = None in deadlines and deadlines != (None, None)
    if None not in deadlines and not _time_passes_on_the_way(run):
        late = abs((record.deadline or 0.0) - (earlier.deadline or 0.0)) > ROUNDING_S
    if late:
        text = f"its deadline was {deadlines[0]}, and is {deadlines[1]} in the next replica"
        raise PropertyFailed("observability_conservation", text, record.request)
    told = [replica.usage.cached.get(record.request) for _, replica in before]
    if len(record.output) and None not in told and record.num_cached not in told:
        text = f"{told[-1]} tokens were cached, and the next replica was told {record.num_cached}"
        raise PropertyFailed("observability_conservation", text, record.request)
    if len(record.output) and record.num_retractions < count:
        text = f"{count} replicas that had it were lost, and it counts {record.num_retractions} retractions"
        raise PropertyFailed("observability_conservation", text, record.request)


def check_times(run: Cluster, client: Client) -> None:
    """What a client is told of when its request came, was admitted, had its first token and ended is in this order, and
    its first token was not after it saw it. Raises PropertyFailed."""
    if client.done is None or _time_passes_on_the_way(run):
        return
    timing = client.done.timing
    told = timing.submitted, timing.admitted, timing.first_token
    for times in ((*told, timing.ended), (timing.first_token, client.first_at)):
        known = [time for time in times if time is not None]
        if any(later < earlier - ROUNDING_S for earlier, later in pairwise(known)):
            text = f"submitted, admitted, first token: {told}; first seen at {client.first_at}, ended {timing.ended}"
            raise PropertyFailed("observability_conservation", text, client.request)


def _time_passes_on_the_way(run: Cluster) -> bool:
    """Whether messages between replicas may be under way while the clock goes on: how long ago something was, which
    they tell, is not true then."""
    faults, shape = run.system.faults.faults, run.workload.shape
    return (shape.routed and shape.steps_take_time) or faults.rush + faults.late + faults.freeze + faults.part > 0
