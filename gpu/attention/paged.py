"""Paged attention in plain torch, on any device.

Rows of one token (decoding requests) are attended together: their keys are gathered once, padded to the longest of the
group, and scored by one batched product in which the query heads that share a key head are rows of one matrix. Longer
segments (prefill chunks) are attended one by one, each against its own gathered prefix.

    decode group   query [n, kv_heads, sharing, d]  x  keys [n, kv_heads, d, longest]
    segment        query [1, heads, length, d]      x  keys [1, kv_heads, context, d]

Padding repeats the row's own last token instead of reading a page of somebody else: a masked weight is an exact 0, but
0 * NaN is NaN, so even masked values must be the request's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from pawl.gpu.attention.entries import tables_of, written_entries
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.devices import upload
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.lifecycle.step import Int32s

# Contexts of one decode group differ by at most this factor, once they are long enough for padding to cost anything.
GROUP_RATIO = 2
GROUP_MINIMUM = 256


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one token each, attended in one product."""

    rows: Tensor | None
    """[n] int64 rows of the batch; None: the whole batch in order."""
    entries: Tensor
    """[n * longest] int64 entries of the flattened store."""
    hidden: Tensor | None
    """[n, 1, 1, longest] bool, True for padding; None: no row is padded."""


@dataclass(frozen=True, slots=True)
class SegmentView:
    """One longer segment and what it sees."""

    first: int
    last: int
    """Rows first .. last-1 of the batch."""
    entries: Tensor
    """[context] int64 entries of the flattened store."""
    visible: Tensor | None
    """[length, context] bool; None: plainly causal from position 0."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Writes and reads of the layers that share one window."""

    written: Tensor
    """[t] int64 entries of the flattened store."""
    groups: tuple[DecodeGroup, ...]
    segments: tuple[SegmentView, ...]


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """Reads and writes of one batch."""

    windows: dict[int | None, WindowPlan]
    """One for each distinct window of the model's layers."""


def group_by_context(contexts: Int32s) -> list[Int32s]:
    """Split rows into groups of similar context: indices into `contexts`, longest first."""
    order = np.argsort(-contexts, kind="stable").astype(np.int32)
    groups, first = [], 0
    for index in range(1, len(order)):
        longest = contexts[order[first]]
        if longest > GROUP_MINIMUM and contexts[order[index]] * GROUP_RATIO < longest:
            groups.append(order[first:index])
            first = index
    groups.append(order[first:])
    return groups


