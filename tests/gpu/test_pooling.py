"""Vectors of decoders: transformers' last hidden states, pooled; and the same bits in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pawl.gpu.pooling import Pooler, Pooling, pooled
from pawl.gpu.recompute import Recomputer
from pawl.gpu.runner import Runner
from pawl.gpu.weights.source import load_weights, resolve_source
from pawl.lifecycle.recompute import Recorded
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import Embedding as Vector
from pawl.lifecycle.step import Float32s, Int32s, SlotAssignment, StepBatch, StepResult
from pawl.loops.batch import ScheduledBatch
from tests.gpu.serving import Asked, Serving, Worker
from tests.gpu.tiny import TINY_MODELS, save_tiny, tiny_model

VOCABULARY = 97
EMBED = SamplingParameters(temperature=0.0, max_new_tokens=0, embed=True)
PROMPTS = [np.random.default_rng(seed).integers(0, VOCABULARY, length) for seed, length in enumerate((1, 5, 23, 40))]
KINDS = (Pooling("last", normalised=False), Pooling("mean", normalised=True))


class Embedding(Serving):
    """A loop over a real model, and the vectors that came of it."""

    def __init__(self, worker: Worker, **overrides: Any) -> None:
        super().__init__(worker, **overrides)
        self.vector_of: dict[int, Float32s] = {}

    def embed(self, prompt: Sequence[int]) -> int:
        request, self._next = self._next, self._next + 1
        ticket = RequestInfo(request, f"r{request}", EMBED, "", self.now)
        self.loop.requests.submit(ticket, np.array(prompt, np.int32), 0, float("inf"), self.now)
        return request

    def output(self, rows: Int32s, tokens: Int32s, scheduled: ScheduledBatch, result: StepResult) -> None:
        super().output(rows, tokens, scheduled, result)
        rows_of = scheduled.row_of_slot(self.loop.fresh_at_commit)
        for each in result.embeddings:
            request = self.request_of[rows_of[each.slot]]
            assert request not in self.vector_of
            self.vector_of[request] = each.vector

    def vectors(self, prompts: Sequence[Sequence[int]]) -> list[Float32s]:
        requests = [self.embed(prompt) for prompt in prompts]
        self.run()
        assert all(self.cause(request) is Cause.EMBEDDED for request in requests)
        return [self.vector_of[request] for request in requests]


def worker_of(folder: Path, pooling: Pooling, backend: Any, dtype: torch.dtype = torch.float32) -> Worker:
    source = resolve_source(str(folder))
    sizes = {"num_pages": 40, "page_size": 4, "num_slots": 6, "max_context": 64, "threads": 2}
    weights = load_weights(source, dtype)
    return Worker(source.config, weights, dtype, backend=backend, pooling=pooling, **sizes)


def reference(name: str, prompt: Sequence[int], pooling: Pooling) -> Float32s:
    with torch.inference_mode():
        states = tiny_model(name).model(torch.tensor([list(prompt)])).last_hidden_state[0]
    return pooled(pooling, states.float().numpy())


@pytest.mark.parametrize("pooling", KINDS, ids=lambda pooling: pooling.kind)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_vectors_are_those_of_transformers_hidden_states(name: str, pooling: Pooling, tmp_path: Path) -> None:
    run = Embedding(worker_of(save_tiny(name, tmp_path), pooling, "auto"), prefill_chunk=16)
    for prompt, vector in zip(PROMPTS, run.vectors(PROMPTS), strict=True):
        np.testing.assert_allclose(vector, reference(name, prompt, pooling), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", KINDS, ids=lambda pooling: pooling.kind)
def test_the_bits_of_a_vector_depend_on_nothing_but_its_prompt(
    pooling: Pooling, dtype: torch.dtype, tmp_path: Path
) -> None:
    worker = worker_of(save_tiny("llama", tmp_path), pooling, "native", dtype)
    alone = [Embedding(worker, prefill_chunk=64).vectors([prompt])[0].tobytes() for prompt in PROMPTS]
    for chunk, pacing in ((4, "overlap"), (16, "lockstep"), (64, "overlap")):
        run = Embedding(worker, prefill_chunk=chunk, pacing=pacing)
        said = run.ask(Asked((7, 8, 9)))
        assert [vector.tobytes() for vector in run.vectors(PROMPTS)] == alone
        assert run.answer_of[said].tokens


def test_a_prompt_whose_vector_is_no_number_ends_with_a_failure_and_the_others_go_on(tmp_path: Path) -> None:
    worker = worker_of(save_tiny("llama", tmp_path), KINDS[1], "native")
    run = Embedding(worker)
    backend = worker.runner.backend
    sick, well = run.embed([1, 2, 3]), run.embed([4, 5, 6])
    hidden = backend.hidden

    def broken(inputs: Any) -> torch.Tensor:
        states = hidden(inputs)
        states[: int(inputs.lengths[0])] = float("nan")
        return states

    worker.runner.backend.hidden = broken  # type: ignore[method-assign]
    run.run()
    assert run.cause(sick) is Cause.INTERNAL
    assert run.cause(well) is Cause.EMBEDDED


def test_a_slot_that_is_used_again_begins_its_mean_anew() -> None:
    pooler = Pooler(1, Pooling("mean", normalised=False))
    ones, twos = np.ones((2, 3), np.float32), np.full((3, 3), 2, np.float32)
    none = np.zeros(0, np.int32)
    nobody = np.zeros(1, np.bool_)

    def step(start: int, rows: Float32s) -> list[float]:
        column = {name: np.array([value], np.int32) for name, value in (("slots", 0), ("lengths", len(rows)))}
        batch = StepBatch(
            step=1,
            starts=np.array([start], np.int32),
            tokens=none,
            chained=nobody,
            samples=nobody,
            page_slots=none,
            page_indices=none,
            pages=none,
            **column,
        )
        return [each.vector.tolist() for each in pooler.pool(pooler.parts(batch, nobody), rows)]

    pooler.admit([SlotAssignment(0, EMBED, 5, none, 0)])
    assert step(0, ones) == []
    assert step(0, ones) == [], "it was retracted, and begins anew"
    assert step(2, twos) == [[np.float32(1.6)] * 3]


def test_a_runner_without_pooling_says_that_it_makes_no_vectors(tmp_path: Path) -> None:
    source = resolve_source(str(save_tiny("llama", tmp_path)))
    sizes = {"num_pages": 4, "page_size": 4, "num_slots": 2, "max_context": 16, "dtype": torch.float32}
    runner = Runner(source.config, load_weights(source, torch.float32), **sizes)
    assert runner.abilities.generates
    assert not runner.abilities.vector_size


@pytest.mark.parametrize("pooling", KINDS, ids=lambda pooling: pooling.kind)
def test_a_vector_computed_again_from_its_record_has_the_same_bits(pooling: Pooling, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    run = Embedding(worker_of(folder, pooling, "native"), prefill_chunk=8)
    digests = [Vector.of(0, vector).digest for vector in run.vectors(PROMPTS)]
    source = resolve_source(str(folder))
    again = Recomputer(
        source.config, load_weights(source, torch.float32), max_context=64, dtype=torch.float32, pooling=pooling
    )
    recorded = [Recorded(prompt.astype(np.int32), len(prompt), EMBED) for prompt in PROMPTS]
    assert [each.digests for each in again(recorded)] == [[digest] for digest in digests]
