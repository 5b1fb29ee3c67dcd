"""The compiled kernels against transformers and the torch decoder."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pawl.gpu.backend import ForwardInputs, GreedyBackend, RefusedInputs
from pawl.gpu.grammars.rows import unpacked
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.small import random_weights
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.driving import Piece, forward_inputs, int32, logits_in_pieces
from tests.gpu.native_models import EXPERTS, ODD, SWITCHED, WINDOWED, Native, alone, make
from tests.gpu.tiny import OF_THEIR_OWN, TINY_MODELS, VOCABULARY, reference_logits, save_tiny

LENGTHS = (150, 3, 67, 1)
CONFIGS = {"odd": ODD, "switched": SWITCHED, "windowed": WINDOWED, "experts": EXPERTS}


def sequences(vocabulary: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(0, vocabulary, length).tolist() for length in lengths]


@pytest.mark.parametrize("name", [name for name in TINY_MODELS if name not in OF_THEIR_OWN])
def test_every_architecture_scores_like_transformers(name: str, tmp_path: Path) -> None:
    source = resolve_source(str(save_tiny(name, tmp_path)))
    weights = load_weights(source, torch.float32)
    made = make(source.config, torch.float32, weights=weights, page_size=4)
    assert not weights, "the backend takes its weights over"
    tokens = sequences(VOCABULARY, (41, 3, 23, 1))
    found = logits_in_pieces(made.backend, made.table, tokens, seed=3)
    for sequence, logits in zip(tokens, found, strict=True):
        torch.testing.assert_close(logits, reference_logits(name, sequence), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_that_fit_no_tile_score_like_torch(name: str, page_size: int) -> None:
    config = CONFIGS[name]
    native = make(config, torch.float32, page_size=page_size, threads=2)
    plain = make(config, torch.float32, page_size=page_size, kind=TorchDecoder)
    tokens = sequences(config.vocab_size)
    found = logits_in_pieces(native.backend, native.table, tokens, seed=1)
    expected = logits_in_pieces(plain.backend, plain.table, tokens, seed=2)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_values_are_stored_as_torch_stores_them(name: str) -> None:
    config = CONFIGS[name]
    tokens = sequences(config.vocab_size)[0]
    native, plain = make(config, torch.float32), make(config, torch.float32, kind=TorchDecoder)
    for made in (native, plain):
        alone(made.backend, made.table, 2, tokens)
    torch.testing.assert_close(native.kv.data, plain.kv.data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_no_further_from_float32_than_torch_is(name: str) -> None:
    """Of the same rounded weights. The kernels keep the residual stream in float32, so they lose less than torch."""
    config = CONFIGS[name]
    tokens = sequences(config.vocab_size)[0]

    def logits(dtype: torch.dtype, kind: Any) -> torch.Tensor:
        rounded = random_weights(config, torch.bfloat16)
        weights = {name: weight if "norm" in name else weight.to(dtype) for name, weight in rounded.items()}
        made = make(config, dtype, kind=kind, weights=weights)
        return alone(made.backend, made.table, 0, tokens)

    exact = logits(torch.float32, TorchDecoder)
    ours, theirs = ((logits(torch.bfloat16, kind) - exact).abs() for kind in (Native, TorchDecoder))
    assert ours.mean() < theirs.mean()
    assert ours.max() < 2 * theirs.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_argmax_of_the_logits(dtype: torch.dtype) -> None:
    made = make(ODD, dtype, threads=2)
    assert isinstance(made.backend, GreedyBackend)
    inputs = forward_inputs([Piece(1, 0, sequences(101)[0])], made.table)
    greedy = made.backend.forward_greedy(inputs)
    assert greedy.dtype == torch.int32
    assert torch.equal(greedy.long(), made.backend.forward(inputs).argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_argmax_among_what_masks_allow(dtype: torch.dtype) -> None:
    made = make(ODD, dtype, threads=2)
    inputs = forward_inputs([Piece(1, 0, sequences(101)[0])], made.table)
    count, words = len(inputs.logit_rows), -(-ODD.vocab_size // 32)
    bits = np.random.default_rng(1).integers(-(2**31), 2**31, (count, words), np.int64).astype(np.int32)
    bits[0, 1:] = 0
    masked = made.backend.forward(inputs).masked_fill(torch.from_numpy(~unpacked(bits, ODD.vocab_size)), -torch.inf)
    greedy = made.backend.forward_greedy(replace(inputs, masks=bits))
    assert torch.equal(greedy.long(), masked.argmax(-1))
    with pytest.raises(RefusedInputs, match="masks of shape"):
        made.backend.forward_greedy(replace(inputs, masks=bits[:, 1:].copy()))


def test_of_equal_logits_greedy_takes_the_lowest_token() -> None:
    weights = random_weights(ODD, torch.float32)
    best = weights["lm_head.weight"][3] * 0
    weights["lm_head.weight"][:] = best
    made = make(ODD, torch.float32, threads=2, weights=weights)
    inputs = forward_inputs([Piece(0, 0, [1, 2, 3])], made.table)
    assert made.backend.forward_greedy(inputs).tolist() == [0, 0, 0]


def test_only_wanted_rows_are_scored() -> None:
    made = make(ODD, torch.float32)
    tokens = sequences(101)[0][:20]
    every = alone(made.backend, made.table, 0, tokens)
    some = made.backend.forward(forward_inputs([Piece(0, 0, tokens)], made.table, int32(4, 11, 19)))
    assert torch.equal(some, every[[4, 11, 19]])


def test_a_step_without_wanted_rows_still_stores_keys_and_values() -> None:
    made, other = make(ODD, torch.float32), make(ODD, torch.float32)
    tokens = sequences(101)[0]
    none = made.backend.forward(forward_inputs([Piece(0, 0, tokens)], made.table, int32()))
    assert none.shape == (0, 101)
    alone(other.backend, other.table, 0, tokens)
    assert torch.equal(made.kv.data, other.kv.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_poison_in_pages_of_others_does_not_leak(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    clean, made = make(config, dtype, page_size=4), make(config, dtype, page_size=4)
    tokens = sequences(config.vocab_size)
    expected = logits_in_pieces(clean.backend, clean.table, tokens, seed=11)
    made.kv.data.fill_(float("nan"))
    # Entries beyond a slot's length mean nothing, so they may be wild.
    for slot, length in enumerate(LENGTHS):
        made.table[slot, -(-length // 4) :] = 1 << 30
    found = logits_in_pieces(made.backend, made.table, tokens, seed=11)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_pages_behind_every_window_are_not_read() -> None:
    made = make(WINDOWED, torch.float32, page_size=4)
    tokens = sequences(101)[0]
    expected = alone(made.backend, made.table, 0, tokens)[-1]
    gone = (len(tokens) - 70) // 4
    made.kv.data[:, :, made.table[0, :gone]] = float("nan")
    last = forward_inputs([Piece(0, len(tokens) - 1, tokens[-1:])], made.table)
    assert torch.equal(made.backend.forward(last)[0], expected), "they may be somebody else's now"
    made.table[0, :gone] = -1
    assert torch.equal(made.backend.forward(last)[0], expected), "their entries mean nothing"


def changed(inputs: ForwardInputs, **fields: Any) -> ForwardInputs:
    return ForwardInputs(**{name: getattr(inputs, name) for name in ForwardInputs.__slots__} | fields)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "token": ({"tokens": torch.tensor([1, 101, 2], dtype=torch.int32)}, "outside the vocabulary"),
    "negative token": ({"tokens": torch.tensor([1, -1, 2], dtype=torch.int32)}, "outside the vocabulary"),
    "token dtype": ({"tokens": torch.tensor([1, 2, 3])}, "int32"),
    "token count": ({"tokens": torch.tensor([1, 2], dtype=torch.int32)}, "2 tokens for 3 positions"),
    "slot": ({"slots": int32(4)}, "no such slot"),
    "page": ({"page_table": np.full((4, 3), 99, np.int32)}, "page that does not exist"),
    "start": ({"starts": int32(500), "positions": int32(500, 501, 502)}, "beyond the slot's pages"),
    "positions": ({"positions": int32(0, 1, 3)}, "not consecutive"),
    "position dtype": ({"positions": np.arange(3)}, "int64 where int32"),
    "lengths": ({"lengths": int32(2)}, "its rows are not its length"),
    "offsets": ({"offsets": int32(0, 4)}, "do not cover the batch"),
    "number of offsets": ({"offsets": int32(0)}, "one entry more"),
    "logit rows": ({"logit_rows": int32(3)}, "logit rows"),
    "falling logit rows": ({"logit_rows": int32(1, 0)}, "logit rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_batch_that_would_leave_its_memory_is_refused(name: str) -> None:
    fields, reason = WRONG[name]
    made = make(ODD, torch.float32)
    inputs = forward_inputs([Piece(0, 0, [1, 2, 3])], made.table)
    with pytest.raises(RefusedInputs, match=reason):
        made.backend.forward(changed(inputs, **fields))
    assert not made.kv.data.any(), "nothing was written"


def test_weights_of_the_wrong_size_are_refused() -> None:
    weights = random_weights(ODD, torch.float32)
    weights["model.layers.1.mlp.down_proj.weight"] = torch.zeros(51, 76)
    with pytest.raises(ValueError, match="down_proj"):
        make(ODD, torch.float32, weights=weights)


def test_closing_ends_the_threads() -> None:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("this system does not list its threads")
    made = make(ODD, torch.float32, threads=4)
    before = len(list(tasks.iterdir()))
    made.backend.close()
    assert len(list(tasks.iterdir())) == before - 3
    with pytest.raises(RefusedInputs, match="closed"):
        alone(made.backend, made.table, 0, [1])


AT_THE_END = """
import atexit

def at_the_end():
    there = made.backend.close.alive
    print("computes" if there and (alone(made.backend, made.table, 0, [1, 2]) == before).all() else "is gone")

atexit.register(at_the_end)  # before the first finalizer, so that it is called behind all of them
import torch
from tests.gpu.native_models import ODD, alone, make

made = make(ODD, torch.float32)
before = alone(made.backend, made.table, 0, [1, 2])
"""


def test_a_thread_may_compute_until_the_process_has_ended() -> None:
    """As one does that loads a model when the server is stopped: it crashed, as the weights were gone under it."""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], cwd=root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "computes\n"), ended.stderr[-1000:]
