"""Paged attention in Triton kernels, and the one place where the batch's arrays go to the device.

Rows of one token go through the decode kernel, longer segments through the prefill kernel. The two add in different
orders: where a row's bits must not depend on how its request was cut, `one_kernel` sends all through the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.attention.entries import tables_of, written_entries
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.cuda.tables import DeviceTables
from pawl.gpu.devices import upload
from pawl.gpu.kernels.decode import attend_decode, splits_for
from pawl.gpu.kernels.prefill import attend_segments
from pawl.gpu.kernels.rotary import turn_and_store
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig, Rope
from pawl.gpu.models.packing import LayerWeights
from pawl.lifecycle.step import Bools, Int32s


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of one token each, all arrays int32 on the device."""

    slots: Tensor
    """[s]; negative for padding."""
    positions: Tensor
    """[s]; negative for padding."""
    num_splits: int
    """Bounds the kernel's grid."""
    rows: Tensor | None = None
    """int64 [s], their rows of the batch; None: the whole batch in order."""


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """Segments for the prefill kernel, int32 on the device."""

    slots: Tensor
    """[s]; negative for padding, and for rows that go another way."""
    starts: Tensor
    """[s]"""
    offsets: Tensor
    """[s + 1], rows offsets[i] .. offsets[i + 1] - 1 are segment i."""


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """Reads and writes of one batch."""

    positions: Tensor
    """int32 [t]"""
    written: tuple[Tensor, ...]
    """For each store: the entries that keys and values go to, int32 [t]; negative for padding."""
    decode: DecodeRows | None
    segments: SegmentRows | None


class TritonAttention:
    """Attention over the pages of a KvStore; queries, keys and values come as the rows of one product."""

    def __init__(self, config: ModelConfig, kv: KvStore, *, one_kernel: bool) -> None:
        self.config = config
        self.kv = kv
        self.device = kv.data.device
        self.one_kernel = one_kernel
        self.tables = DeviceTables(self.device)
        ropes = {config.rope_of(layer) for layer in range(config.num_layers)}
        self._frequencies: dict[Rope, Tensor] = {
            rope: upload(rope.inverse_frequencies(config.head_dim), self.device) for rope in ropes
        }

    @property
    def num_stores(self) -> int:
        return 1 if self.kv.window_data is None else 2

    def written(self, inputs: ForwardInputs) -> list[Int32s]:
        """For each store: where the batch's keys and values go, int32 [t] on the host. Raises RefusedInputs."""
        tables = tables_of(self.config, self.kv, inputs)
        return [written_entries(inputs, table, self.kv.page_size) for table, _ in tables]

    def prepare(self, inputs: ForwardInputs) -> TritonPlan:
        """Bring the batch's arrays to the device; the tables have followed it. Raises RefusedInputs."""
        written = self.written(inputs)
        by_row = upload(np.stack([inputs.positions, *written]), self.device)
        single = np.zeros(len(inputs.slots), np.bool_) if self.one_kernel else inputs.lengths == 1
        return TritonPlan(
            positions=by_row[0],
            written=tuple(by_row[1:]),
            decode=self._decode_rows(inputs, single) if single.any() else None,
            segments=self._segment_rows(inputs, single) if not single.all() else None,
        )

    def _decode_rows(self, inputs: ForwardInputs, single: Bools) -> DecodeRows:
        starts = inputs.starts[single]
        arrays = upload(np.stack([inputs.slots[single], starts]), self.device)
        rows = None if single.all() else upload(inputs.offsets[:-1][single].astype(np.int64), self.device)
        return DecodeRows(arrays[0], arrays[1], splits_for(int(starts.max()) + 1), rows)

    def _segment_rows(self, inputs: ForwardInputs, single: Bools) -> SegmentRows:
        columns = (np.where(single, np.int32(-1), inputs.slots), inputs.starts, inputs.offsets)
        flat = upload(np.concatenate(columns), self.device)
        return SegmentRows(*torch.split(flat, [len(column) for column in columns]))

    def attend(self, plan: TritonPlan, layer: int, weights: LayerWeights, qkv: Tensor) -> Tensor:
        """Turn the queries in `qkv` [t, (heads + 2 * kv_heads) * head_dim] in place, store its keys and values, and
        attend: [t, heads * head_dim]. Rows of padding give anything."""
        config, windowed = self.config, self.kv.windowed(layer)
        keys, values = self.kv.keys(layer), self.kv.values(layer)
        turn_and_store(
            config,
            qkv,
            plan.positions,
            plan.written[-1 if windowed else 0],
            self._frequencies[config.rope_of(layer)],
            keys,
            values,
            query_norm=weights.query_norm,
            key_norm=weights.key_norm,
        )
        query = qkv.view(len(qkv), -1, config.head_dim)[:, : config.num_heads]
        table = self.tables.of(windowed)
        attended: Tensor | None = None
        if plan.segments is not None:
            attended = self._attend_segments(plan.segments, layer, query, keys, values, table)
        if plan.decode is None:
            assert attended is not None, "a batch without rows"
            return attended
        if plan.decode.rows is None or attended is None:
            return self._attend_decode(plan.decode, layer, query, keys, values, table)
        own = self._attend_decode(plan.decode, layer, query[plan.decode.rows], keys, values, table)
        return attended.index_copy_(0, plan.decode.rows, own)

    def _attend_decode(
        self, rows: DecodeRows, layer: int, query: Tensor, keys: Tensor, values: Tensor, table: Tensor
    ) -> Tensor:
        return attend_decode(
            query, keys, values, table, rows.slots, rows.positions,
            scale=self.config.query_scale, window=self.config.windows[layer], soft_cap=None,
            num_splits=rows.num_splits,
        )  # fmt: skip

    def _attend_segments(
        self, rows: SegmentRows, layer: int, query: Tensor, keys: Tensor, values: Tensor, table: Tensor
    ) -> Tensor:
        return attend_segments(
            query, keys, values, table, rows.slots, rows.starts, rows.offsets,
            scale=self.config.query_scale, window=self.config.windows[layer], soft_cap=None,
        )  # fmt: skip
