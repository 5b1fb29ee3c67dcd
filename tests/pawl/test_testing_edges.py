"""Drawn workloads are brought to edges, each of them now and then, and stay as drawn in all else."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from pawl.actors.control.limits import SetInternalState
from pawl.actors.control.requests import AbortRequests
from pawl.actors.control.weights import AGAIN
from pawl.actors.messages.control import Reply
from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.simple import Fair
from pawl.exploration.task import workload_of
from pawl.lifecycle.states import Cause
from pawl.loops.orders.adapters import UnloadAdapter
from pawl.loops.orders.weights import RenameWeights, UpdateWeights
from pawl.testing import Arrival, PropertyFailed, Workload, crowding
from pawl.testing.cluster import Cluster, cluster
from pawl.testing.edges import EDGES, MOST_FILLED, edged
from pawl.testing.named import check_aborted
from pawl.testing.workload import Control
from tests.mutants.hunting import task_with

SEEDS = range(400)


def edges_of(drawn: Workload, found: Workload) -> set[str]:
    """What is at an edge in one and not in the other."""
    names = {
        "fills": lambda one: any(len(each.prompt) + each.max_new_tokens >= one.shape.room for each in one.arrivals),
        "stops alike": lambda one: any(len(each.stop) > 1 for each in one.arrivals),
        "stops in a run": lambda one: any(each.stop_token_ids and each.min_new_tokens for each in one.arrivals),
        "late for the drain": lambda one: one.closing is not None and one.closing.grace_s is not None,
        "named": lambda one: any(each.rid for each in one.arrivals),
        "side by side": lambda one: sum(_is_special(each) for each in one.arrivals) > 1,
        "adapters go": lambda one: any(isinstance(each.body, UnloadAdapter) for each in one.controls),
        "weights again": lambda one: any(_is_of_the_start(each.body) for each in one.controls),
        "few may wait": lambda one: any(isinstance(each.body, SetInternalState) for each in one.controls),
        "outlive": lambda one: one.processes and one.shape.replicas > 1,
        "stops at a character": lambda one: any(not stop.isascii() for each in one.arrivals for stop in each.stop),
        "scored": lambda one: any(each.prompt_logprobs for each in one.arrivals),
    }
    return {name for name, has in names.items() if has(found) and not has(drawn)}


def _is_of_the_start(order: msgspec.Struct) -> bool:
    if isinstance(order, RenameWeights):
        return order.new_version in AGAIN
    return isinstance(order, UpdateWeights) and order.model_path in AGAIN.values() and order.weight_version != "default"


def _is_special(arrival: Arrival) -> bool:
    return bool(arrival.embed or arrival.grammar or arrival.seed or arrival.top_logprobs is not None)


def test_every_edge_is_met_now_and_then_and_the_server_stays() -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        drawn = crowding(seed, speculate="ngram", max_loras=1, max_loaded_loras=2, replicas=2)
        found = edged(drawn, seed)
        assert found == edged(drawn, seed)
        assert found.shape == drawn.shape
        assert len(found.arrivals) == len(drawn.arrivals)
        counts.update(edges_of(drawn, found))
    assert len(counts) == len(EDGES)
    assert min(counts.values()) > 4


def test_of_a_large_server_nobody_wants_all() -> None:
    for seed in SEEDS:
        drawn = crowding(seed, speculate="ngram", num_pages=1000)
        wanted = {len(each.prompt) + each.max_new_tokens for each in edged(drawn, seed).arrivals}
        before = {len(each.prompt) + each.max_new_tokens for each in drawn.arrivals}
        assert max(wanted) <= max(*before, 2 * MOST_FILLED)


def test_an_exploration_draws_them() -> None:
    task = task_with([], 0, 0.0)
    assert any(arrival.rid for seed in range(200) for arrival in workload_of(task, seed).arrivals)


def served(*arrivals: Arrival, controls: tuple[Control, ...] = ()) -> Cluster:
    run = cluster(Workload(arrivals=arrivals, controls=controls), Fair())
    with silence():
        drive(run)
    return run


def test_an_order_ends_those_of_a_name_and_nobody_else() -> None:
    first = Arrival(prompt=(97, 98), max_new_tokens=8, rid="a")
    order = Control(body=AbortRequests(rid=["a", "nobody"]), after_tokens=2)
    run = served(first, Arrival(prompt=(98,), max_new_tokens=8, rid="b"), controls=(order,))
    causes = [each.done.cause for each in run.desk.clients if each.done is not None]
    assert causes == [Cause.CLIENT, Cause.LENGTH]
    assert run.desk.answers[0][0].body["unknown"] == ["nobody"]


def test_the_name_of_a_live_request_is_refused_and_may_be_had_again_later() -> None:
    first = Arrival(prompt=(97, 98), max_new_tokens=4, rid="a")
    later = msgspec.structs.replace(first, after_tokens=5)
    run = served(first, first, later)
    refused = [each.refusal is not None and each.refusal.cause for each in run.desk.clients]
    assert refused == [False, Cause.INVALID, False]
    assert [each.had_namesake for each in run.desk.clients] == [False, True, False]


def test_a_request_that_an_order_has_not_found_is_told() -> None:
    run = served(Arrival(prompt=(97, 98), max_new_tokens=2, rid="a"))
    (client,) = run.desk.clients
    told: list[str] = []
    run.desk.report = lambda name, text, request: told.append(name)
    check_aborted(run.desk, [client], Reply(0, True, body={"unknown": ["a"]}))
    client.num_ends = 0
    check_aborted(run.desk, [client], Reply(0, True, body={"pending": ["a"]}))
    check_aborted(run.desk, [client], Reply(0, False))
    assert not told
    check_aborted(run.desk, [client], Reply(0, True, body={"unknown": ["a"]}))
    assert told == ["abort_is_total"]


def test_an_end_by_an_order_that_names_others_is_found() -> None:
    run = served(Arrival(prompt=(97, 98), max_new_tokens=8, rid="a"), controls=(BY_NAME,))
    (client,) = run.desk.clients
    run.checks.check_cause(client, client.arrival, Cause.CLIENT)
    client.rid = "b"
    with pytest.raises(PropertyFailed, match="refused for no reason"):
        run.checks.check_cause(client, client.arrival, Cause.CLIENT)


BY_NAME = Control(body=AbortRequests(rid="a"), after_tokens=2)
