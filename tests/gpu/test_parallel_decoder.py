"""A model on several ranks computes what it computes on one: every architecture, with sizes that do not fit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from pawl.gpu.adapters.small import random_adapter
from pawl.gpu.alone import steps_alone
from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.registry import torch_decoder
from pawl.gpu.models.small import random_weights
from pawl.gpu.parallel.placement import Placement
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import part_of
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.runner import Runner
from pawl.gpu.weights.source import resolve_source
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.weight_source import FromTensors
from tests.gpu.driving import logits_in_pieces, scrambled_table
from tests.gpu.thread_ranks import on_ranks
from tests.gpu.tiny import TINY_MODELS, save_tiny

TOLERANCE = 2e-4
PAGE, PAGES, SLOTS = 4, 12, 3
EXPERTS = ("mixtral", "qwen3-moe", "qwen3-moe-mixed", "qwen2-moe")
TWO, THREE = Topology(tensor=2), Topology(tensor=3)


@cache
def config_of(name: str) -> ModelConfig:
    """3 groups of 2 heads, and widths that neither 2 nor 3 divides."""
    with TemporaryDirectory() as folder:
        config = resolve_source(str(save_tiny(name, Path(folder)))).config
    return msgspec.structs.replace(config, num_heads=6, num_kv_heads=3, intermediate_size=79, vocab_size=97)


def logits_of(config: ModelConfig, rank: Rank | None, adapted: bool = False) -> list[Tensor]:
    shard = None if rank is None else rank.shard
    own = config if shard is None else shard.config
    kv = KvStore(own, num_pages=PAGES * SLOTS, page_size=PAGE, dtype=torch.float32, device="cpu")
    weights = dict(part_of(shard, random_weights(config, torch.float32)))
    decoder = torch_decoder(config)(own, weights, kv, threads=1, rank=rank)
    adapters = {}
    if adapted:
        adapter = random_adapter(config, rank=3, seed=5)
        adapters[1] = decoder.pack_adapter(adapter if shard is None else shard.adapter(adapter))
    random = np.random.default_rng(3)
    sequences = [random.integers(0, config.vocab_size, length).tolist() for length in (13, 30, 1)]
    return logits_in_pieces(decoder, scrambled_table(SLOTS, PAGES), sequences, seed=4, adapters=adapters)


def check(config: ModelConfig, topology: Topology, placement: Placement = (), adapted: bool = False) -> None:
    """Every rank has the logits that one has alone."""
    expected = logits_of(config, None, adapted)
    for found in on_ranks(config, topology, lambda rank: logits_of(config, rank, adapted), placement):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("topology", [TWO, THREE], ids=["tp2", "tp3"])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_architecture_gives_the_same_logits_on_two_and_three_ranks(name: str, topology: Topology) -> None:
    check(config_of(name), topology)


@pytest.mark.parametrize("topology", [Topology(tensor=2, expert=2), Topology(tensor=3, expert=3)], ids=["ep2", "ep3"])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_shared_out_whole_give_the_same_logits(name: str, topology: Topology) -> None:
    check(config_of(name), topology)


def test_experts_whose_parts_are_ranks_themselves_give_the_same_logits() -> None:
    config = msgspec.structs.replace(config_of("qwen3-moe"), num_heads=4, num_kv_heads=4)
    check(config, Topology(tensor=4, expert=2))


def test_it_does_not_matter_where_an_expert_is() -> None:
    config = config_of("mixtral")
    placed = ((1,), (0,), (0, 1), (1,)), ((0,), (0,), (0,), (1,)), ((0, 1), (0,), (1,), (0, 1))
    check(config, Topology(tensor=2, expert=2), placement=placed)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3-moe-mixed"])
def test_adapters_add_the_same_on_several_ranks(name: str) -> None:
    config = config_of(name)
    check(config, THREE, adapted=True)
    assert not torch.equal(logits_of(config, None)[1], logits_of(config, None, adapted=True)[1])


# ---- a whole runner ----


def runner_of(config: ModelConfig, rank: Rank | None, backend: str = "torch", seed: int = 0) -> Runner:
    weights = dict(part_of(None if rank is None else rank.shard, random_weights(config, torch.float32, seed)))
    return Runner(
        config,
        weights,
        num_pages=PAGES,
        page_size=PAGE,
        num_slots=1,
        max_context=PAGES * PAGE,
        dtype=torch.float32,
        threads=1,
        backend=backend,  # type: ignore[arg-type]
        rank=rank,
        fingerprint="whole",
    )


def drawn(runner: Runner, sampling: SamplingParameters) -> list[int]:
    prompt = np.arange(3, 24, dtype=np.int32)
    return [int(result.tokens[0]) for result in steps_alone(runner, prompt, sampling, 12, PAGE)]


def test_every_rank_draws_the_same_tokens_as_one_alone() -> None:
    config = config_of("qwen3")
    sampling = SamplingParameters(temperature=0.8, top_k=20, seed=11, frequency_penalty=0.5)
    expected = drawn(runner_of(config, None), sampling)
    assert on_ranks(config, THREE, lambda rank: drawn(runner_of(config, rank), sampling)) == [expected] * 3
    assert len(set(expected)) > 3


def test_weights_that_are_sent_are_cut_and_serve_on_every_rank() -> None:
    config = config_of("qwen3")
    other = random_weights(config, torch.float32, seed=1)
    greedy = SamplingParameters(temperature=0.0)

    def updated(rank: Rank | None) -> list[int]:
        runner = runner_of(config, rank)
        runner.stage(1, FromTensors(dict(other)))
        runner.swap(1)
        return drawn(runner, greedy)

    expected = drawn(runner_of(config, None, seed=1), greedy)
    assert updated(None) == expected
    assert on_ranks(config, TWO, updated) == [expected] * 2


@pytest.mark.parametrize(("backend", "words"), [("native", "in memory that they share"), ("triton", "torch does")])
def test_kernels_that_do_not_add_up_among_ranks_are_refused_by_name(backend: str, words: str) -> None:
    config = config_of("llama")
    with pytest.raises(BackendUnavailable, match=f"the {backend} backend .* {words}"):
        on_ranks(config, TWO, lambda rank: runner_of(config, rank, backend))