class PagedAttention:
    """`Attention` over a KvStore in plain torch."""

    def __init__(self, config: ModelConfig, kv: KvStore) -> None:
        self.config = config
        self.kv = kv
        self.device = kv.data.device

    def prepare(self, inputs: ForwardInputs) -> PagedPlan:
        """Entries to write for each token, and to read for each distinct window. Raises RefusedInputs."""
        plans: dict[int | None, WindowPlan] = {}
        for table, windows in tables_of(self.config, self.kv, inputs):
            written = upload(written_entries(inputs, table, self.kv.page_size), self.device).long()
            plans |= {window: self._window_plan(inputs, table, written, window) for window in windows}
        return PagedPlan(plans)

    def _window_plan(self, inputs: ForwardInputs, table: Int32s, written: Tensor, window: int | None) -> WindowPlan:
        decoding = np.flatnonzero(inputs.lengths == 1).astype(np.int32)
        groups: list[DecodeGroup] = []
        if len(decoding):
            for members in group_by_context(inputs.starts[decoding] + 1):
                groups.append(self._decode_group(inputs, table, decoding[members], window))
        longer = np.flatnonzero(inputs.lengths > 1)
        segments = [self._segment_view(inputs, table, int(index), window) for index in longer]
        return WindowPlan(written, tuple(groups), tuple(segments))

    def _entries(self, page_rows: Int32s, positions: Tensor) -> Tensor:
        """Entries of the flattened store at `positions` [n, k] of slots with page table rows `page_rows` [n, p]."""
        table = upload(page_rows, self.device).long()
        return table.gather(1, positions // self.kv.page_size) * self.kv.page_size + positions % self.kv.page_size

    def _decode_group(self, inputs: ForwardInputs, table: Int32s, segments: Int32s, window: int | None) -> DecodeGroup:
        contexts = inputs.starts[segments] + 1
        firsts = np.maximum(contexts - window, 0) if window else np.zeros_like(contexts)
        spans = contexts - firsts
        longest = int(spans.max())
        num_pages = -(-int(contexts.max()) // self.kv.page_size)
        steps = torch.arange(longest, device=self.device)
        device_spans = upload(spans, self.device).long()[:, None]
        positions = upload(firsts, self.device).long()[:, None] + torch.minimum(steps[None], device_spans - 1)
        entries = self._entries(table[inputs.slots[segments], :num_pages], positions)
        padded = bool((spans != longest).any())
        hidden = (steps[None] >= device_spans)[:, None, None, :] if padded else None
        rows = inputs.offsets[segments].astype(np.int64)
        whole = len(rows) == len(inputs.positions) and bool((rows == np.arange(len(rows))).all())
        return DecodeGroup(None if whole else upload(rows, self.device), entries.flatten(), hidden)

    def _segment_view(self, inputs: ForwardInputs, table: Int32s, segment: int, window: int | None) -> SegmentView:
        start, length = int(inputs.starts[segment]), int(inputs.lengths[segment])
        context = start + length
        first = max(start + 1 - window, 0) if window else 0
        num_pages = -(-context // self.kv.page_size)
        keys = torch.arange(first, context, device=self.device)
        pages = table[inputs.slots[segment], :num_pages][None]
        entries = self._entries(pages, keys[None])[0]
        offset = int(inputs.offsets[segment])
        visible = None
        if start > 0 or (window is not None and length > window):
            queries = torch.arange(start, context, device=self.device)[:, None]
            visible = keys[None] <= queries
            if window is not None:
                visible &= keys[None] > queries - window
        return SegmentView(offset, offset + length, entries, visible)

    def attend(self, plan: PagedPlan, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attention.attend`."""
        keys, values = self.kv.keys(layer).flatten(0, 1), self.kv.values(layer).flatten(0, 1)
        own = plan.windows[self.config.windows[layer]]
        keys.index_copy_(0, own.written, key)
        values.index_copy_(0, own.written, value)
        output = torch.empty_like(query)
        for group in own.groups:
            if group.rows is None:
                return self._attend_group(group, query, keys, values).flatten(1)
            output[group.rows] = self._attend_group(group, query[group.rows], keys, values)
        for segment in own.segments:
            rows = slice(segment.first, segment.last)
            output[rows] = self._attend_segment(segment, query[rows], keys, values)
        return output.flatten(1)

    def _attend_group(self, group: DecodeGroup, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[n, heads, head_dim] from query of that shape."""
        config = self.config
        shape = (len(query), -1, config.num_kv_heads, config.head_dim)
        gathered_keys = keys.index_select(0, group.entries).view(shape).permute(0, 2, 3, 1)
        gathered_values = values.index_select(0, group.entries).view(shape).permute(0, 2, 1, 3)
        shared = query.view(len(query), config.num_kv_heads, -1, config.head_dim)
        scores = (shared @ gathered_keys).float() * config.query_scale
        if group.hidden is not None:
            scores.masked_fill_(group.hidden, float("-inf"))
        weights = scores.softmax(-1).to(query.dtype)
        return (weights @ gathered_values).view(query.shape)

    def _attend_segment(self, segment: SegmentView, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[length, heads, head_dim] from query of that shape."""
        gathered_keys = keys.index_select(0, segment.entries).transpose(0, 1)[None]
        gathered_values = values.index_select(0, segment.entries).transpose(0, 1)[None]
        output = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            gathered_keys,
            gathered_values,
            attn_mask=segment.visible,
            is_causal=segment.visible is None,
            scale=self.config.query_scale,
            enable_gqa=self.config.num_heads != self.config.num_kv_heads,
        )
        return output[0].transpose(0, 1)
