"""What each rank has of a model: all of it is somebody's, once, as evenly as it goes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.adapters.small import random_adapter
from pawl.gpu.models.config import Experts, ModelConfig, weight_shapes
from pawl.gpu.models.small import llama_config, random_weights
from pawl.gpu.parallel.shard import Shard, even_placement, joined
from pawl.gpu.parallel.topology import Place, Topology, TopologyRefused, shared_out
from pawl.gpu.weights.source import resolve_source
from tests.gpu.driving import same_bits
from tests.gpu.tiny import TINY_MODELS, save_tiny

SMOLLM2_HEADS = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 8}


@cache
def config_of(name: str) -> ModelConfig:
    with TemporaryDirectory() as folder:
        return resolve_source(str(save_tiny(name, Path(folder)))).config


def shards_of(config: ModelConfig, topology: Topology) -> list[Shard]:
    return [Shard(config, topology, number) for number in range(topology.tensor)]


@st.composite
def shared_models(draw: st.DrawFn) -> tuple[ModelConfig, Topology]:
    """A model of any architecture whose sizes do not fit anything, and ranks that it is enough for."""
    config = config_of(draw(st.sampled_from(TINY_MODELS)))
    groups, heads = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    tensor = draw(st.integers(1, groups))
    expert = draw(st.sampled_from([e for e in range(1, tensor + 1) if tensor % e == 0])) if config.experts else 1
    config = msgspec.structs.replace(
        config,
        num_kv_heads=groups,
        num_heads=groups * heads,
        intermediate_size=draw(st.integers(tensor, 30)),
        vocab_size=draw(st.integers(tensor, 30)),
    )
    if config.experts is not None:
        count = draw(st.integers(max(expert, config.experts.chosen), 9))
        experts = msgspec.structs.replace(config.experts, count=count, size=draw(st.integers(tensor, 9)))
        config = msgspec.structs.replace(config, experts=experts)
    return config, Topology(tensor=tensor, expert=expert)


@given(st.integers(0, 200), st.integers(1, 20))
def test_shares_are_all_there_is_in_order_and_differ_by_one_at_most(total: int, parts: int) -> None:
    shares = shared_out(total, parts)
    assert [thing for share in shares for thing in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(shared_models())
def test_the_parts_of_all_ranks_put_together_are_the_weights(model: tuple[ModelConfig, Topology]) -> None:
    config, topology = model
    shards = shards_of(config, topology)
    for name, weight in random_weights(config, torch.float32).items():
        cut = {shard.tensor: part for shard in shards if (part := shard.cut(name, weight)) is not None}
        assert same_bits(joined(shards, name, cut), weight), name


@given(shared_models())
def test_a_rank_has_the_weights_of_its_own_configuration(model: tuple[ModelConfig, Topology]) -> None:
    config, topology = model
    weights = random_weights(config, torch.float32)
    for shard in shards_of(config, topology):
        found = {name: tuple(part.shape) for name in weights if (part := shard.cut(name, weights[name])) is not None}
        expected = weight_shapes(shard.config)
        assert found == {name: shape for name, shape in expected.items() if name in shard.cuts}
        left_out = {name for name in expected if name not in found}
        assert all(".mlp.experts." in name for name in left_out)


@given(shared_models(), st.integers(0, 1 << 20))
def test_what_the_parts_of_an_adapter_add_is_what_it_adds(model: tuple[ModelConfig, Topology], seed: int) -> None:
    config, topology = model
    adapter = random_adapter(config, rank=2, seed=seed)
    shards = shards_of(config, topology)
    parts = [shard.adapter(adapter) for shard in shards]
    shapes = weight_shapes(config)
    for layer, products in enumerate(adapter.layers):
        for product, low in products.items():
            whole = low.expand @ low.shrink
            deltas = [part.layers[layer][product].expand @ part.layers[layer][product].shrink for part in parts]
            if product in ("output", "down"):
                assert torch.allclose(torch.cat(deltas, 1), whole, atol=1e-5)
                continue
            names = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}[product]
            stem = f"model.layers.{layer}.{'self_attn' if product == 'qkv' else 'mlp'}"
            rows = [shapes[f"{stem}.{name}_proj.weight"][0] for name in names]
            split = [
                torch.split(delta, [weight_shapes(shard.config)[f"{stem}.{name}_proj.weight"][0] for name in names])
                for shard, delta in zip(shards, deltas, strict=True)
            ]
            again = torch.cat([torch.cat(of_ranks) for of_ranks in zip(*split, strict=True)])
            assert sum(rows) == len(again)
            assert torch.allclose(again, whole, atol=1e-5)


def test_nine_heads_in_three_groups_are_six_and_three() -> None:
    config = llama_config(**SMOLLM2_HEADS)
    assert [shard.config.num_heads for shard in shards_of(config, Topology(tensor=2))] == [6, 3]
    assert [shard.config.num_kv_heads for shard in shards_of(config, Topology(tensor=2))] == [2, 1]


def test_experts_go_whole_to_the_parts_and_their_columns_to_the_ranks_of_a_part() -> None:
    experts = Experts(count=5, chosen=2, size=7, normalised=True, layers=(True, False))
    config = msgspec.structs.replace(llama_config(**SMOLLM2_HEADS | {"num_kv_heads": 9}), experts=experts)
    shards = shards_of(config, Topology(tensor=4, expert=2))
    assert [shard.held(0) for shard in shards] == [(0, 1, 2), (0, 1, 2), (3, 4), (3, 4)]
    assert [shard.held(1) for shard in shards] == [()] * 4
    assert [shard.config.experts.size for shard in shards if shard.config.experts] == [4, 3, 4, 3]


def test_experts_can_be_placed_otherwise() -> None:
    experts = Experts(count=4, chosen=2, size=7, normalised=True, layers=(True, True))
    config = msgspec.structs.replace(llama_config(), experts=experts)
    placement = (((0,), (1,), (1,), (0,)), even_placement(config, 2)[1])
    assert [Shard(config, Topology(tensor=2, expert=2), n, placement).held(0) for n in range(2)] == [(0, 3), (1, 2)]


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (Topology(tensor=4), "tp 4: this model has 3 key heads"),
        (Topology(pipeline=3), "pp 3: this model has 2 layers"),
        (Topology(tensor=2, expert=2), "ep 2: this model has 1 experts"),
    ],
)
def test_more_ranks_than_there_is_to_share_are_refused_with_the_numbers(topology: Topology, words: str) -> None:
    with pytest.raises(TopologyRefused, match=words):
        Shard(llama_config(**SMOLLM2_HEADS), topology, 0)


def test_parts_of_experts_have_as_many_ranks_as_each_other() -> None:
    with pytest.raises(TopologyRefused, match="ep 2 does not divide tp 3"):
        Topology(tensor=3, expert=2)


@given(st.integers(1, 5), st.integers(1, 5))
def test_every_rank_has_a_place_and_every_place_a_rank(tensor: int, pipeline: int) -> None:
    topology = Topology(tensor=tensor, pipeline=pipeline)
    places = [topology.place(rank) for rank in range(topology.size)]
    assert places == [Place(stage, number) for stage in range(pipeline) for number in range(tensor)]
    assert [topology.rank(place) for place in places] == list(range(topology.size))
