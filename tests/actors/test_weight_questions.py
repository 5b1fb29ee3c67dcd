"""Questions about the weights of real models: values and names are those of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pawl.actors.weight_questions import ACTIONS, MOST_NAMED, NO_SUCH, CheckWeights, GetWeights, WeightQuestions
from pawl.gpu.runner import Runner
from pawl.gpu.select import BackendChoice
from pawl.gpu.weights.safetensors import folder_config, load_folder_weights
from pawl.lifecycle.weight_source import FromTensors
from tests.gpu.tiny import save_tiny

BACKENDS: list[BackendChoice] = ["torch", "native"]


def runner_of(path: Path, backend: BackendChoice) -> Runner:
    config = folder_config(path)
    weights = load_folder_weights(path, config, torch.float32)
    sizes = {"num_pages": 1, "page_size": 16, "num_slots": 1, "max_context": 16, "threads": 1}
    return Runner(config, weights, **sizes, dtype=torch.float32, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_shown_by_the_names_and_with_the_values_of_their_checkpoint(
    tmp_path: Path, backend: BackendChoice
) -> None:
    # Gemma's norms are stored without the 1 that they are computed with; its head is its embedding.
    path = save_tiny("gemma3", tmp_path)
    stored, questions = load_file(path / "model.safetensors"), WeightQuestions(runner_of(path, backend))
    for name, weight in stored.items():
        outcome = questions.answer(GetWeights(name=name, truncate_size=5, detail=True))
        assert (outcome.ok, outcome.facts["shape"], outcome.facts["dtype"]) == (True, list(weight.shape), "float32")
        np.testing.assert_allclose(outcome.facts["values"], weight[:5].numpy(), atol=1e-6)
    head, embedding = (questions.answer(GetWeights(name=n)) for n in ("lm_head.weight", "model.embed_tokens.weight"))
    assert head.facts["values"] == embedding.facts["values"]
    assert not questions.answer(GetWeights(name="model.layers.0.self_attn.qkv_proj.weight")).ok


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_compared_with_a_snapshot_under_the_names_of_products(
    tmp_path: Path, backend: BackendChoice
) -> None:
    path, name = save_tiny("llama", tmp_path), "model.layers.1.mlp.up_proj.weight"
    runner, stored = runner_of(path, backend), load_file(path / "model.safetensors")
    questions, product = WeightQuestions(runner), "model.layers.1.mlp.gate_up_proj.weight"
    questions.answer(CheckWeights(action="snapshot"))
    asked = questions.answer(CheckWeights())
    (before,) = asked.facts["ranks"]
    assert asked.ok
    runner.stage(1, FromTensors(stored))
    runner.swap(1)
    assert questions.answer(CheckWeights(action="compare")).ok
    runner.stage(2, FromTensors({name: stored[name] + 0.5}))
    runner.swap(2)
    outcome = questions.answer(CheckWeights(action="compare"))
    assert not outcome.ok
    assert outcome.message == f"1 weights are not those of the snapshot: {product} max_abs_err=0.5"
    (after,) = questions.answer(CheckWeights()).facts["ranks"]
    assert [each for each, digest in after["checksums"].items() if before["checksums"][each] != digest] == [product]
    assert "model.layers.0.self_attn.qkv_proj.weight" in after["checksums"]


class Serving:
    """A runner that serves what a test says."""

    def __init__(self, **weights: list[float]) -> None:
        self.weights = {name: np.array(values, np.float32) for name, values in weights.items()}

    def named_weights(self) -> dict[str, Any]:
        return dict(self.weights)


def test_weights_are_compared_with_the_last_snapshot_and_a_few_that_differ_are_named() -> None:
    runner = Serving(**{f"w{number:02d}": [1.0, 2.0] for number in range(MOST_NAMED + 2)})
    questions = WeightQuestions(runner)  # type: ignore[arg-type]

    def says(action: str) -> tuple[bool, str]:
        outcome = questions.answer(CheckWeights(action=action))
        return outcome.ok, outcome.message

    assert says("compare") == (False, "there is no snapshot to compare with: send action snapshot first")
    assert says("snapshot") == (True, "The weights that serve are kept to compare with.")
    same = True, "Every weight is that of the snapshot."
    assert says("compare") == same
    for number, (name, weight) in enumerate(list(runner.weights.items()), 1):
        runner.weights[name] = weight + np.array([0.0, number], np.float32)
        ok, words = says("compare")
        named = [f"w{each:02d} max_abs_err={each + 1}" for each in range(min(number, MOST_NAMED))]
        more = f" and {number - MOST_NAMED} more" if number > MOST_NAMED else ""
        assert (ok, words) == (False, f"{number} weights are not those of the snapshot: {', '.join(named)}{more}")
    says("snapshot")
    assert says("compare") == same
    for action in ("reset_tensors", "other"):
        ok, words = says(action)
        assert (ok, words.startswith(f"Unsupported action {action}")) == (False, True)
        assert words.endswith(f"there are {', '.join(ACTIONS)}")
    assert CheckWeights().action == "checksum"


def test_a_tied_head_is_its_embedding_and_values_are_cut_where_it_says() -> None:
    tied = WeightQuestions(Serving(**{"model.embed_tokens.weight": [1.0, 2.0, 3.0]}))  # type: ignore[arg-type]
    shown = tied.answer(GetWeights(name="lm_head.weight", truncate_size=2, detail=True)).facts
    assert shown == {"name": "lm_head.weight", "shape": [3], "dtype": "float32", "values": [1.0, 2.0]}
    own = Serving(**{"model.embed_tokens.weight": [1.0], "lm_head.weight": [7.0]})
    assert WeightQuestions(own).answer(GetWeights(name="lm_head.weight")).facts == {"values": [7.0]}  # type: ignore[arg-type]
    refused = tied.answer(GetWeights(name="x" * 300))
    assert (refused.ok, refused.message) == (False, f"{NO_SUCH} {'x' * 200!r}")


def test_more_numbers_than_a_reply_has_are_refused_before_they_are_converted() -> None:
    class Wide:
        def named_weights(self) -> dict[str, Any]:
            return {"wide": np.broadcast_to(np.float32(0), (1 << 20, 1 << 20))}

    outcome = WeightQuestions(Wide()).answer(GetWeights(name="wide", truncate_size=1 << 20))  # type: ignore[arg-type]
    assert (outcome.ok, outcome.message.startswith(f"{1 << 40} numbers are more than")) == (False, True)
