"""Questions about the weights, which the stager answers: it knows the runner that has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from pawl.gpu.step_runner import StepRunner
from pawl.gpu.weights.questions import differences, digests, dtype_of, floats_of
from pawl.loops.intake import Outcome

MOST_VALUES = 1 << 22
"""Numbers of one reply: a reply of JSON with as many takes seconds to write."""
MOST_NAMED = 3
NO_SUCH = "there is no weight"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ACTIONS = ("snapshot", "compare", "checksum")


class GetWeights(msgspec.Struct, frozen=True, kw_only=True, tag="get_weights", forbid_unknown_fields=True):
    """The values of a weight that serves, by the name that a checkpoint has for it, also where it is part of a
    product."""

    name: Annotated[str, msgspec.Meta(max_length=512, description="of the weight")]
    truncate_size: Annotated[
        int, msgspec.Meta(ge=1, description="rows of it (numbers, where it has no rows), at the most")
    ] = 100
    detail: Annotated[bool, msgspec.Meta(description="with its name, shape and dtype")] = False


class CheckWeights(msgspec.Struct, frozen=True, kw_only=True, tag="check_weights", forbid_unknown_fields=True):
    """A digest of every weight that serves; or whether they are those of a snapshot, to the bit. A snapshot copies
    nothing until the weights are exchanged or released, and then keeps the version before in memory until the next
    snapshot."""

    action: Annotated[str, msgspec.Meta(max_length=64, description="checksum, snapshot, or compare with it")] = (
        "checksum"
    )


class WeightQuestions:
    """Answers for one runner."""

    def __init__(self, runner: StepRunner[Any]) -> None:
        self._runner = runner
        self._snapshot: Mapping[str, Any] | None = None

    def answer(self, question: GetWeights | CheckWeights) -> Outcome:
        """From one version of the weights, whatever is exchanged meanwhile."""
        weights = self._runner.named_weights()
        if isinstance(question, GetWeights):
            return _values(weights, question)
        match question.action:
            case "snapshot":
                self._snapshot = weights
                return Outcome(True, "The weights that serve are kept to compare with.")
            case "compare":
                return self._compared(weights)
            case "checksum":
                return _checksums(weights)
            case "reset_tensors":
                return Outcome(
                    False, f"Unsupported action reset_tensors: weights that serve are never spoiled; {_OFFERED}"
                )
            case other:
                return Outcome(False, f"Unsupported action {other}; {_OFFERED}")

    def _compared(self, weights: Mapping[str, Any]) -> Outcome:
        if self._snapshot is None:
            return Outcome(False, "there is no snapshot to compare with: send action snapshot first")
        found = differences(weights, self._snapshot)
        if not found:
            return Outcome(True, "Every weight is that of the snapshot.")
        words = [f"{name} max_abs_err={error:g}" for name, error in list(found.items())[:MOST_NAMED]]
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        return Outcome(False, f"{len(found)} weights are not those of the snapshot: {', '.join(words)}{more}")


_OFFERED = f"there are {', '.join(ACTIONS)}"


def _values(weights: Mapping[str, Any], question: GetWeights) -> Outcome:
    name = question.name
    if name == _HEAD and name not in weights:
        name = _EMBEDDING  # the model ties them
    if name not in weights:
        return Outcome(False, f"{NO_SUCH} {question.name[:200]!r}")
    weight = weights[name]
    shown = weight[: question.truncate_size]
    if (count := math.prod(shown.shape)) > MOST_VALUES:
        return Outcome(False, f"{count} numbers are more than the {MOST_VALUES} of a reply: lower truncate_size")
    facts = {"name": question.name, "shape": list(weight.shape), "dtype": dtype_of(weight)} if question.detail else {}
    return Outcome(True, facts=facts | {"values": floats_of(shown).tolist()})


def _checksums(weights: Mapping[str, Any]) -> Outcome:
    alone = {f"{kind}_{what}": number for kind in ("tp", "dp", "pp") for what, number in (("rank", 0), ("size", 1))}
    rank = {"checksums": digests(weights), "parallelism_info": alone | {"rank": 0, "size": 1}}
    return Outcome(True, facts={"ranks": [rank]})
