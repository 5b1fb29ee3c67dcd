"""Feeding a backend by hand: pages handed out in a scrambled order, sequences cut into segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from gpu.backend import Backend, ForwardInputs
from gpu.runner import ragged_positions
from lifecycle.step import Int32s

NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
DEVICES = ("cpu", pytest.param("cuda", marks=NEEDS_CUDA))


def int32(*values: int) -> Int32s:
    """An int32 array of these values."""
    return np.asarray(values, np.int32)


def scrambled_table(num_slots: int, pages_per_slot: int, seed: int = 0) -> Int32s:
    """A page table in which every slot owns `pages_per_slot` pages, in no order."""
    order = np.random.default_rng(seed).permutation(num_slots * pages_per_slot)
    return order.reshape(num_slots, pages_per_slot).astype(np.int32)


@dataclass(frozen=True)
class Piece:
    """A segment of the next forward: `tokens` of `slot` from position `start`."""

    slot: int
    start: int
    tokens: Sequence[int]


def forward_inputs(
    pieces: Sequence[Piece], page_table: Int32s, logit_rows: Int32s | None = None, device: str = "cpu"
) -> ForwardInputs:
    """The flat batch of `pieces`; all rows' logits are wanted unless `logit_rows` says otherwise."""
    lengths = int32(*(len(piece.tokens) for piece in pieces))
    starts = int32(*(piece.start for piece in pieces))
    offsets = np.concatenate((int32(0), np.cumsum(lengths, dtype=np.int32)))
    tokens = torch.tensor([token for piece in pieces for token in piece.tokens], dtype=torch.int32, device=device)
    return ForwardInputs(
        tokens=tokens,
        positions=ragged_positions(starts, lengths, offsets),
        slots=int32(*(piece.slot for piece in pieces)),
        starts=starts,
        lengths=lengths,
        offsets=offsets,
        page_table=page_table,
        logit_rows=np.arange(offsets[-1], dtype=np.int32) if logit_rows is None else logit_rows,
    )


def logits_in_pieces(
    backend: Backend, page_table: Int32s, sequences: Sequence[Sequence[int]], seed: int, device: str = "cpu"
) -> list[torch.Tensor]:
    """Logits of every position of every sequence, computed in random segments (some of one token), batched together.

    Sequence i lives in slot i. Returns float32 [length of i, vocab] for each.
    """
    random = np.random.default_rng(seed)
    done = [0] * len(sequences)
    parts: list[list[torch.Tensor]] = [[] for _ in sequences]
    while any(count < len(sequence) for count, sequence in zip(done, sequences, strict=True)):
        pieces = []
        for slot in random.permutation(len(sequences)):
            left = len(sequences[slot]) - done[slot]
            length = min(left, int(random.choice([0, 1, 1, 2, 5, 9])))
            if length:
                start = done[slot]
                pieces.append(Piece(int(slot), start, sequences[slot][start : start + length]))
                done[slot] += length
        if not pieces:
            continue
        inputs = forward_inputs(pieces, page_table, device=device)
        with torch.inference_mode():
            logits = backend.forward(inputs)
        for index, piece in enumerate(pieces):
            parts[piece.slot].append(logits[inputs.offsets[index] : inputs.offsets[index + 1]].clone())
    return [torch.cat(part) for part in parts]
