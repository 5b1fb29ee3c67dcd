"""What an engine counts is the sum over what it records, and over what clients were told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pawl.lifecycle.properties.base import ENDS
from pawl.lifecycle.records import Closed, Flushed, StepPlanned, StepRolledBack, Transition
from pawl.loops.orders.cache import FlushCache
from pawl.testing.expectations import PropertyFailed

if TYPE_CHECKING:
    from pawl.testing.clients import FrontDesk
    from pawl.testing.cluster import Cluster
    from pawl.testing.replica import SimulatedReplica

Compared = Iterator[tuple[str, object, object]]
"""A name, what is counted, and what is true."""


def check_counted(run: Cluster) -> None:
    """Each replica whose trace has an end, and the gateway, of an engine that has stopped. Raises PropertyFailed."""
    for replica in run.replicas:
        # Where time was made to fly past the end of a stop, the recorder has not heard the last words.
        if not replica.lost and any(isinstance(record, Closed) for record in reversed(replica.trace.records)):
            _compare(f"replica {replica.names.replica}", _by_the_loop(replica))
    _compare("the gateway", _by_the_gateway(run.desk))
    if run.router is None:
        _compare("the gateway", _flushes(run))


def _compare(who: str, compared: Compared) -> None:
    for name, counted, true in compared:
        if counted != true:
            raise PropertyFailed("observability_conservation", f"{who} counts {name} as {counted}, and {true} is true")


def _flushes(run: Cluster) -> Compared:
    """Of an engine of one replica: others may have been asked for theirs before one came."""
    told = zip(run.workload.controls, run.desk.answers, strict=True)
    done = sum(isinstance(control.body, FlushCache) and answer.ok for control, answers in told for answer in answers)
    recorded = sum(isinstance(record, Flushed) for record in run.replicas[0].trace.records)
    yield "flushes", done, min(done, recorded)


def _by_the_loop(replica: SimulatedReplica) -> Compared:
    counters, records, seen = replica.scheduler.loop.counters, replica.trace.records, replica.usage
    ended = Counter(each.cause for each in records if isinstance(each, Transition) and each.event in ENDS)
    yield "ends by cause", counters.by_cause, dict(ended)
    yield "steps", counters.steps, sum(isinstance(record, StepPlanned) for record in records)
    yield "lost steps", counters.steps_lost, sum(isinstance(record, StepRolledBack) for record in records)
    yield "drafts", counters.drafts, seen.num_drafts
    yield "tokens of drafts", counters.draft_tokens, seen.drafted.total()
    yield "accepted tokens", counters.accepted_tokens, seen.accepted.total()
    yield "dropped tokens", counters.dropped_tokens, seen.num_dropped


def _by_the_gateway(desk: FrontDesk) -> Compared:
    """Of a client that hung up before its end nothing was told: what it had may be among what is counted."""
    totals, sent = desk.totals, [client for client in desk.clients if client.request is not None or client.num_ends]
    told = [end for client in sent if (end := client.done or client.refusal) is not None]
    ended, unknown = Counter(end.cause for end in told), len(sent) - len(told)
    yield "requests", totals.submitted, len(sent)
    for cause in ended.keys() | totals.ended.keys():
        count = totals.ended[cause]
        yield f"ends by {cause}", count, min(max(count, ended[cause]), ended[cause] + unknown)
    done = [client.done for client in sent if client.done is not None]
    for name, counted, true in (
        ("prompt tokens", totals.prompt_tokens, sum(one.usage.prompt_tokens for one in done)),
        ("cached tokens", totals.cached_tokens, sum(one.usage.cached_tokens for one in done)),
        ("output tokens", totals.generated_tokens, sum(one.usage.completion_tokens for one in done)),
        ("admissions", desk.requests.queue_time.count, sum(one.timing.admitted is not None for one in done)),
    ):
        yield name, counted, max(counted, true) if unknown else true
