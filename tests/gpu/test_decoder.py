"""The torch decoder against transformers, through pages, in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pawl.gpu.kv import KvStore
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.registry import torch_decoder
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.driving import DEVICES, Piece, forward_inputs, int32, logits_in_pieces, scrambled_table
from tests.gpu.tiny import TINY_MODELS, VOCABULARY, reference_logits, save_tiny

LENGTHS = (41, 3, 23, 1)


def made(name: str, folder: Path, page_size: int, device: str = "cpu") -> tuple[TorchDecoder, KvStore]:
    """The decoder of a tiny model with room for every sequence of `LENGTHS`."""
    source = resolve_source(str(save_tiny(name, folder)))
    pages = len(LENGTHS) * -(-max(LENGTHS) // page_size)
    kv = KvStore(source.config, num_pages=pages, page_size=page_size, dtype=torch.float32, device=device)
    weights = load_weights(source, torch.float32)
    decoder = torch_decoder(source.config)(source.config, weights, kv, threads=1)
    assert not weights, "the decoder takes its weights over"
    return decoder, kv


def sequences() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(0, VOCABULARY, length).tolist() for length in LENGTHS]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_chunks_and_decode_steps_score_like_one_pass_of_transformers(name: str, device: str, tmp_path: Path) -> None:
    decoder, kv = made(name, tmp_path, page_size=4, device=device)
    table = scrambled_table(len(LENGTHS), kv.num_pages // len(LENGTHS))
    found = logits_in_pieces(decoder, table, sequences(), seed=3, device=device)
    for tokens, logits in zip(sequences(), found, strict=True):
        torch.testing.assert_close(logits.cpu(), reference_logits(name, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("page_size", [1, 3, 64])
def test_any_page_size_gives_the_same_logits(page_size: int, tmp_path: Path) -> None:
    decoder, kv = made("gemma3", tmp_path, page_size)
    table = scrambled_table(len(LENGTHS), kv.num_pages // len(LENGTHS))
    for tokens, logits in zip(sequences(), logits_in_pieces(decoder, table, sequences(), seed=5), strict=True):
        torch.testing.assert_close(logits, reference_logits("gemma3", tokens), rtol=1e-4, atol=1e-4)


def test_only_wanted_rows_are_scored(tmp_path: Path) -> None:
    decoder, _ = made("qwen3", tmp_path, page_size=4)
    tokens = sequences()[0][:11]
    table = scrambled_table(len(LENGTHS), 11)
    logits = decoder.forward(forward_inputs([Piece(0, 0, tokens)], table, logit_rows=int32(4, 10)))
    torch.testing.assert_close(logits, reference_logits("qwen3", tokens)[[4, 10]], rtol=1e-4, atol=1e-4)
    assert decoder.forward(forward_inputs([Piece(0, 0, tokens)], table, logit_rows=int32())).shape == (0, VOCABULARY)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_poison_in_pages_of_others_does_not_leak(name: str, tmp_path: Path) -> None:
    decoder, kv = made(name, tmp_path, page_size=4)
    kv.data.fill_(float("nan"))
    table = scrambled_table(len(LENGTHS), kv.num_pages // len(LENGTHS))
    # Entries beyond a slot's length mean nothing, so they may be wild.
    for slot, length in enumerate(LENGTHS):
        table[slot, -(-length // 4) :] = 1 << 30
    for tokens, logits in zip(sequences(), logits_in_pieces(decoder, table, sequences(), seed=11), strict=True):
        torch.testing.assert_close(logits, reference_logits(name, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_contexts_of_very_different_length_decode_together(name: str, tmp_path: Path) -> None:
    """Long enough that decode rows are split into groups by context."""
    source = resolve_source(str(save_tiny(name, tmp_path)))
    kv = KvStore(source.config, num_pages=120, page_size=4, dtype=torch.float32, device="cpu")
    decoder = TorchDecoder(source.config, load_weights(source, torch.float32), kv, threads=1)
    random = np.random.default_rng(1)
    long, short = (random.integers(0, VOCABULARY, length).tolist() for length in (400, 9))
    table = np.zeros((2, 101), np.int32)
    table[0, :101] = np.arange(101)
    table[1, :3] = [110, 105, 119]
    decoder.forward(forward_inputs([Piece(0, 0, long[:-1]), Piece(1, 0, short[:-1])], table))
    logits = decoder.forward(forward_inputs([Piece(1, 8, short[-1:]), Piece(0, 399, long[-1:])], table))
    expected = torch.stack([reference_logits(name, tokens)[-1] for tokens in (short, long)])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
