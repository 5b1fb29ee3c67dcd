"""However many ranks share a step out, its bits are those of one; and a rank that does not come ends it for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.adapters.small import random_adapter
from pawl.gpu.grammars.rows import unpacked
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.small import random_weights
from pawl.gpu.native.ranks import RanksLost
from pawl.gpu.parallel.shard import joined
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.driving import Piece, WindowPages, forward_inputs, int32, logits_in_pieces, same_bits
from tests.gpu.native_models import EXPERTS, HYBRID, ODD, SWITCHED, WINDOWED, make
from tests.gpu.native_ranks import Group, make_ranks, move_experts, scattered, shard_of
from tests.gpu.tiny import OF_THEIR_OWN, TINY_MODELS, VOCABULARY, save_tiny


def three_groups(config: ModelConfig) -> ModelConfig:
    """The same with six heads in three groups: two ranks have four and two."""
    return msgspec.structs.replace(config, num_heads=6, num_kv_heads=3, intermediate_size=205)


CONFIGS = {
    "odd": three_groups(ODD),
    "switched": three_groups(SWITCHED),
    "windowed": three_groups(WINDOWED),
    "experts": three_groups(EXPERTS),
}
DTYPES = (torch.float32, torch.bfloat16)
LENGTHS = (90, 64, 1, 2, 33, 9, 70, 7)


def sequences(vocabulary: int = ODD.vocab_size) -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, vocabulary, length).tolist() for length in LENGTHS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_random_chunks_and_batches_give_the_bits_of_one_rank(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    single = make(config, dtype, num_slots=len(LENGTHS))
    expected = logits_in_pieces(single.backend, single.table, sequences(), seed=1)
    for ranks, threads, seed in ((2, 1, 2), (3, 2, 3)):
        made = make_ranks(config, dtype, ranks, threads=threads, num_slots=len(LENGTHS))
        found = logits_in_pieces(made.backend, made.table, sequences(), seed)
        for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(ours, theirs), f"sequence {index}, {ranks} ranks"


@pytest.mark.parametrize("name", [name for name in TINY_MODELS if name not in OF_THEIR_OWN])
def test_every_architecture_has_the_bits_of_one_rank(name: str, tmp_path: Path) -> None:
    source = resolve_source(str(save_tiny(name, tmp_path)))
    if source.config.num_kv_heads < 2:
        pytest.skip("one key head is nothing to share")
    tokens = [tokens[:40] for tokens in sequences(VOCABULARY)[:4]]
    whole = make(source.config, torch.bfloat16, weights=load_weights(source, torch.bfloat16), page_size=4)
    made = make_ranks(source.config, torch.bfloat16, 2, weights=load_weights(source, torch.bfloat16), page_size=4)
    expected = logits_in_pieces(whole.backend, whole.table, tokens, seed=1)
    found = logits_in_pieces(made.backend, made.table, tokens, seed=2)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("ranks", [2, 3])
def test_each_rank_has_the_keys_and_values_of_its_own_heads_and_its_part_of_every_weight(ranks: int) -> None:
    config = CONFIGS["switched"]
    whole, made = make(config, torch.bfloat16), make_ranks(config, torch.bfloat16, ranks)
    inputs = forward_inputs([Piece(2, 0, sequences()[0])], made.table)
    whole.backend.forward(inputs), made.backend.forward(inputs)
    assert [store.data.shape[4] for store in made.stores] == ([2, 1] if ranks == 2 else [1, 1, 1])
    # Two ranks' heads side by side are one rank's.
    assert torch.equal(torch.cat([store.data for store in made.stores], 4), whole.kv.data)
    held = [backend.named_weights() for backend in made.backend.backends]
    for name, weight in random_weights(config, torch.bfloat16).items():
        parts = {rank: own[name] for rank, own in enumerate(held) if name in own}
        shards = [shard_of(backend) for backend in made.backend.backends]
        assert same_bits(joined(shards, name, parts), weight), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_greedy_is_the_lowest_of_the_largest_whoever_has_it_and_masks_are_heard(ranks: int) -> None:
    # All rows of the head are one: of equal logits the first that is allowed wins, in whatever part it stands.
    config = CONFIGS["odd"]
    weights = random_weights(config, torch.float32)
    weights["lm_head.weight"] = weights["lm_head.weight"][:1].expand(config.vocab_size, -1).contiguous()
    made = make_ranks(config, torch.float32, ranks, weights=weights)
    inputs = forward_inputs([Piece(0, 0, [3, 4, 5])], made.table)
    assert made.backend.forward_greedy(inputs).tolist() == [0, 0, 0]
    masks = np.zeros((3, -(-config.vocab_size // 32)), np.uint32)
    lowest = (1, config.vocab_size - 1, config.vocab_size // 2)
    for row, token in enumerate(lowest):
        for allowed in {token, config.vocab_size - 1}:
            masks[row, allowed // 32] |= np.uint32(1 << allowed % 32)
    greedy = made.backend.forward_greedy(replace(inputs, masks=masks.view(np.int32)))
    assert greedy.tolist() == list(lowest)
    assert unpacked(masks.view(np.int32), config.vocab_size).argmax(1).tolist() == list(lowest)


def test_greedy_tokens_and_hidden_states_are_those_of_one_rank() -> None:
    config = CONFIGS["switched"]
    whole = make(config, torch.bfloat16)
    expected = forward_inputs(
        [Piece(0, 0, sequences()[0]), Piece(1, 0, sequences()[1])], whole.table, int32(0, 89, 153)
    )
    for ranks in (2, 3):
        made = make_ranks(config, torch.bfloat16, ranks, threads=2)
        inputs = replace(expected, page_table=made.table)
        assert torch.equal(made.backend.forward_greedy(inputs), whole.backend.forward_greedy(expected))
        assert torch.equal(made.backend.hidden(inputs), whole.backend.hidden(expected))


def test_a_logit_that_is_not_finite_on_one_rank_is_no_token_on_any() -> None:
    config = CONFIGS["odd"]
    weights = random_weights(config, torch.float32)
    weights["lm_head.weight"][config.vocab_size - 1] = float("inf")
    made = make_ranks(config, torch.float32, 3, weights=weights)
    assert made.backend.forward_greedy(forward_inputs([Piece(0, 0, [3])], made.table)).tolist() == [-1]


def test_more_rows_than_two_blocks_of_the_head_have_the_bits_of_one_rank() -> None:
    config = CONFIGS["odd"]
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 450).tolist()
    whole = make(config, torch.float32, num_slots=2, context=450)
    made = make_ranks(config, torch.float32, 2, num_slots=2, context=450)
    pieces = [Piece(0, 0, tokens), Piece(1, 0, tokens[:250])]
    found = made.backend.forward(forward_inputs(pieces, made.table))
    assert torch.equal(found, whole.backend.forward(forward_inputs(pieces, whole.table)))


def test_a_step_without_logits_leaves_the_next_one_its_bits() -> None:
    config = CONFIGS["odd"]
    whole, made = make(config, torch.bfloat16), make_ranks(config, torch.bfloat16, 3)
    tokens = sequences()[0]
    for end in range(10, 90, 10):
        made.backend.forward(forward_inputs([Piece(1, end - 10, tokens[end - 10 : end])], made.table, int32()))
    found = made.backend.forward(forward_inputs([Piece(1, 80, tokens[80:])], made.table))
    expected = whole.backend.forward(forward_inputs([Piece(1, 0, tokens)], whole.table))
    assert torch.equal(found, expected[80:])


def test_windowed_layers_with_a_store_of_their_own_have_the_bits_of_one_rank() -> None:
    config = three_groups(HYBRID)
    slots, pages = len(LENGTHS), 10
    whole = make(config, torch.bfloat16, num_slots=slots)
    made = make_ranks(config, torch.bfloat16, 2, num_slots=slots, num_window_pages=60)
    windows = WindowPages(made.stores[0], config, slots, pages)
    found = logits_in_pieces(made.backend, made.table, sequences(), seed=2, windows=windows)
    expected = logits_in_pieces(whole.backend, whole.table, sequences(), seed=2)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("ranks", [2, 3])
def test_adapters_have_the_bits_of_one_rank(ranks: int) -> None:
    config = CONFIGS["switched"]
    whole, made = make(config, torch.bfloat16), make_ranks(config, torch.bfloat16, ranks)
    adapters = [random_adapter(config, rank=rank, seed=rank) for rank in (3, 8)]
    logits: list[Any] = []
    for each in (whole, made):
        packed = {slot: each.backend.pack_adapter(adapter) for slot, adapter in enumerate(adapters)}
        logits.append(logits_in_pieces(each.backend, each.table, sequences()[:4], seed=ranks, adapters=packed))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*logits, strict=True))


@pytest.mark.parametrize("name", ["all ranks share each", "each rank has some", "two parts of two", "by a placement"])
def test_experts_shared_out_whole_or_by_columns_have_the_bits_and_the_counts_of_one_rank(name: str) -> None:
    config = msgspec.structs.replace(CONFIGS["experts"], num_heads=8, num_kv_heads=4)
    assert config.experts is not None
    settings: dict[str, Any] = {
        "all ranks share each": {"ranks": 3},
        "each rank has some": {"ranks": 3, "expert": 3},
        "two parts of two": {"ranks": 4, "expert": 2},
        "by a placement": {"ranks": 2, "expert": 2, "placement": scattered(config, 2, seed=8)},
    }[name]
    whole, made = make(config, torch.bfloat16), make_ranks(config, torch.bfloat16, **settings)
    pieces = [Piece(0, 0, sequences()[0]), Piece(1, 0, sequences()[1])]
    logits, counts = list[torch.Tensor](), list[torch.Tensor]()
    for each in (whole, made):
        counts.append(torch.zeros((config.num_layers, 37), dtype=torch.int64))
        inputs = forward_inputs(pieces, each.table, int32(5, 89, 153))
        logits.append(each.backend.forward(replace(inputs, expert_counts=counts[-1])))
    assert torch.equal(*logits)
    assert torch.equal(*counts)


@pytest.mark.parametrize(("ranks", "expert"), [(2, 2), (4, 2)])
def test_experts_that_have_moved_have_the_bits_that_they_had(ranks: int, expert: int) -> None:
    config = msgspec.structs.replace(CONFIGS["experts"], num_heads=8, num_kv_heads=4)
    weights = random_weights(config, torch.bfloat16)
    made = make_ranks(config, torch.bfloat16, ranks, expert=expert, weights=weights)
    first = logits_in_pieces(made.backend, made.table, sequences()[:3], seed=1)
    for seed in range(3):
        move_experts(made, weights, scattered(config, expert, seed))
        again = logits_in_pieces(made.backend, made.table, sequences()[:3], seed=1)
        assert all(torch.equal(*each) for each in zip(again, first, strict=True))
        for backend in made.backend.backends:
            shown = backend.named_weights()
            assert set(shown) == set(shard_of(backend).cuts)
            parts = ((name, shard_of(backend).cut(name, weights[name])) for name in shown if ".experts." in name)
            assert all(part is not None and same_bits(shown[name], part) for name, part in parts)


def test_an_expert_that_was_not_laid_out_is_refused_and_nothing_has_changed() -> None:
    config = msgspec.structs.replace(CONFIGS["experts"], num_heads=8, num_kv_heads=4)
    made = make_ranks(config, torch.bfloat16, 2, expert=2)
    first = logits_in_pieces(made.backend, made.table, sequences()[:1], seed=1)
    rank = made.backend.backends[0]
    with pytest.raises(ValueError, match=r"expert \d+ of layer \d+ is not staged"):
        rank.switch_experts(replace(shard_of(rank), placement=scattered(config, 2, seed=4)))
    again = logits_in_pieces(made.backend, made.table, sequences()[:1], seed=1)
    assert torch.equal(again[0], first[0])


def test_ranks_with_their_experts_by_different_maps_compute_no_step() -> None:
    config = msgspec.structs.replace(CONFIGS["experts"], num_heads=8, num_kv_heads=4)
    weights = random_weights(config, torch.bfloat16)
    made = make_ranks(config, torch.bfloat16, 2, expert=2, weights=weights)
    one = replace(made, backend=Group(made.backend.backends[:1], config))
    move_experts(one, weights, scattered(config, 2, seed=4))
    with pytest.raises(RanksLost, match="were told different steps"):
        logits_in_pieces(made.backend, made.table, sequences()[:1], seed=1)
