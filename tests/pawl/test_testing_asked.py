"""A request is in each replica as its client sent it, and times are told in the order in which things happened."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.simple import Fair
from pawl.lifecycle.records import Delivered, Submitted
from pawl.lifecycle.states import Cause
from pawl.loops.orders.sessions import TAKES_ITS_PLACE
from pawl.loops.orders.weights import EXCHANGED, RENAMED
from pawl.testing import Arrival, PropertyFailed, Workload
from pawl.testing.asked import check_aborts, check_accepted, check_asked, check_times, ended_with_its_text
from pawl.testing.cluster import NO_FAULTS, Cluster, cluster
from pawl.testing.shape import Shape

ASKED = Workload(
    arrivals=(Arrival(prompt=(97, 98), max_new_tokens=3, priority=2, salt="a", timeout_s=5.0),),
    shape=Shape(replicas=2),
)
ALONE = msgspec.structs.replace(ASKED, shape=Shape(step_s=0.1))


def served(workload: Workload = ASKED, faults: Faults = NO_FAULTS) -> Cluster:
    run = cluster(workload, Fair(), faults=faults)
    with silence():
        drive(run)
    return run


def recorded(run: Cluster, number: int, **fields: Any) -> None:
    """Another replica has had the request as well, as these fields say."""
    (first,) = [each for each in run.serving[0].trace.records if isinstance(each, Submitted)]
    run.serving[number].trace.records.append(msgspec.structs.replace(first, **{"time": 9.0, **fields}))


@pytest.mark.parametrize("workload", [ASKED, ALONE], ids=["replicas", "alone"])
def test_what_was_asked_and_what_is_told_hold(workload: Workload) -> None:
    run = served(workload)
    (client,) = run.desk.clients
    check_asked(run, client)
    check_times(run, client)
    assert client.first_at is not None


@pytest.mark.parametrize("other", [{"priority": 0}, {"namespace": "weights=ghost"}, {"namespace": "salt=b"}])
def test_another_priority_or_salt_than_was_asked_for_is_found(other: dict[str, Any]) -> None:
    run = served()
    recorded(run, 1, **other)
    with pytest.raises(PropertyFailed, match=r"priority and salt \(2, 'a'\) are"):
        check_asked(run, run.desk.clients[0])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"deadline": 9.0}, "its deadline was"),
        ({"deadline": None}, "its deadline was"),
        ({"output": b"abcd", "num_retractions": 1, "num_cached": 1}, "0 tokens were cached, and the next .* told 1"),
        ({"output": b"abcd"}, "1 replicas that had it were lost, and it counts 0"),
        ({"output": b"abcd", "num_retractions": 1}, ""),
        ({}, ""),
    ],
)
def test_a_request_goes_on_with_its_deadline_and_with_what_was_told(other: dict[str, Any], words: str) -> None:
    run = served()
    recorded(run, 1, **other)
    if not words:
        check_asked(run, run.desk.clients[0])
        return
    with pytest.raises(PropertyFailed, match=words):
        check_asked(run, run.desk.clients[0])


def test_of_replicas_that_had_it_at_the_same_time_the_one_that_counts_fewer_lost_was_before() -> None:
    run = served(msgspec.structs.replace(ASKED, shape=Shape(replicas=3)))
    recorded(run, 1, output=b"abcd", num_retractions=2)
    recorded(run, 2, output=b"abcd", num_retractions=1)
    check_asked(run, run.desk.clients[0])


@pytest.mark.parametrize(("step_s", "faults"), [(0.0, Faults(rush=1)), (0.1, NO_FAULTS)])
def test_where_messages_are_under_way_for_some_time_deadlines_may_move_with_them(step_s: float, faults: Faults) -> None:
    run = served(msgspec.structs.replace(ASKED, shape=Shape(replicas=2, step_s=step_s)), faults)
    recorded(run, 1, deadline=9.0)
    check_asked(run, run.desk.clients[0])


@pytest.mark.parametrize(
    "other", [{"admitted": -1.0}, {"first_token": 0.25}, {"first_token": 0.01, "admitted": 0.05}, {"ended": 0.0}]
)
def test_times_in_another_order_are_found(other: dict[str, float]) -> None:
    run = served(ALONE)
    (client,) = run.desk.clients
    assert client.done is not None
    timing = msgspec.structs.replace(client.done.timing, **other)
    client.done = msgspec.structs.replace(client.done, timing=timing)
    with pytest.raises(PropertyFailed, match="submitted, admitted, first token"):
        check_times(run, client)


@pytest.mark.parametrize("other", [{"submitted": 0.0}, {"admitted": 0.05}, {"first_token": 0.2}, {"ended": 0.35}])
def test_times_that_are_not_the_recorded_ones_are_found(other: dict[str, float]) -> None:
    run = served(msgspec.structs.replace(ALONE, arrivals=(msgspec.structs.replace(ALONE.arrivals[0], at_s=0.01),)))
    (client,) = run.desk.clients
    check_times(run, client)
    assert client.done is not None
    client.done = msgspec.structs.replace(client.done, timing=msgspec.structs.replace(client.done.timing, **other))
    with pytest.raises(PropertyFailed, match=r"it is told .* is recorded"):
        check_times(run, client)


@pytest.mark.parametrize("workload", [ASKED, ALONE], ids=["replicas", "alone"])
def test_a_deadline_from_another_moment_than_that_of_the_request_is_found(workload: Workload) -> None:
    run = served(workload)
    (replica,) = [each for each in run.serving if 1 in each.usage.times]
    records = replica.trace.records
    (at,) = [number for number, each in enumerate(records) if isinstance(each, Submitted)]
    records[at] = msgspec.structs.replace(records[at], deadline=6.0)
    with pytest.raises(PropertyFailed, match=r"its deadline is 6.0 in replica 0, and was to be 5.0"):
        check_asked(run, run.desk.clients[0])


@pytest.mark.parametrize(
    ("arrival", "told", "words"),
    [
        (Arrival(prompt=(97, 98), max_new_tokens=1), {"num_prompt": 3}, "is told of 3 tokens"),
        (Arrival(prompt=(97, 98), max_new_tokens=1, return_prompt=True), {"prompt": (97,)}, r"2 tokens, \(97,\)"),
    ],
)
def test_another_prompt_than_was_sent_is_found(arrival: Arrival, told: dict[str, Any], words: str) -> None:
    run = served(Workload(arrivals=(arrival,)))
    (client,) = run.desk.clients
    check_accepted(client, arrival)
    assert client.accept is not None
    client.accept = msgspec.structs.replace(client.accept, **told)
    with pytest.raises(PropertyFailed, match=words):
        check_accepted(client, arrival)


STOPPED = msgspec.structs.replace(
    ALONE, arrivals=(Arrival(prompt=(97, 98), max_new_tokens=3, stop_after=3), Arrival(prompt=(98,), max_new_tokens=3))
)


def told_otherwise(run: Cluster, **timing: Any) -> None:
    client = run.desk.clients[0]
    assert client.done is not None
    assert client.done.cause is Cause.STOP_STRING
    client.done = msgspec.structs.replace(client.done, timing=msgspec.structs.replace(client.done.timing, **timing))


def test_who_is_stopped_by_its_text_is_told_when_it_had_its_first_token() -> None:
    run = served(
        msgspec.structs.replace(STOPPED, arrivals=(msgspec.structs.replace(STOPPED.arrivals[0], stop_after=1),))
    )
    check_times(run, run.desk.clients[0])
    told_otherwise(run, first_token=None)
    with pytest.raises(PropertyFailed, match="nobody tells when it had its first token"):
        check_times(run, run.desk.clients[0])


def test_whose_last_token_completes_its_stop_string_is_told_what_its_scheduler_knows() -> None:
    run = served(STOPPED)
    client = run.desk.clients[0]
    check_times(run, client)
    assert [ended_with_its_text(run.replicas[0], each) for each in run.desk.clients] == [True, True]
    cut = msgspec.structs.replace(STOPPED.arrivals[0], max_new_tokens=4)
    other = served(msgspec.structs.replace(STOPPED, arrivals=(cut,)))
    assert not ended_with_its_text(other.replicas[0], other.desk.clients[0])
    told_otherwise(run, ended=0.31)
    with pytest.raises(PropertyFailed, match=r"it is told .* is recorded"):
        check_times(run, client)


@pytest.mark.parametrize(
    ("messages", "survived", "right"),
    [
        ([""], False, True),
        (["", ""], False, False),
        (["", "its client says why"], False, False),
        (["", ""], True, True),
        *((["", by_an_order], False, True) for by_an_order in (RENAMED, EXCHANGED, f"turn 'a' {TAKES_ITS_PLACE}")),
    ],
)
def test_a_scheduler_is_told_once_to_abort_a_request(messages: list[str], survived: bool, right: bool) -> None:
    run = served()
    (client,) = run.desk.clients
    run.serving[0].trace.records += [
        Delivered("abort", {"requests": [client.request], "cause": "client", "message": message}, 0, 9.0)
        for message in messages
    ]
    run.serving[0].scheduler.num_contained = int(survived)
    if right:
        check_aborts(run)
        return
    with pytest.raises(PropertyFailed, match="its scheduler was told 2 times to abort it"):
        check_aborts(run)
