"""Weights that stay in the blocks of a GGUF file: read, served, exchanged, released, asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pawl.actors.weight_questions import CheckWeights, GetWeights, WeightQuestions
from pawl.gpu.runner import Runner
from pawl.gpu.weights.blocks import BlockFormat, Blocks, numbers_of
from pawl.gpu.weights.fingerprint import weights_fingerprint
from pawl.gpu.weights.gguf import GgufFormatError
from pawl.gpu.weights.questions import digests
from pawl.gpu.weights.source import load_blocks, load_weights, source_at
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.weight_source import FromDisk, FromTensors
from tests.gpu.driving import same_bits
from tests.gpu.gguf_files import write_model
from tests.gpu.test_updates import said

FORMATS = (BlockFormat.Q4_1, BlockFormat.Q8_0, BlockFormat.Q5_0)
MODELS = {"llama-wide": "llama", "qwen2-wide": "qwen2", "qwen3-moe-wide": "qwen3moe", "gemma3-wide": "gemma3"}
HEAD, NORM, GATE = "lm_head.weight", "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"


def written(path: Path, name: str = "llama-wide", formats: tuple[BlockFormat, ...] = FORMATS) -> Path:
    return write_model(name, MODELS[name], path, formats=formats)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("blocks") / "llama.gguf")


def runner_of(path: Path) -> Runner:
    source = source_at(path, "tiny")
    sizes = {"num_pages": 1, "page_size": 64, "num_slots": 1, "max_context": 64, "threads": 1}
    weights = load_blocks(source, torch.float32)
    return Runner(source.config, weights, **sizes, dtype=torch.float32, backend="native")


@pytest.mark.parametrize("name", MODELS)
def test_blocks_stand_for_the_numbers_that_the_file_means(name: str, tmp_path: Path) -> None:
    source = source_at(written(tmp_path / "model.gguf", name), name)
    assert source.has_blocks
    blocks, plain = load_blocks(source, torch.float32), load_weights(source, torch.float32)
    assert blocks.keys() == plain.keys()
    assert {type(blocks[weight]) for weight in blocks if "_proj.weight" in weight} == {Blocks}
    for weight, wanted in plain.items():
        assert same_bits(numbers_of(blocks[weight]), wanted), weight


def test_a_file_of_other_formats_has_no_blocks(tmp_path: Path) -> None:
    assert not source_at(written(tmp_path / "model.gguf", formats=()), "plain").has_blocks


def test_a_fingerprint_tells_formats_of_the_same_model_apart(file: Path, tmp_path: Path) -> None:
    found = set()
    for path in (file, written(tmp_path / "other.gguf", formats=FORMATS[1:])):
        source = source_at(path, "tiny")
        found |= {
            weights_fingerprint(source.config, load(source, torch.float32)) for load in (load_blocks, load_weights)
        }
    assert len(found) == 4


def test_after_an_exchange_a_runner_says_what_one_that_starts_with_these_blocks_says(
    file: Path, tmp_path: Path
) -> None:
    other = written(tmp_path / "other.gguf", formats=FORMATS[::-1])
    runner, fresh = runner_of(file), runner_of(other)
    before = said(runner)
    fingerprint = runner.stage(1, FromDisk(str(other)))
    runner.swap(1)
    assert fingerprint in fresh.layout
    assert said(runner) == said(fresh) != before
    assert isinstance(runner.named_weights()[HEAD], Blocks)


def test_a_matrix_that_is_sent_stands_among_blocks(file: Path) -> None:
    runner = runner_of(file)
    before, gate = said(runner), runner.named_weights()[GATE]
    runner.stage(1, FromTensors({GATE: numbers_of(gate) + 1}))
    runner.swap(1)
    named = runner.named_weights()
    assert same_bits(numbers_of(named[GATE]), numbers_of(gate) + np.float32(1))
    assert isinstance(named[HEAD], Blocks)
    assert said(runner) != before


def test_released_blocks_come_back_to_the_bit(file: Path) -> None:
    runner = runner_of(file)
    before, sums = said(runner), digests(runner.named_weights())
    runner.release([MemoryTag.WEIGHTS])
    assert digests(runner.named_weights()) == sums
    runner.resume([MemoryTag.WEIGHTS])
    assert (said(runner), digests(runner.named_weights())) == (before, sums)


def test_questions_about_blocks_are_answered_with_their_numbers(file: Path) -> None:
    questions = WeightQuestions(runner_of(file))
    plain = load_weights(source_at(file, "tiny"), torch.float32)
    outcome: Any = questions.answer(GetWeights(name=GATE, truncate_size=3, detail=True))
    assert outcome.facts["values"] == plain[GATE][:3].tolist()
    assert outcome.facts["shape"] == list(plain[GATE].shape)
    assert outcome.facts["dtype"] in {kind.name for kind in FORMATS}
    assert questions.answer(CheckWeights(action="snapshot")).ok
    assert questions.answer(CheckWeights(action="compare")).ok


@pytest.mark.parametrize("lost", [100, 1000, 20_000])
def test_a_file_that_ends_early_is_refused_in_one_line(lost: int, file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-lost])
    with pytest.raises(GgufFormatError) as refused:
        load_blocks(source_at(cut, "cut"), torch.float32)
    assert "\n" not in str(refused.value)
