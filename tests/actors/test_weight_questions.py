"""Questions about the weights of real models: values and names are those of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pawl.actors.weight_questions import CheckWeights, GetWeights, WeightQuestions
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
    (before,) = questions.answer(CheckWeights()).facts["ranks"]
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


def test_more_numbers_than_a_reply_has_are_refused_before_they_are_converted() -> None:
    class Wide:
        def named_weights(self) -> dict[str, Any]:
            return {"wide": np.broadcast_to(np.float32(0), (1 << 20, 1 << 20))}

    outcome = WeightQuestions(Wide()).answer(GetWeights(name="wide", truncate_size=1 << 20))  # type: ignore[arg-type]
    assert (outcome.ok, outcome.message.startswith(f"{1 << 40} numbers are more than")) == (False, True)
