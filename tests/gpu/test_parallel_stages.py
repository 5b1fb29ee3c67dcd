"""A model in stages draws what it draws in one piece: any steps, with whatever requests ask for."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.small import llama_config, random_weights
from pawl.gpu.parallel.pages import cut_pages, join_pages, whole_shape
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Shard, part_of
from pawl.gpu.parallel.topology import Topology, TopologyRefused
from pawl.gpu.pooling import Pooling
from pawl.gpu.runner import Runner
from pawl.gpu.select import BackendChoice
from pawl.lifecycle.step import StepBatch, StepResult
from pawl.lifecycle.weight_source import FromTensors
from pawl.loops.speculation import SpeculationConfig
from pawl.testing.expectations import simulated_grammars
from tests.gpu.test_parallel_decoder import config_of
from tests.gpu.thread_ranks import on_ranks
from tests.gpu.tiny import TINY_MODELS
from tests.loops.driver import Driver

SIZES: dict[str, int] = {"num_pages": 60, "page_size": 4, "max_context": 60}
SLOTS = 5
TWO, THREE, SQUARE = Topology(pipeline=2), Topology(pipeline=3), Topology(pipeline=2, tensor=2)


def runner_of(config: ModelConfig, rank: Rank | None, seed: int = 0, backend: BackendChoice = "torch") -> Runner:
    weights = dict(part_of(None if rank is None else rank.shard, random_weights(config, torch.float32, seed)))
    return Runner(
        config,
        weights,
        **SIZES,
        num_slots=SLOTS,
        dtype=torch.float32,
        threads=1,
        backend=backend,
        rank=rank,
        fingerprint="whole",
        grammars=simulated_grammars(),
        pooling=Pooling("mean", normalised=True),
    )


class Alone:
    """A runner that keeps what it was told and what it said."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.batches: list[StepBatch] = []
        self.results: list[StepResult] = []

    def launch(self, batch: StepBatch) -> StepResult:
        self.batches.append(batch)
        self.results.append(self.runner.collect(self.runner.launch(batch)))
        return self.results[-1]


def drawn(source: random.Random) -> dict[str, Any]:
    """How a request wants its tokens."""
    wants: dict[str, Any] = {"temperature": source.choice((0.0, 0.9)), "seed": source.randrange(99)}
    if source.random() < 0.3:
        wants |= {"frequency_penalty": 0.5, "repetition_penalty": 1.2}
    if source.random() < 0.3:
        wants |= {"top_logprobs": 2}
    if source.random() < 0.2:
        wants |= {"prompt_logprobs": True, "top_logprobs": 1}
    if source.random() < 0.15:
        wants |= {"temperature": 0.0, "embed": True}
    return wants


def served(
    config: ModelConfig, stages: int, seed: int = 0, count: int = 7, backend: BackendChoice = "torch", **loop: Any
) -> Alone:
    """Steps of a pipeline of so many stages, and what one runner gives for them."""
    source = random.Random(seed)
    driver = Driver(pacing="pipeline", stages=stages, max_running=SLOTS, prefill_chunk=8, **SIZES, **loop)
    alone = Alone(runner_of(config, None, backend=backend))
    driver.ghost = alone  # type: ignore[assignment]
    for _ in range(count):
        prompt = [source.randrange(config.vocab_size) for _ in range(source.randrange(1, 24))]
        wants = drawn(source)
        driver.submit(prompt, 0 if wants.get("embed") else source.randrange(1, 14), **wants)
        if source.random() < 0.5:
            driver.step()
    driver.run()
    return alone


def in_stages(
    config: ModelConfig, topology: Topology, batches: list[StepBatch], backend: BackendChoice = "torch"
) -> list[list[StepResult]]:
    """What the ranks of the last stage say, with as many steps on their way as there are stages."""

    def compute(rank: Rank) -> list[StepResult]:
        runner, launched, results = runner_of(config, rank, backend=backend), [], []
        for batch in batches:
            launched.append(runner.launch(batch))
            if len(launched) > topology.pipeline:
                results.append(runner.collect(launched.pop(0)))
        return results + [runner.collect(each) for each in launched]

    return on_ranks(config, topology, compute)[-topology.tensor :]


def same(one: StepResult, other: StepResult, exactly: bool) -> None:
    assert one.tokens.tolist() == other.tokens.tolist()
    if exactly:
        assert msgspec.msgpack.encode(_plain(one)) == msgspec.msgpack.encode(_plain(other))


def _plain(result: StepResult) -> Any:
    return msgspec.to_builtins(result, enc_hook=lambda array: np.asarray(array).tobytes(), builtin_types=(bytes,))


