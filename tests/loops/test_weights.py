"""An update of the weights, given to a loop as a scheduler gives it: who runs starts again, and a failure changes
nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.weights import GhostWeights
from pawl.lifecycle.machines.base import IllegalMove
from pawl.lifecycle.machines.weights import WEIGHTS, WeightEvent, Weights
from pawl.lifecycle.namespaces import under, weights_of
from pawl.lifecycle.records import Delivered, WeightsMoved
from pawl.lifecycle.states import Cause, State
from pawl.lifecycle.weight_source import FromBytes, FromDisk
from pawl.loops.intake import Order, Outcome
from pawl.loops.orders.weights import (
    PutWeights,
    RenameWeights,
    UpdateWeights,
    WeightsFailed,
    WeightsStaged,
    WeightsSwapped,
)
from pawl.loops.pacing import PACINGS
from pawl.loops.weights import BUSY, DONE, KEPT, Served
from tests.loops.driver import Driver
from tests.loops.test_fetching import PROMPT as LONG
from tests.loops.test_fetching import TierDriver

PROMPT = [1, 2, 3, 4, 5]


class Server(Driver):
    """A driver whose ghost has what an update brings."""

    def deliver(self, order: Order, number: int = 0) -> None:
        self.intake.deliver(order, self.now, number)

    def update(self, name: str, number: int = 7, **fields: Any) -> int:
        """Stage and exchange `ghost:name`, at rest between two steps."""
        self.deliver(UpdateWeights(model_path=f"ghost:{name}", weight_version=name, **fields), number)
        update = self.intake.weights.update
        assert update is not None
        self.deliver(WeightsStaged(update.ticket, self.ghost.stage(update.ticket, FromDisk(update.source))))
        self.exchange(update.ticket)
        return update.ticket

    def exchange(self, ticket: int) -> None:
        """What is staged serves, once every step has come back."""
        while self.loop.in_flight:
            self.loop.executed(self.ghost.launch(self.launched.popleft().batch), self.now)
        self.ghost.swap(ticket)
        self.deliver(WeightsSwapped(ticket))
        self.ghost.reset()


@pytest.mark.parametrize("pacing", PACINGS)
def test_who_runs_goes_on_from_its_tokens_and_reads_nothing_of_the_old_weights(pacing: str) -> None:
    server = Server(pacing=pacing)
    request = server.submit(PROMPT, 9)
    for _ in range(4):
        server.step()
    server.update("b")
    before = list(server.output_of[request])
    server.run()
    said = server.output_of[request]
    assert said == [*before, *expected([*PROMPT, *before], 9 - len(before), GhostWeights.named("ghost:b").salt)]
    assert said != expected(PROMPT, 9)
    assert (server.cause(request), server.outcome_of[7].ok, server.outcome_of[7].message) == (Cause.LENGTH, True, DONE)


def test_what_the_old_weights_have_left_in_the_cache_is_used_by_nobody() -> None:
    server = Server()
    server.submit(PROMPT, 3)
    server.run()
    assert server.loop.memory.cache.statistics()["pages"] > 0
    server.update("b")
    assert server.loop.memory.cache.statistics()["pages"] == 0
    again = server.submit(PROMPT, 3, namespace="weights=ghost%3Ab")
    server.run()
    assert server.ending_of[again].info.num_cached == 0


def test_who_waited_through_an_exchange_of_weights_fetches_nothing_that_the_old_ones_computed() -> None:
    class Tiered(Server, TierDriver): ...

    server = Tiered()
    server.know(LONG)
    request = server.submit(LONG, 4)
    server.step()
    server.bring(server.fetches[0], LONG)
    assert server.state(request) == State.QUEUED
    server.update("b")
    server.run()
    assert len(server.fetches) == 1
    assert server.output_of[request] == expected(LONG, 4, GhostWeights.named("ghost:b").salt)


def test_no_step_is_planned_from_the_moment_new_weights_are_staged_until_they_are_exchanged() -> None:
    server = Server(pacing="overlap")
    server.submit(PROMPT, 9)
    server.step()
    server.deliver(UpdateWeights(model_path="ghost:b"), 7)
    server.step()
    server.deliver(WeightsStaged(1, "ghost:b"))
    planned = server.loop.counters.steps
    while server.step():
        pass
    assert (server.loop.counters.steps, server.outcome_of) == (planned, {})
    assert not server.loop.idle


@pytest.mark.parametrize("staged", [False, True], ids=["while they are read", "when they are exchanged"])
def test_a_failure_leaves_the_old_weights_and_says_why(staged: bool) -> None:
    server = Server()
    request = server.submit(PROMPT, 6)
    server.step()
    served = server.intake.weights.served
    server.deliver(UpdateWeights(model_path="ghost:b", weight_version="b"), 7)
    if staged:
        server.deliver(WeightsStaged(1, "ghost:b"))
    server.deliver(WeightsFailed(1, "the disk is gone"))
    assert (server.outcome_of[7].ok, server.outcome_of[7].message) == (False, "the disk is gone")
    server.run()
    assert server.output_of[request] == expected(PROMPT, 6)
    assert (server.intake.weights.served, server.ending_of[request].info.num_retractions) == (served, 0)


def test_a_second_update_is_refused_while_one_is_under_way_and_news_of_another_is_late() -> None:
    server = Server()
    server.deliver(UpdateWeights(model_path="ghost:b"), 7)
    server.deliver(UpdateWeights(model_path="ghost:c"), 8)
    assert (server.outcome_of[8].ok, server.outcome_of[8].message) == (False, BUSY)
    for late in (WeightsStaged(2, "x"), WeightsFailed(2, "x"), WeightsSwapped(1)):
        server.deliver(late)
    assert server.intake.weights.phase is Weights.STAGING
    assert 7 not in server.outcome_of


def test_an_update_that_ends_all_ends_who_is_live_at_the_exchange_and_not_before() -> None:
    server = Server()
    request = server.submit(PROMPT, 20)
    server.step()
    server.deliver(UpdateWeights(model_path="ghost:b", abort_all_requests=True), 7)
    server.step()
    assert request not in server.ending_of
    server.deliver(WeightsFailed(1, "no"))
    assert request not in server.ending_of, "an update that fails ends nobody"
    server.update("b", 8, abort_all_requests=True)
    assert (server.cause(request), server.loop.idle) == (Cause.CLIENT, True)


def test_an_update_without_a_name_leaves_the_name() -> None:
    server = Server()
    server.update("b")
    server.deliver(UpdateWeights(model_path="ghost:c"), 9)
    server.deliver(WeightsStaged(2, "ghost:c"))
    server.deliver(WeightsSwapped(2))
    served = server.intake.weights.served
    assert (served.version, served.fingerprint, served.source) == ("b", "ghost:c", "ghost:c")


@pytest.mark.parametrize("abort", [False, True])
def test_weights_are_renamed_at_once_and_nothing_is_computed_again(abort: bool) -> None:
    server = Server(weight_version="v1")
    request = server.submit(PROMPT, 6)
    server.step()
    server.deliver(RenameWeights("v2", abort_all_requests=abort), 7)
    assert server.outcome_of[7].facts == {"new_version": "v2"}
    server.run()
    served = server.intake.weights.served
    assert (served.version, served.fingerprint) == ("v2", "")
    assert server.cause(request) == (Cause.CLIENT if abort else Cause.LENGTH)
    assert server.ending_of[request].info.num_retractions == 0


def test_whoever_is_live_has_the_namespace_of_the_new_weights_and_keeps_its_own_parts() -> None:
    server = Server(max_running=1)
    server.submit(PROMPT, 9, namespace="salt=s&weights=v1")
    server.submit(PROMPT, 9)
    server.step()
    server.update("b")
    table = server.loop.table
    assert [table.info(row).namespace for row in table.live_rows().tolist()] == [
        "salt=s&weights=ghost%3Ab",
        "weights=ghost%3Ab",
    ]
    assert {State(int(table.state[row])) for row in table.live_rows().tolist()} == {State.QUEUED}


def test_what_any_weights_before_have_drawn_counts_as_older_once() -> None:
    server = Server()
    request = server.submit(PROMPT, 9)
    for name in ("b", "c"):
        for _ in range(3):
            server.step()
        server.update(name)
        (row,) = server.loop.table.live_rows().tolist()
        assert server.loop.table.info(row).num_older == len(server.output_of[request]) > 0


def test_every_move_of_an_update_is_recorded_with_what_serves_from_then_on() -> None:
    server = Server(weight_version="v1", weights="one")
    server.update("b")
    moves = [record for record in server.records if isinstance(record, WeightsMoved)]
    assert [(move.event, move.version, move.fingerprint) for move in moves] == [
        (WeightEvent.UPDATE, "v1", "one"),
        (WeightEvent.STAGED, "v1", "one"),
        (WeightEvent.SWAPPED, "b", "ghost:b"),
    ]


def test_a_snapshot_holds_an_update_under_way() -> None:
    server, other = Server(), Server()
    server.deliver(UpdateWeights(model_path="ghost:b", weight_version="b"), 7)
    server.deliver(WeightsStaged(1, "ghost:b"))
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(server.intake.weights.snapshot()))
    other.intake.weights.restore(plain)
    other.deliver(WeightsSwapped(1))
    assert (other.intake.weights.served.fingerprint, other.outcome_of[7].ok) == ("ghost:b", True)


def test_the_table_has_every_way_back_to_serving() -> None:
    for state in (Weights.STAGING, Weights.SWAPPING):
        assert WEIGHTS.next(state, WeightEvent.FAILED) is Weights.SERVING
    with pytest.raises(IllegalMove, match="swapped"):
        WEIGHTS.next(Weights.STAGING, WeightEvent.SWAPPED)


def test_only_the_part_of_a_namespace_that_names_weights_changes() -> None:
    assert under("", "a&b") == "weights=a%26b"
    assert under("salt=x&weights=old", "new") == "salt=x&weights=new"
    assert under("salt=x&weights=old", "") == "salt=x"
    assert [weights_of(namespace) for namespace in ("salt=x", "salt=x&weights=y")] == ["", "y"]


# ---- in parts ----


def part(server: Server, version: str, number: int, **fields: Any) -> int:
    """A part of `version` has come and fits; its ticket."""
    source = FromBytes(GhostWeights.named("ghost:b+c").file())
    server.deliver(PutWeights(source=source, weight_version=version, **fields), number)
    update = server.intake.weights.update
    assert update is not None
    fingerprint = server.ghost.stage(update.ticket, source, last=update.last)
    server.deliver(WeightsStaged(update.ticket, fingerprint))
    return update.ticket


def test_steps_go_on_between_the_parts_of_new_weights_until_the_last_has_come() -> None:
    server = Server()
    request = server.submit(PROMPT, 9)
    server.step()
    one = part(server, "v", 7, last=False)
    assert (server.intake.weights.phase, server.outcome_of[7]) == (Weights.GATHERING, Outcome(True, KEPT))
    server.step()
    assert server.output_of[request] == expected(PROMPT, 2)
    assert part(server, "v", 8) == one
    assert (server.intake.weights.phase, 8 in server.outcome_of) == (Weights.SWAPPING, False)
    server.exchange(one)
    assert server.outcome_of[8] == Outcome(True, DONE)
    assert (server.intake.weights.served.version, server.intake.weights.served.source) == ("v", "")


def test_a_part_of_another_version_and_another_update_take_the_place_of_what_was_gathered() -> None:
    server = Server()
    one = part(server, "v", 7, last=False)
    two = part(server, "w", 8, last=False)
    assert two == part(server, "w", 9, last=False) == one + 1
    assert server.update("b", 10) == two + 1
    assert server.intake.weights.served.version == "b"


def test_a_part_that_fails_ends_its_update_and_while_one_is_read_no_other_is_taken() -> None:
    server = Server()
    one = part(server, "v", 7, last=False)
    server.deliver(PutWeights(source=FromBytes(b""), weight_version="v"), 8)
    server.deliver(PutWeights(source=FromBytes(b""), weight_version="v"), 9)
    assert server.outcome_of[9] == Outcome(False, BUSY)
    server.deliver(WeightsFailed(one, "no"))
    assert (server.outcome_of[8], server.intake.weights.phase) == (Outcome(False, "no"), Weights.SERVING)
    assert part(server, "v", 10, last=False) == one + 1, "what came before is no part of it"


def test_a_failure_of_the_loop_drops_what_was_gathered_and_leaves_nobody_waiting() -> None:
    server = Server()
    part(server, "v", 7, last=False)
    server.intake.weights.recovered("it failed", server.now)
    assert (server.intake.weights.phase, server.intake.weights.update) == (Weights.SERVING, None)
    assert server.outcome_of[7] == Outcome(True, KEPT)


class Deaf(Server):
    """Fails at the first news of what is served."""

    failed = False

    def exchanged(self, served: Served) -> None:
        if not self.failed:
            self.failed = True
            raise ValueError("it fails")
        super().exchanged(served)


def test_what_is_served_is_told_after_a_failure_that_has_lost_the_news_and_only_then() -> None:
    server = Deaf()
    server.intake.weights.recovered("it failed", server.now)
    assert not server.failed, "a replica whose weights are those of the start is told apart by that from no other"
    with pytest.raises(ValueError, match="it fails"):
        server.deliver(RenameWeights("v"))
    server.intake.weights.recovered("it failed", server.now)
    assert server.served == server.intake.weights.served
    assert server.served.version == "v"


def test_a_trace_has_no_bytes_of_weights() -> None:
    server = Server()
    part(server, "v", 7)
    (delivered,) = [each for each in server.records if isinstance(each, Delivered) and each.kind == "put_weights"]
    assert delivered.fields["source"] == {"type": "FromBytes", "safetensors": ""}
    assert delivered.fields["weight_version"] == "v"
