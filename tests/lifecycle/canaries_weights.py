"""Planted violations in an update of the weights."""

from __future__ import annotations

from pawl.lifecycle.machines.weights import WeightEvent, Weights
from pawl.lifecycle.records import WeightsMoved
from tests.lifecycle.canaries import Canary
from tests.lifecycle.canaries_shared import planted


def weights(event: WeightEvent, fingerprint: str, source: Weights = Weights.SERVING) -> WeightsMoved:
    """An update moves from `source`, as the table says where it says anything; what serves then is this."""
    targets = {WeightEvent.UPDATE: Weights.STAGING, WeightEvent.STAGED: Weights.SWAPPING}
    targets |= {WeightEvent.PART: Weights.GATHERING}
    return WeightsMoved(source, event, targets.get(event, Weights.SERVING), "", fingerprint, 1.0)


WEIGHT_CANARIES: dict[str, Canary] = {
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
}