DEEP = msgspec.structs.replace(
    llama_config(num_layers=5), windows=(None, 6, None, None, 6), embedding_scale=3.0, tied_embeddings=True
)
"""With five layers, which neither 2 nor 3 divides."""


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("topology", [TWO, THREE], ids=["pp2", "pp3"])
def test_stages_give_the_bits_that_one_runner_gives(topology: Topology, backend: BackendChoice) -> None:
    alone = served(DEEP, topology.pipeline, seed=topology.pipeline, backend=backend)
    (results,) = in_stages(DEEP, topology, alone.batches, backend)
    for one, other in zip(alone.results, results, strict=True):
        same(one, other, exactly=True)


def test_ranks_of_stages_draw_the_same_tokens() -> None:
    alone = served(DEEP, 2, seed=5)
    for results in in_stages(DEEP, SQUARE, alone.batches):
        for one, other in zip(alone.results, results, strict=True):
            same(one, other, exactly=False)


def test_drafts_go_through_stages() -> None:
    config = SpeculationConfig(num_speculative_tokens=3, prompt_lookup_min=1, prompt_lookup_max=2)
    alone = served(DEEP, 2, seed=8, backend="native", speculation=config)
    assert any((batch.chained & (batch.lengths > 1)).any() for batch in alone.batches)
    (results,) = in_stages(DEEP, TWO, alone.batches, "native")
    for one, other in zip(alone.results, results, strict=True):
        same(one, other, exactly=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_architecture_gives_the_same_bits_in_three_stages(name: str) -> None:
    config = config_of(name)
    alone = served(config, 3, seed=1, count=40)
    (results,) = in_stages(config, THREE, alone.batches)
    for one, other in zip(alone.results, results, strict=True):
        same(one, other, exactly=True)


def test_a_stage_begins_anew_after_a_reset_with_other_weights() -> None:
    alone = served(DEEP, 2, seed=3)
    other = random_weights(DEEP, torch.float32, seed=1)
    updated = Alone(runner_of(DEEP, None, seed=1))
    expected = [updated.launch(batch) for batch in alone.batches]

    def compute(rank: Rank) -> list[StepResult]:
        runner = runner_of(DEEP, rank)
        for batch in alone.batches:
            runner.collect(runner.launch(batch))
        runner.reset()
        runner.stage(1, FromTensors(dict(other)))
        runner.swap(1)
        return [runner.collect(runner.launch(batch)) for batch in alone.batches]

    for one, found in zip(expected, on_ranks(DEEP, TWO, compute)[-1], strict=True):
        same(one, found, exactly=True)


@pytest.mark.parametrize("tied", [True, False])
def test_a_stage_has_pages_and_weights_of_its_layers_only(tied: bool) -> None:
    config = msgspec.structs.replace(DEEP, tied_embeddings=tied)
    weights = random_weights(config, torch.float32)

    def parts(rank: Rank) -> tuple[int, dict[str, torch.Tensor]]:
        runner = runner_of(config, rank)
        return len(runner.kv.data), dict(runner.named_weights())

    layers, shown = zip(*on_ranks(config, THREE, parts), strict=True)
    assert layers == (2, 2, 1)
    twice = {"model.embed_tokens.weight"} if tied else set()
    assert {name for part in shown for name in part} == set(weights)
    assert sum(map(len, shown)) == len(weights) + len(twice)
    for part in shown:
        assert all(torch.equal(part[name], weights[name]) for name in part)


@pytest.mark.parametrize("topology", [THREE, SQUARE], ids=["pp3", "pp2-tp2"])
def test_pages_of_all_stages_are_the_pages_of_one_runner_and_go_back(topology: Topology) -> None:
    source, pages = np.random.default_rng(3), np.array([7, 0, 31], np.int32)
    alone = runner_of(DEEP, None)
    alone.kv.data.copy_(torch.from_numpy(source.standard_normal(tuple(alone.kv.data.shape))))
    whole, (layers, two, _, *page) = alone.read_pages(pages), alone.kv.data.shape

    def there_and_back(rank: Rank) -> tuple[np.ndarray, tuple[int, ...]]:
        runner, shard = runner_of(DEEP, rank), rank.shard
        runner.write_pages(pages, cut_pages(whole, (layers, two, *page), shard.groups, shard.layers))
        own, _, _, *kept = runner.kv.data.shape
        return runner.read_pages(pages), (own, two, *kept)

    blocks, shapes = zip(*on_ranks(DEEP, topology, there_and_back), strict=True)
    assert whole_shape(shapes, topology.pipeline) == (layers, two, *page)
    assert np.array_equal(join_pages(blocks, shapes, topology.pipeline), whole)


def test_more_stages_than_layers_are_refused_with_the_numbers() -> None:
    with pytest.raises(TopologyRefused, match="pp 6: this model has 5 layers"):
        Shard(DEEP, Topology(pipeline=6), 0)
