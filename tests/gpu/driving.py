"""Feeding a backend by hand: pages handed out in a scrambled order, sequences cut into segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pawl.gpu.adapters.low_rank import PackedAdapter
from pawl.gpu.backend import Backend, ForwardInputs
from pawl.gpu.kv import KvStore, widest_window
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.ragged import ragged_positions
from pawl.gpu.weights.blocks import Weight, stored_of
from pawl.gpu.weights.questions import dtype_of as dtype_name
from pawl.lifecycle.step import Int32s
from pawl.memory.partners import NO_PAGE

NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
NO_ADAPTERS: Mapping[int, PackedAdapter] = {}
DEVICES = ("cpu", pytest.param("cuda", marks=NEEDS_CUDA))


def int32(*values: int) -> Int32s:
    """An int32 array of these values."""
    return np.asarray(values, np.int32)


def same_bits(one: Weight, other: Weight) -> bool:
    """Whether two weights, tensors or arrays, have the same type, shape and bits."""
    alike = dtype_name(one) == dtype_name(other) and tuple(one.shape) == tuple(other.shape)
    return alike and stored_of(one).tobytes() == stored_of(other).tobytes()


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
    pieces: Sequence[Piece],
    page_table: Int32s,
    logit_rows: Int32s | None = None,
    device: str = "cpu",
    window_table: Int32s | None = None,
    adapters: Mapping[int, PackedAdapter] = NO_ADAPTERS,
) -> ForwardInputs:
    """The flat batch of `pieces`; all rows' logits are wanted unless `logit_rows` says otherwise. `adapters` are those
    of slots."""
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
        window_table=window_table,
        adapters=[adapters.get(piece.slot) for piece in pieces] if any(p.slot in adapters for p in pieces) else None,
    )


class WindowPages:
    """The second store's pages, handed out as a scheduler does: taken when a piece reaches them, given back as soon as
    no later query sees them, and then somebody else's. Free pages hold NaN."""

    def __init__(self, kv: KvStore, config: ModelConfig, num_slots: int, pages_per_slot: int) -> None:
        assert kv.window_data is not None
        self.store = kv.window_data
        self.store.fill_(float("nan"))
        self.page_size = kv.page_size
        self.window = widest_window(config) or 0
        self.table = np.full((num_slots, pages_per_slot), NO_PAGE, np.int32)
        self.free = np.random.default_rng(9).permutation(self.store.shape[2]).tolist()
        self.starts = [0] * num_slots
        self.num_returned = 0

    def cover(self, pieces: Sequence[Piece]) -> None:
        """Give back the pages behind the windows of these pieces, and take those for their tokens."""
        for piece in pieces:
            start = max(piece.start + 1 - self.window, 0) // self.page_size
            for index in range(self.starts[piece.slot], start):
                self._give_back(piece.slot, index)
            self.starts[piece.slot] = start
            for index in range(start, (piece.start + len(piece.tokens) - 1) // self.page_size + 1):
                if self.table[piece.slot, index] == NO_PAGE:
                    self.table[piece.slot, index] = self.free.pop(0)

    def _give_back(self, slot: int, index: int) -> None:
        page = self.table[slot, index]
        self.store[:, :, page] = float("nan")
        self.free.insert(0, page)
        self.num_returned += 1
        # Nobody need tell the worker: every other entry goes on naming what is somebody else's now.
        if index % 2:
            self.table[slot, index] = NO_PAGE


def logits_in_pieces(
    backend: Backend,
    page_table: Int32s,
    sequences: Sequence[Sequence[int]],
    seed: int,
    device: str = "cpu",
    windows: WindowPages | None = None,
    adapters: Mapping[int, PackedAdapter] = NO_ADAPTERS,
) -> list[torch.Tensor]:
    """Logits of every position of every sequence, computed in random segments (some of one token), batched together.

    Sequence i lives in slot i. With `windows`, the windowed layers' pages come from there. Returns float32
    [length of i, vocab] for each.
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
        if windows is not None:
            windows.cover(pieces)
        inputs = forward_inputs(
            pieces,
            page_table,
            device=device,
            window_table=None if windows is None else windows.table,
            adapters=adapters,
        )
        with torch.inference_mode():
            logits = backend.forward(inputs)
        for index, piece in enumerate(pieces):
            parts[piece.slot].append(logits[inputs.offsets[index] : inputs.offsets[index + 1]].clone())
    return [torch.cat(part) for part in parts]
