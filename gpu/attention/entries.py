"""Where a batch's tokens lie in the stores: host arithmetic that every attention shares."""

from __future__ import annotations

import numpy as np

from pawl.gpu.backend import ForwardInputs, RefusedInputs
from pawl.gpu.kv import KvStore, widest_window
from pawl.gpu.models.config import ModelConfig
from pawl.lifecycle.step import Int32s
from pawl.memory.page_pool import consecutive


def tables_of(config: ModelConfig, kv: KvStore, inputs: ForwardInputs) -> list[tuple[Int32s, list[int | None]]]:
    """Each store's table, with the distinct windows of the layers whose pages it names. Raises RefusedInputs."""
    distinct = list(dict.fromkeys(config.windows))
    if (inputs.window_table is None) != (kv.num_window_pages is None):
        raise RefusedInputs("a window table and a window store go together")
    if inputs.window_table is None:
        return [(inputs.page_table, distinct)]
    _check_window_pages(config, kv, inputs, inputs.window_table)
    return [(inputs.page_table, [None]), (inputs.window_table, [w for w in distinct if w is not None])]


def written_entries(inputs: ForwardInputs, table: Int32s, page_size: int) -> Int32s:
    """The entry of the flattened store that each token's key and value go to, int32 [t]."""
    row_slots = np.repeat(inputs.slots, inputs.lengths)
    return table[row_slots, inputs.positions // page_size] * np.int32(page_size) + inputs.positions % page_size


def _check_window_pages(config: ModelConfig, kv: KvStore, inputs: ForwardInputs, table: Int32s) -> None:
    """Every window page that is read or written exists: an entry may say that there is none, and as an index that
    would be somebody's."""
    widest = widest_window(config) or 0
    first = np.maximum(inputs.starts + 1 - widest, 0) // kv.page_size
    count = (inputs.starts + inputs.lengths - 1) // kv.page_size + 1 - first
    pages = table[np.repeat(inputs.slots, count), consecutive(first, count)]
    if ((pages < 0) | (pages >= (kv.num_window_pages or 0))).any():
        raise RefusedInputs("a window page that does not exist")
