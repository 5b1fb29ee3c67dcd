"""Orders about groups in which trainers broadcast weights, at every moment of a group, by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pawl.lifecycle.machines.weight_group import WEIGHT_GROUP, GroupPhase
from pawl.lifecycle.machines.weights import Weights
from pawl.lifecycle.records import WeightGroupMoved
from pawl.lifecycle.weight_group import TensorSpec
from pawl.loops.orders.weight_groups import (
    GroupLost,
    GroupMet,
    JoinWeightGroup,
    LeaveWeightGroup,
    PartsReceived,
    ReceiveWeights,
)
from pawl.loops.orders.weights import UpdateWeights, WeightsStaged, WeightsSwapped
from pawl.loops.snapshot import restore, snapshot_of
from pawl.loops.weight_groups import ENDED, JOINED, LEFT, MOST_GROUPS, UNKNOWN, WAS_LEFT
from pawl.loops.weights import BUSY, DONE, KEPT
from tests.loops.driver import Driver

FIRST = "ghost.first"


class Server(Driver):
    """Whose clients are numbered, and whose trainers do what a test says."""

    def order(self, order: Any, number: int = 0) -> Any:
        """Its outcome, where there is one yet."""
        self.now += 1.0
        self.intake.deliver(order, self.now, number)
        return self.outcome_of.get(number)

    def join(self, number: int = 1, name: str = "g", **fields: Any) -> Any:
        body = {"master_address": "localhost", "master_port": 29500, "rank_offset": 1, "world_size": 2} | fields
        return self.order(JoinWeightGroup(**body, group_name=name), number)

    def receive(self, number: int, name: str = "g", **fields: Any) -> Any:
        body = {"names": (FIRST,), "dtypes": ("torch.uint64",), "shapes": ((1,),)} | fields
        return self.order(ReceiveWeights(**body, group_name=name), number)

    def joined(self, name: str = "g") -> int:
        """A group that has met; its number."""
        self.join(90, name)
        number = self.intake.groups.groups[name].number
        self.order(GroupMet(number))
        return number

    def phase(self, name: str = "g") -> GroupPhase:
        group = self.intake.groups.groups.get(name)
        return GroupPhase.ABSENT if group is None else group.phase


@pytest.fixture
def server() -> Server:
    return Server()


def test_who_joins_is_told_when_all_are_there(server: Server) -> None:
    assert server.join(1) is None
    assert server.intake.owed == {1}
    server.order(GroupMet(1))
    assert (server.outcome_of[1].ok, server.outcome_of[1].message, server.intake.owed) == (True, JOINED, set())
    assert server.phase() is GroupPhase.JOINED


@pytest.mark.parametrize(("port", "joins"), [(0, False), (1, True), ("65535", True), (65535, True), ("65536", False)])
def test_a_trainer_is_met_at_a_port_that_there_is(port: int | str, joins: bool, server: Server) -> None:
    refused = server.join(1, master_port=port)
    assert (refused is None) == joins
    if refused is not None:
        assert refused.message == f"master_port must be from 1 to 65535, not {port}"


def test_a_name_is_joined_once_and_a_refusal_leaves_the_first_as_it_was(server: Server) -> None:
    server.join(1)
    assert not server.join(2).ok
    assert server.phase() is GroupPhase.JOINING
    server.order(GroupMet(1))
    assert not server.join(3).ok
    assert server.phase() is GroupPhase.JOINED
    for each in range(1, MOST_GROUPS):
        server.joined(f"g{each}")
    assert not server.join(4, "one more").ok


def test_what_comes_is_staged_when_all_of_it_is_there_and_then_served(server: Server) -> None:
    number = server.joined()
    assert server.receive(2, weight_version="v1") is None
    assert (server.phase(), server.intake.weights.phase) == (GroupPhase.RECEIVING, Weights.STAGING)
    server.order(PartsReceived(number))
    assert (server.phase(), server.intake.weights.phase) == (GroupPhase.JOINED, Weights.STAGING)
    server.order(WeightsStaged(1, "new"))
    assert server.order(WeightsSwapped(1), 0) is None
    assert (server.outcome_of[2].ok, server.outcome_of[2].message) == (True, DONE)
    assert server.intake.weights.served.version == "v1"


def test_parts_of_one_version_are_kept_until_the_last_one(server: Server) -> None:
    number = server.joined()
    server.receive(2, weight_version="v1", last=False)
    server.order(PartsReceived(number))
    server.order(WeightsStaged(1, ""))
    assert (server.outcome_of[2].message, server.intake.weights.phase) == (KEPT, Weights.GATHERING)
    server.receive(3, weight_version="v1")
    server.order(PartsReceived(number))
    server.order(WeightsStaged(1, "new"))
    assert server.intake.weights.swapping


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"names": (), "dtypes": (), "shapes": ()}, "no tensors"),
        ({"shapes": ()}, "1 names have 1 dtypes and 0 shapes"),
        ({"names": (FIRST, FIRST), "dtypes": ("uint64",) * 2, "shapes": ((1,),) * 2}, "twice"),
        ({"dtypes": ("complex64",)}, "'complex64' is none of the types"),
    ],
)
def test_a_trainer_that_is_not_heard_ends_its_group(server: Server, fields: dict[str, Any], words: str) -> None:
    server.joined()
    outcome = server.receive(2, **fields)
    assert (outcome.ok, words in outcome.message, outcome.message.endswith(ENDED)) == (False, True, True)
    assert (server.phase(), server.intake.weights.phase) == (GroupPhase.ABSENT, Weights.SERVING)
    assert server.groups_kept == []


def test_a_broadcast_beside_another_update_is_refused_and_ends_its_group(server: Server) -> None:
    server.joined()
    server.order(UpdateWeights(model_path="ghost:b"), 5)
    assert server.receive(2).message == f"{BUSY}{ENDED}"
    assert (server.phase(), server.intake.weights.phase) == (GroupPhase.ABSENT, Weights.STAGING)


def test_a_second_message_while_one_is_received_fails_both(server: Server) -> None:
    server.joined()
    server.receive(2)
    assert not server.receive(3).ok
    assert not server.outcome_of[2].ok
    assert (server.phase(), server.intake.weights.phase) == (GroupPhase.ABSENT, Weights.SERVING)


def test_nothing_is_received_in_a_group_that_is_not_joined(server: Server) -> None:
    assert "must join first" in server.receive(2).message
    server.join(1)
    assert "still to meet" in server.receive(3).message
    assert not server.outcome_of[1].ok


@pytest.mark.parametrize("ends", [LeaveWeightGroup("g"), GroupLost(1, WAS_LEFT)])
def test_whoever_waits_is_told_when_a_group_ends(server: Server, ends: Any) -> None:
    server.join(1)
    server.order(ends)
    assert (server.outcome_of[1].ok, server.outcome_of[1].message, server.phase()) == (
        False,
        WAS_LEFT,
        GroupPhase.ABSENT,
    )
    number = server.joined()
    server.receive(2)
    server.order(msgspec.structs.replace(ends, number=number) if isinstance(ends, GroupLost) else ends)
    assert (server.outcome_of[2].ok, server.outcome_of[2].message) == (False, WAS_LEFT)
    assert (server.intake.weights.phase, server.groups_kept) == (Weights.SERVING, [])


def test_leaving_says_whether_there_was_a_group(server: Server) -> None:
    server.joined()
    outcomes = [server.order(LeaveWeightGroup("g"), number) for number in (2, 3)]
    assert [(outcome.ok, outcome.message) for outcome in outcomes] == [(True, LEFT), (False, UNKNOWN)]


def test_late_news_of_a_group_that_was_left_changes_nothing(server: Server) -> None:
    number = server.joined()
    server.receive(2)
    server.order(LeaveWeightGroup("g"))
    server.join(3)
    before = list(server.records)
    for news in (GroupMet(number), PartsReceived(number), GroupLost(number, "late")):
        server.order(news)
    assert [type(record).__name__ for record in server.records[len(before) :]] == ["Delivered"] * 3
    assert server.phase() is GroupPhase.JOINING


def test_a_failure_of_the_loop_ends_groups_that_are_at_something(server: Server) -> None:
    server.joined("idle")
    server.joined("busy")
    server.join(1, "new")
    server.receive(2, "busy")
    server.intake.weights.recovered("failed", server.now)
    server.intake.groups.recovered("failed", server.now)
    assert [server.phase(name) for name in ("idle", "busy", "new")] == [
        GroupPhase.JOINED,
        GroupPhase.ABSENT,
        GroupPhase.ABSENT,
    ]
    assert (server.outcome_of[1].ok, server.outcome_of[2].ok, server.groups_kept) == (False, False, [1])


def test_who_joined_is_told_so_where_the_answer_was_lost_to_a_failure(server: Server) -> None:
    number = server.joined()
    server.intake.groups.groups["g"].asker = 7
    server.intake.groups.recovered("failed", server.now)
    assert server.groups_kept == [number], "others may have been joined, and nobody knows of them"
    assert (server.outcome_of[7].message, server.phase(), server.intake.owed) == (JOINED, GroupPhase.JOINED, set())


def test_what_is_to_be_received_is_told_as_it_was_asked_for(server: Server) -> None:
    number = server.joined()
    server.receive(2)
    assert server.awaited == (number, 1, (TensorSpec(FIRST, "uint64", (1,)),), False)


def test_a_checkpoint_has_the_groups(server: Server) -> None:
    server.joined()
    server.receive(2)
    other = Server()
    restore(other.intake, msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot_of(server.intake))))
    assert other.intake.groups.groups == server.intake.groups.groups
    other.order(PartsReceived(1))
    assert other.phase() is GroupPhase.JOINED


def test_every_edge_that_is_recorded_is_one_of_the_table(server: Server) -> None:
    number = server.joined()
    server.receive(2)
    server.order(PartsReceived(number))
    server.order(LeaveWeightGroup("g"))
    moves = [record for record in server.records if isinstance(record, WeightGroupMoved)]
    assert [str(move.event) for move in moves] == ["join", "met", "receive", "received", "leave"]
    edges = {move[:3] for move in WEIGHT_GROUP.moves}
    assert all((move.source, move.event, move.target) in edges for move in moves)
