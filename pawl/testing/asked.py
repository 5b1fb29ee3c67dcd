"""What is recorded of a request, and when it is said to have come so far, beside what its client asked for and saw."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from pawl.actors.control import row_of
from pawl.lifecycle.namespaces import salt_of
from pawl.lifecycle.records import Delivered, Submitted, Transition
from pawl.lifecycle.states import Cause, Event
from pawl.loops.orders.sessions import TAKES_ITS_PLACE
from pawl.loops.orders.weights import EXCHANGED, RENAMED
from pawl.testing.expectations import PropertyFailed
from pawl.testing.routing import ROUNDING_S

if TYPE_CHECKING:
    from pawl.actors.messages.generate import Timing
    from pawl.testing.clients import Client
    from pawl.testing.cluster import Cluster
    from pawl.testing.replica import SimulatedReplica
    from pawl.testing.workload import Arrival


def check_answered(run: Cluster) -> None:
    """Of a run that does not come to rest: raises PropertyFailed for what it waits for, where that can be told."""
    for step in (step for each in run.replicas if not each.lost for step in each.scheduler.loop.in_flight):
        raise PropertyFailed("bounded_progress", f"step {step.step} was launched and never ends")
    for client in (each for each in run.desk.clients if each.request and not (each.is_over or each.num_ends)):
        raise PropertyFailed("bounded_progress", "it is never answered", client.request)
    for control, answers in zip(run.workload.controls, run.desk.answers, strict=True):
        if not answers:
            raise PropertyFailed("bounded_progress", f"{row_of(control.body).name} is never answered")


def check_asked(run: Cluster, client: Client) -> None:
    """Whichever replica has the request, it is as its client sent it; and one that goes on from a replica that was lost
    goes on with its deadline, and with what its client was told. Raises PropertyFailed."""
    arrival, request = client.arrival, client.request
    taken = _records_of(run, request)
    for count, (record, replica) in enumerate(taken):
        _check_deadline(run, record, replica, arrival.timeout_s)
        asked, found = (arrival.priority, arrival.salt), (record.priority, salt_of(record.namespace))
        if found != asked:
            text = f"priority and salt {asked} are {found} in replica {replica.names.replica}"
            raise PropertyFailed("observability_conservation", text, request)
        if count:
            # Who had it at the same time as another may have had it before or after that one.
            latest = taken[count - 1][0].time
            _check_gone_on(run, record, count, [each for each in taken[:count] if each[0].time == latest])


def _check_deadline(run: Cluster, record: Submitted, replica: SimulatedReplica, timeout_s: float | None) -> None:
    """It is so long after the request came to the first of those that pose as its scheduler."""
    age_s = 0.0 if run.router is None else run.router.ages.get((record.request, replica.names.replica))
    patience_s = replica.scheduler.default_timeout_s if timeout_s is None else timeout_s
    if age_s is None or record.deadline is None:
        return
    due = record.time - age_s + patience_s
    if abs(record.deadline - due) > ROUNDING_S:
        text = f"its deadline is {record.deadline} in replica {replica.names.replica}, and was to be {due}"
        raise PropertyFailed("observability_conservation", text, record.request)


def _records_of(run: Cluster, request: int | None) -> list[tuple[Submitted, SimulatedReplica]]:
    """How replicas took it, the first one first."""
    found = [
        (record, replica)
        for replica in run.serving
        for record in replica.trace.records
        if isinstance(record, Submitted) and record.request == request
    ]
    return sorted(found, key=lambda each: (each[0].time, each[0].num_retractions))


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


def check_accepted(client: Client, arrival: Arrival) -> None:
    """A client is told how long its prompt is, and which it is where it wants that. Raises PropertyFailed."""
    accept = client.accept
    if accept is None:
        return
    prompt = arrival.prompt if arrival.return_prompt else ()
    if (accept.num_prompt, tuple(accept.prompt)) != (len(arrival.prompt), prompt):
        text = f"its prompt is {arrival.prompt}, and it is told of {accept.num_prompt} tokens, {accept.prompt}"
        raise PropertyFailed("stream_equals_result", text, client.request)


def check_times(run: Cluster, client: Client) -> None:
    """What a client is told of when its request came, was admitted, had its first token and ended is in this order, and
    what is recorded; and its first token was not after it saw it. Raises PropertyFailed."""
    if client.done is None or _time_passes_on_the_way(run):
        return
    timing = client.done.timing
    told = timing.submitted, timing.admitted, timing.first_token
    for times in ((*told, timing.ended), (timing.first_token, client.first_at)):
        known = [time for time in times if time is not None]
        if any(later < earlier - ROUNDING_S for earlier, later in pairwise(known)):
            text = f"submitted, admitted, first token: {told}; first seen at {client.first_at}, ended {timing.ended}"
            raise PropertyFailed("observability_conservation", text, client.request)
    _check_recorded(run, client, timing)


def _check_recorded(run: Cluster, client: Client, told: Timing) -> None:
    cause, request = None if client.done is None else client.done.cause, client.request or 0
    had = [each for each in run.serving if request in each.usage.times]
    if len(had) != 1 or run.failed or cause in (Cause.INTERNAL, Cause.DRAINED):
        return  # else records may be missing, or the gateway may have answered, which does not know them
    true = had[0].usage.times[request]
    pairs = [(told.submitted, true.submitted), (told.admitted, true.admitted)]
    if cause is Cause.STOP_STRING and told.first_token is None:
        text = f"its text ended it, and nobody tells when it had its first token: {told}"
        raise PropertyFailed("observability_conservation", text, request)
    # Which the detokenizer has seen, where a token is not seen as soon.
    if cause is not Cause.STOP_STRING or ended_with_its_text(had[0], client):
        pairs += [(told.first_token, true.first_token), (told.ended, true.ended)]
    for said, recorded in pairs:
        if (said is None) != (recorded is None) or abs((said or 0.0) - (recorded or 0.0)) > ROUNDING_S:
            text = f"it is told {told}, and {true} is recorded"
            raise PropertyFailed("observability_conservation", text, request)


def ended_with_its_text(replica: SimulatedReplica, client: Client) -> bool:
    """Whether the token that completed a stop string was the last one that this replica's scheduler drew for the
    request anyway: then the client is told what that one knows."""
    return any(
        isinstance(record, Transition)
        and (record.request, record.event) == (client.request, Event.FINISH)
        and record.cause != Cause.STOP_STRING
        and record.num_output == len(client.tokens)
        for record in replica.trace.records
    )


def check_aborts(run: Cluster) -> None:
    """A scheduler that has survived nothing is told once that a client wants no more. Raises PropertyFailed."""
    for replica in run.replicas:
        records = replica.trace.records
        orders = [each for each in records if isinstance(each, Delivered) and each.kind == "abort"]
        told = [each for each in orders if each.fields.get("cause", Cause.CLIENT) in (Cause.CLIENT, Cause.DISCONNECT)]
        told = [each for each in told if not _by_an_order(each.fields.get("message", ""))]
        counts = Counter(request for each in told for request in each.fields.get("requests", ()))
        for request, count in counts.items():
            if count > 1 and not replica.scheduler.num_contained:
                raise PropertyFailed("abort_is_total", f"its scheduler was told {count} times to abort it", request)


def _time_passes_on_the_way(run: Cluster) -> bool:
    """Whether messages between replicas may be under way while the clock goes on: how long ago something was, which
    they tell, is not true then."""
    faults, shape = run.system.faults.faults, run.workload.shape
    return (shape.routed and shape.work_takes_time) or faults.rush + faults.late + faults.freeze + faults.part > 0


def _by_an_order(message: str) -> bool:
    """An order about something else ends the request, beside what its client wants."""
    return message in (RENAMED, EXCHANGED) or message.endswith(TAKES_ITS_PLACE)
