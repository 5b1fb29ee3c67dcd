"""Planted violations in an update of the weights."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.machines.weight_group import GroupEvent, GroupPhase
from pawl.lifecycle.machines.weights import WeightEvent, Weights
from pawl.lifecycle.records import Delivered, WeightGroupMoved, WeightsMoved
from tests.lifecycle.canaries import Canary
from tests.lifecycle.canaries_shared import planted


def weights(event: WeightEvent, fingerprint: str, source: Weights = Weights.SERVING) -> WeightsMoved:
    """An update moves from `source`, as the table says where it says anything; what serves then is this."""
    targets = {WeightEvent.UPDATE: Weights.STAGING, WeightEvent.STAGED: Weights.SWAPPING}
    targets |= {WeightEvent.PART: Weights.GATHERING}
    return WeightsMoved(source, event, targets.get(event, Weights.SERVING), "", fingerprint, 1.0)


def named(record: WeightsMoved, version: str) -> WeightsMoved:
    """The same, replies call those that serve so."""
    return msgspec.structs.replace(record, version=version)


def group(event: GroupEvent, source: GroupPhase, target: GroupPhase) -> WeightGroupMoved:
    """The first group takes an edge, if the table has it."""
    return WeightGroupMoved(1, source, event, target, 1.0)


MEETS = (
    group(GroupEvent.JOIN, GroupPhase.ABSENT, GroupPhase.JOINING),
    group(GroupEvent.MET, GroupPhase.JOINING, GroupPhase.JOINED),
)
RECEIVES = (
    *MEETS,
    weights(WeightEvent.UPDATE, ""),
    group(GroupEvent.RECEIVE, GroupPhase.JOINED, GroupPhase.RECEIVING),
)
NAMED = (
    Delivered("rename_weights", {"new_version": "a"}, 0, 0.0),
    named(weights(WeightEvent.RENAMED, ""), "a"),
    Delivered("update_weights", {"weight_version": None}, 0, 0.0),
    named(weights(WeightEvent.UPDATE, ""), "a"),
    named(weights(WeightEvent.STAGED, "", Weights.STAGING), "a"),
)
WEIGHT_CANARIES: dict[str, Canary] = {
    "weights that are not called as was ordered": Canary(
        "weight_epochs",
        planted("commit 2", NAMED[0], named(weights(WeightEvent.RENAMED, ""), "b")),
        "after renamed the weights are called 'b', and not 'a'",
    ),
    "an update without a name that takes the name": Canary(
        "weight_epochs",
        planted("commit 2", *NAMED, named(weights(WeightEvent.SWAPPED, "new", Weights.SWAPPING), "b")),
        "after swapped the weights are called 'b', and not 'a'",
    ),
    "weights that are exchanged and were not staged": Canary(
        "weight_epochs",
        planted("commit 2", weights(WeightEvent.SWAPPED, "new")),
        "swapped takes the weights from serving to serving; they are serving",
    ),
    "a failed update that changes something": Canary(
        "weight_epochs",
        planted("commit 2", weights(WeightEvent.UPDATE, ""), weights(WeightEvent.FAILED, "new", Weights.STAGING)),
        "after failed weights 'new' serve, before '' did",
    ),
    "a part of new weights that serves before the last has come": Canary(
        "weight_epochs",
        planted("commit 2", weights(WeightEvent.UPDATE, ""), weights(WeightEvent.PART, "new", Weights.STAGING)),
        "after part weights 'new' serve, before '' did",
    ),
    "a step while weights are exchanged": Canary(
        "weight_epochs",
        planted("plan 2", weights(WeightEvent.UPDATE, ""), weights(WeightEvent.STAGED, "", Weights.STAGING)),
        "a step is planned while the weights are being exchanged",
    ),
    "weights that are received for no update": Canary(
        "weight_groups",
        planted("commit 2", *MEETS, RECEIVES[-1]),
        "group 1 receives weights for no update",
    ),
    "half of the weights": Canary(
        "weight_groups",
        planted("commit 2", *RECEIVES, weights(WeightEvent.STAGED, "", Weights.STAGING)),
        "weights were staged of which some are still to come",
    ),
    "an update that goes on without its trainer": Canary(
        "weight_groups",
        planted("commit 2", *RECEIVES, group(GroupEvent.LOST, GroupPhase.RECEIVING, GroupPhase.ABSENT)),
        "after lost of group 1 the weights are staging",
    ),
    "a group that was left and is joined": Canary(
        "weight_groups",
        planted("commit 2", *MEETS, group(GroupEvent.LEAVE, GroupPhase.JOINED, GroupPhase.ABSENT), MEETS[0]),
        "join takes group 1 from absent to joining; it is absent, and was left before",
    ),
}
