"""A runner with adapters: which request computes with which, and what loading, unloading and new weights do to that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pawl.gpu.alone import steps_alone
from pawl.gpu.batches import InvalidBatch
from pawl.gpu.runner import Runner
from pawl.gpu.select import BackendChoice
from pawl.gpu.step_runner import AdapterRefused
from pawl.gpu.weights.safetensors import folder_config, load_folder_weights
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch, StepResult
from pawl.lifecycle.weight_source import FromDisk
from tests.gpu.adapters import adapted, peft_logits, save
from tests.gpu.driving import int32
from tests.gpu.tiny import reference_logits, save_tiny, tiny_model

PROMPT = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
GREEDY = SamplingParameters(temperature=0.0, max_new_tokens=6, top_logprobs=0)
PLAIN = SamplingParameters(temperature=0.0, max_new_tokens=6)
BACKENDS: list[BackendChoice] = ["torch", "native"]
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model, and two adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    save_tiny("llama", folder / "base")
    for seed in SEEDS:
        save(adapted("llama", seed), folder / str(seed))
    return folder


def runner_of(files: Path, backend: BackendChoice, base: str = "base") -> Runner:
    config = folder_config(files / base)
    weights = load_folder_weights(files / base, config, torch.float32)
    sizes = {"num_pages": 8, "page_size": 16, "num_slots": 3, "max_context": 32, "threads": 1}
    return Runner(config, weights, **sizes, dtype=torch.float32, backend=backend)


def said(runner: Runner, adapter: int) -> list[tuple[int, float]]:
    results = list(steps_alone(runner, PROMPT, GREEDY, 6, 16, adapter=adapter))
    return [(int(r.tokens[0]), float(r.logprobs.chosen[0])) for r in results if r.logprobs is not None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_says_what_peft_says_with_its_adapter(backend: BackendChoice, files: Path) -> None:
    runner = runner_of(files, backend)
    for seed in SEEDS:
        runner.load_adapter(seed, str(files / str(seed)))
    for number in (0, *SEEDS):
        tokens = PROMPT.tolist()
        for token, logprob in said(runner, number):
            model = adapted("llama", number) if number else None
            logits = reference_logits("llama", tokens) if model is None else peft_logits(model, tokens)
            scores = logits[-1].log_softmax(-1)
            assert token == int(scores.argmax())
            assert logprob == pytest.approx(float(scores[token]), abs=1e-4)
            tokens.append(token)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_in_an_adapter_slot_is_what_was_loaded_last(backend: BackendChoice, files: Path) -> None:
    runner = runner_of(files, backend)
    with pytest.raises(InvalidBatch, match="no adapter in adapter slot 1"):
        said(runner, 1)
    prints = [runner.load_adapter(number, str(files / str(number))) for number in SEEDS]
    one, two, base = said(runner, 1), said(runner, 2), said(runner, 0)
    assert prints[0] != prints[1]
    assert len({tuple(each) for each in (one, two, base)}) == 3
    assert runner.load_adapter(1, str(files / "2")) == prints[1]
    assert said(runner, 1) == two
    with pytest.raises(AdapterRefused):
        runner.load_adapter(2, str(files / "base"))
    with pytest.raises(InvalidBatch, match="no adapter in adapter slot 2"):
        said(runner, 2)
    runner.unload_adapter(1)
    runner.unload_adapter(1)
    with pytest.raises(InvalidBatch, match="no adapter in adapter slot 1"):
        said(runner, 1)
    assert said(runner, 0) == base


@pytest.mark.parametrize("backend", BACKENDS)
def test_new_weights_leave_adapters_where_they_are(backend: BackendChoice, files: Path) -> None:
    model = tiny_model("llama")
    moved = {name: weight + 0.01 for name, weight in model.state_dict().items()}
    model.save_pretrained(files / "moved", state_dict=moved)
    runner, other = runner_of(files, backend), runner_of(files, backend, "moved")
    for each in (runner, other):
        each.load_adapter(1, str(files / "1"))
    before = said(runner, 1)
    runner.stage(1, FromDisk(str(files / "moved")))
    runner.swap(1)
    assert said(runner, 1) == said(other, 1) != before


def step(
    number: int, slots: Sequence[int], starts: Sequence[int], lengths: Sequence[int], **others: object
) -> StepBatch:
    count, none = len(slots), np.zeros(0, np.int32)
    fields = {"tokens": none, "chained": np.ones(count, np.bool_), "samples": np.ones(count, np.bool_)}
    fields |= {"page_slots": none, "page_indices": none, "pages": none} | others
    return StepBatch(step=number, slots=int32(*slots), starts=int32(*starts), lengths=int32(*lengths), **fields)


@pytest.mark.parametrize("sampling", [PLAIN, GREEDY], ids=["fused", "scored"])
def test_drafts_of_requests_with_different_adapters_are_judged_by_their_own(
    sampling: SamplingParameters, files: Path
) -> None:
    runner = runner_of(files, "native")
    for seed in SEEDS:
        runner.load_adapter(seed, str(files / str(seed)))
    expected = [[token for token, _ in said(runner, number)] for number in range(3)]
    runner.reset()
    admitted = tuple(SlotAssignment(slot, sampling, len(PROMPT), PROMPT, 0, slot) for slot in range(3))
    pages = {"page_slots": int32(0, 1, 2), "page_indices": int32(0, 0, 0), "pages": int32(0, 1, 2)}
    prompts = {"tokens": np.tile(PROMPT, 3), "chained": np.zeros(3, np.bool_), "admitted": admitted}
    first = run(runner, step(1, (0, 1, 2), (0, 0, 0), (8, 8, 8), **pages, **prompts))
    assert first.tokens.tolist() == [own[0] for own in expected]
    # The drafts of all are what the base model goes on with.
    drafts = int32(*(expected[0][1:4] * 3))
    second = run(runner, step(2, (0, 1, 2), (8, 8, 8), (4, 4, 4), tokens=drafts))
    assert second.counts is not None
    at = 0
    for own, count in zip(expected, second.counts.tolist(), strict=True):
        assert second.tokens[at : at + count].tolist() == own[1 : 1 + count]
        at += count
    assert second.counts[0] == 4


def run(runner: Runner, batch: StepBatch) -> StepResult:
    return runner.collect(runner.launch(batch))
