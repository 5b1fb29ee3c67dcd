"""Whole models of quantised weights: a row's bits are its own, and every weight comes back."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.dtypes import converted
from pawl.gpu.models.config import Experts, ModelConfig, weight_shapes
from pawl.gpu.models.small import llama_config, random_weights
from pawl.gpu.native import store
from pawl.gpu.native.backend import fills_panels
from pawl.gpu.native.bindings import load_library
from pawl.gpu.native.build import NativeUnavailable, Sums, sums_of
from pawl.gpu.weights.blocks import Blocks, Tensors, Weight, numbers_of
from tests.gpu.driving import Piece, forward_inputs, logits_in_pieces, same_bits
from tests.gpu.native_models import ODD, SWITCHED, alone, make
from tests.gpu.native_ranks import make_ranks
from tests.gpu.quantised import FORMATS, blocks_of

PLAIN = llama_config(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96, max_position=4096)
"""Heads fill panels, and rows are whole blocks of 32."""
WIDE = msgspec.structs.replace(PLAIN, hidden_size=256, intermediate_size=256, num_heads=16, num_kv_heads=4)
"""Rows are whole blocks of 256."""
EXPERTS = msgspec.structs.replace(
    WIDE, experts=Experts(count=9, chosen=2, size=256, normalised=True, layers=(True, False))
)
BIASED = msgspec.structs.replace(SWITCHED, intermediate_size=96)
"""Biases, norms of heads and after the products, windows, a tied head."""
CONFIGS = {"plain": PLAIN, "wide": WIDE, "experts": EXPERTS, "biased": BIASED, "odd": ODD}
LENGTHS = (70, 64, 33, 1, 2, 40, 9, 9)


def quantised_weights(config: ModelConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, Weight]:
    """Random weights; every matrix whose rows allow it in one format or another."""
    random = np.random.default_rng(seed)
    weights: dict[str, Weight] = dict(random_weights(config, dtype, seed))
    for name, shape in weight_shapes(config).items():
        fitting = [kind for kind in FORMATS if len(shape) == 2 and shape[1] % kind.inputs == 0]
        if fitting:
            weights[name] = blocks_of(fitting[random.integers(len(fitting))], *shape, random)
    return weights


def sequences(config: ModelConfig) -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, config.vocab_size, length).tolist() for length in LENGTHS]


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.bfloat16) for name in CONFIGS), ("plain", torch.float32)])
def test_random_chunks_and_batches_give_the_bits_of_one_pass_alone(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    tokens = sequences(config)
    single = make(config, dtype, num_slots=len(LENGTHS), weights=quantised_weights(config, dtype))
    expected = [alone(single.backend, single.table, slot, text) for slot, text in enumerate(tokens)]
    for seed, threads, page_size in ((1, 1, 16), (2, 3, 64)):
        weights = quantised_weights(config, dtype)
        made = make(config, dtype, threads=threads, num_slots=len(LENGTHS), page_size=page_size, weights=weights)
        found = logits_in_pieces(made.backend, made.table, tokens, seed)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_of_hundreds_of_rows_has_the_same_bits_however_threads_share_it_out(name: str) -> None:
    config, dtype = CONFIGS[name], torch.bfloat16
    random = np.random.default_rng(1)
    texts = [random.integers(0, config.vocab_size, length).tolist() for length in (150, 77, 18, 1, 1)]
    logits = []
    for threads in (1, 2, 3, 5):
        made = make(config, dtype, threads=threads, num_slots=len(texts), weights=quantised_weights(config, dtype))
        # In one step, and again in steps of fewer rows, whose blocks are others.
        for steps in ([texts], [texts[:1], texts[1:3], texts[3:]]):
            slots = iter(range(len(texts)))
            batches = [[Piece(next(slots), 0, text) for text in step] for step in steps]
            logits.append(np.concatenate([made.backend.forward(forward_inputs(step, made.table)) for step in batches]))
    assert all(np.array_equal(logits[0], others) for others in logits[1:])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_dequantised_weights_but_for_rounded_activations(name: str) -> None:
    config, dtype = CONFIGS[name], torch.float32
    stored = make(config, dtype, weights=quantised_weights(config, dtype))
    plain = make(config, dtype, weights=dict(Tensors(quantised_weights(config, dtype), dtype)))
    tokens = sequences(config)[0]
    found, wanted = (alone(made.backend, made.table, 0, tokens) for made in (stored, plain))
    # A token whose scores are close may get another expert.
    assert torch.linalg.norm(found - wanted) < 0.1 * torch.linalg.norm(wanted)


@pytest.mark.parametrize("sums", [None, pytest.param("blocks", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONFIGS)
def test_where_sums_are_in_blocks_logits_have_the_bits_of_the_weights_in_bfloat16(
    name: str, sums: Sums | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "load_library", lambda _: load_library(sums))
    config, dtype = CONFIGS[name], torch.bfloat16
    stored = make(config, dtype, weights=quantised_weights(config, dtype))
    if sums_of(stored.backend.target) != "blocks":
        pytest.skip("kernels of this processor sum in pairs, and multiply stored weights as bytes")
    plain = make(config, dtype, threads=2, weights=dict(Tensors(quantised_weights(config, dtype), dtype)))
    # One tile of rows, and several.
    for tokens in (sequences(config)[6], sequences(config)[0]):
        assert torch.equal(*(alone(made.backend, made.table, 0, tokens) for made in (stored, plain)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_comes_back_to_the_bit_and_computes_the_same_again(name: str) -> None:
    config, dtype = CONFIGS[name], torch.bfloat16
    made = make(config, dtype, weights=quantised_weights(config, dtype))
    named = made.backend.named_weights()
    for weight_name, wanted in quantised_weights(config, dtype).items():
        found = named[weight_name]
        if isinstance(wanted, Blocks) and fills_panels(config, weight_name):
            assert isinstance(found, Blocks)
            assert found.format == wanted.format
            assert np.array_equal(found.data, wanted.data)
        else:
            assert same_bits(found, converted(numbers_of(wanted), numbers_of(found).dtype))
    again = make(config, dtype, weights=dict(named))
    tokens = sequences(config)[0]
    assert torch.equal(alone(again.backend, again.table, 0, tokens), alone(made.backend, made.table, 0, tokens))


def test_matrices_that_share_a_product_and_no_panel_are_dequantised() -> None:
    assert not fills_panels(ODD, "model.layers.0.self_attn.k_proj.weight")
    assert fills_panels(PLAIN, "model.layers.0.self_attn.k_proj.weight")


@pytest.mark.parametrize("cut", [1, 18])
def test_blocks_of_another_size_are_refused(cut: int) -> None:
    weights = quantised_weights(PLAIN, torch.float32)
    head = weights["lm_head.weight"]
    assert isinstance(head, Blocks)
    weights["lm_head.weight"] = Blocks(head.data.reshape(-1)[:-cut].reshape(1, -1), head.format)
    with pytest.raises(ValueError, match="another number of bytes"):
        make(PLAIN, torch.float32, weights=weights)


@pytest.mark.parametrize("name", ["plain", "wide", "experts"])
def test_ranks_that_share_quantised_weights_out_have_the_bits_of_one(name: str) -> None:
    config = msgspec.structs.replace(CONFIGS[name], head_dim=32, query_scale=0.2)
    tokens = sequences(config)
    whole = make(config, torch.bfloat16, num_slots=len(LENGTHS), weights=quantised_weights(config, torch.bfloat16))
    expected = logits_in_pieces(whole.backend, whole.table, tokens, seed=1)
    weights = quantised_weights(config, torch.bfloat16)
    made = make_ranks(config, torch.bfloat16, 2, num_slots=len(LENGTHS), weights=weights)
    found = logits_in_pieces(made.backend, made.table, tokens, seed=2)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert {type(part) for part in made.backend.named_weights().values()} == {Blocks, np.ndarray}


def test_ranks_whose_heads_fill_no_panels_where_those_of_one_do_are_refused() -> None:
    with pytest.raises(NativeUnavailable, match="heads of 16"):
        make_ranks(PLAIN, torch.bfloat16, 2, weights=quantised_weights(PLAIN, torch.bfloat16))
