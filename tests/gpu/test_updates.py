"""New weights for a runner that computes: they give what an engine that starts with them gives, and whatever is
wrong with one leaves the runner as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pawl.gpu.alone import steps_alone
from pawl.gpu.models.config import Rope
from pawl.gpu.runner import Runner
from pawl.gpu.select import BackendChoice
from pawl.gpu.step_runner import WeightsRefused
from pawl.gpu.updates import differences, same
from pawl.gpu.weights.safetensors import folder_config, load_folder_weights
from pawl.lifecycle.request import SamplingParameters

PROMPT = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
GREEDY = SamplingParameters(temperature=0.0, max_new_tokens=8, top_logprobs=0)
BACKENDS: list[BackendChoice] = ["torch", "native"]


def folder(path: Path, seed: int, **changes: int) -> Path:
    """A tiny Llama of random weights."""
    sizes = {"vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**sizes | heads | changes)).save_pretrained(path, safe_serialization=True)
    return path


def runner_of(path: Path, backend: BackendChoice) -> Runner:
    config = folder_config(path)
    weights = load_folder_weights(path, config, torch.float32)
    sizes = {"num_pages": 1, "page_size": 64, "num_slots": 1, "max_context": 64, "threads": 1}
    return Runner(config, weights, **sizes, dtype=torch.float32, backend=backend)


def said(runner: Runner) -> list[tuple[int, float]]:
    """Tokens with their log-probabilities."""
    results = list(steps_alone(runner, PROMPT, GREEDY, 8, 64))
    return [(int(r.tokens[0]), float(r.logprobs.chosen[0])) for r in results if r.logprobs is not None]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_an_exchange_a_runner_says_what_one_that_starts_with_these_weights_says(
    one: Path, two: Path, backend: BackendChoice
) -> None:
    runner, other = runner_of(one, backend), runner_of(two, backend)
    before = said(runner)
    fingerprint = runner.stage(1, str(two), "auto")
    assert said(runner) == before, "what is staged computes nothing"
    runner.swap(1)
    assert said(runner) == said(other) != before
    assert fingerprint in other.layout
    runner.stage(2, str(one), "safetensors")
    runner.swap(2)
    assert said(runner) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_that_is_written_anew_changes_nothing_that_was_read_from_it(
    one: Path, two: Path, tmp_path: Path, backend: BackendChoice
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(one, shared)
    runner = runner_of(shared, backend)
    before = said(runner)
    runner.stage(1, str(shared), "auto")
    shutil.copyfile(two / "model.safetensors", shared / "model.safetensors")
    assert said(runner) == before
    runner.swap(1)
    assert said(runner) == before


def damaged(path: Path, kind: str) -> None:
    file = path / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "whole numbers":
        save_file(weights | {name: weights[name].to(torch.int8)}, file)
    elif kind == "another shape":
        save_file(weights | {name: weights[name][:3].contiguous()}, file)
    elif kind == "a tensor less":
        save_file({key: value for key, value in weights.items() if key != name}, file)
    elif kind == "another rope":
        values = json.loads((path / "config.json").read_text())
        values.pop("rope_parameters", None)
        (path / "config.json").write_text(json.dumps(values | {"rope_theta": 77.0}))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "damaged safetensors file"),
        ("whole numbers", "stored as torch.int8"),
        ("another shape", "wrong shape"),
        ("a tensor less", "missing model.layers.1.mlp.up_proj.weight"),
        ("another rope", "is another model than the one that is served: rope is"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(
    one: Path, two: Path, tmp_path: Path, kind: str, words: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(two, bad)
    damaged(bad, kind)
    runner = runner_of(one, "torch")
    before = said(runner)
    with pytest.raises(WeightsRefused, match=words) as refused:
        runner.stage(1, str(bad), "auto")
    assert "\n" not in str(refused.value)
    with pytest.raises(WeightsRefused, match="nothing is staged"):
        runner.swap(1)
    assert said(runner) == before


def test_another_size_another_format_and_no_folder_are_refused(one: Path, tmp_path: Path) -> None:
    runner = runner_of(one, "torch")
    for source, form, words in (
        (str(folder(tmp_path / "large", 1, hidden_size=64)), "auto", "hidden_size is 64, not 48"),
        (str(one), "gguf", "is not gguf"),
        (str(tmp_path / "none"), "auto", "no such file or folder"),
    ):
        with pytest.raises(WeightsRefused, match=words):
            runner.stage(1, source, form)


def test_numbers_are_compared_as_single_precision_tells_them_apart(one: Path) -> None:
    assert same(1e-5, float(np.float32(1e-5)))
    assert not same(1e-5, 2e-5)
    assert same(Rope(1e4, (1.0,)), Rope(1e4, (1.0,)))
    assert not same(Rope(1e4), Rope(1e6))
    assert not same((None, 5), (None,))
    assert differences(folder_config(one), folder_config(one)) == ""
