"""Measures what a model takes of a CUDA device besides its weights: the largest step there can be, and its graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from pawl.gpu.cuda.memory import MemoryUse, graph_bytes
from pawl.gpu.runner import Runner
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch


class DeviceMemory(Protocol):
    """What can be asked of a device."""

    def settle(self) -> int:
        """Bytes that are free once all work is done and whatever is not in use has been given back."""

    def total(self) -> int:
        """Bytes there are."""

    def peak(self, work: Callable[[], None]) -> int:
        """Bytes that `work` took beyond what was taken before, at its peak."""


class CudaMemory:
    """`DeviceMemory` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def settle(self) -> int:
        """See `DeviceMemory.settle`."""
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def total(self) -> int:
        """See `DeviceMemory.total`."""
        return int(torch.cuda.mem_get_info(self.device)[1])

    def peak(self, work: Callable[[], None]) -> int:
        """See `DeviceMemory.peak`."""
        self.settle()
        before = torch.cuda.memory_reserved(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        # What the allocator took, not what it handed out: fragments are taken as well.
        return int(torch.cuda.max_memory_reserved(self.device)) - before


def largest_step(runner: Runner, chunk: int) -> StepBatch:
    """A step of every size at its largest: `chunk` prompt tokens, every other slot decoding, the last one at the end of
    the longest context, and all of them drawing in the way that takes most memory.

    All tokens share page 0, so that a store of one page will do; what it says means nothing.
    """
    slots, lengths, left = [], [], chunk
    for slot in range(runner.num_slots):
        # One slot may be too short for a chunk; where all are, the chunk is as large as they are together.
        length = max(1, min(left, runner.max_context))
        slots.append(slot)
        lengths.append(length)
        left -= length
    starts = np.zeros(len(slots), np.int32)
    starts[-1] = runner.max_context - lengths[-1]
    ends = starts + np.array(lengths, np.int32)
    pages = -(-ends // runner.kv.page_size)
    page_slots = np.repeat(np.array(slots, np.int32), pages)
    page_indices = np.concatenate([np.arange(count, dtype=np.int32) for count in pages])
    nobody = np.zeros(len(page_slots), np.int32)
    sampling = SamplingParameters(temperature=1.0, top_p=0.9, seed=1, top_logprobs=1)
    no_history = np.zeros(0, np.int32)
    return StepBatch(
        step=0,
        slots=np.array(slots, np.int32),
        starts=starts,
        lengths=np.array(lengths, np.int32),
        tokens=np.zeros(sum(lengths), np.int32),
        chained=np.zeros(len(slots), np.bool_),
        samples=np.ones(len(slots), np.bool_),
        page_slots=page_slots,
        page_indices=page_indices,
        pages=nobody,
        window_pages=None if runner.window_table is None else nobody,
        admitted=tuple(SlotAssignment(slot, sampling, 0, no_history, 0) for slot in slots),
    )


def measure(runner: Runner, memory: DeviceMemory, chunk: int) -> MemoryUse:
    """What a runner takes whose steps have at most `chunk` prompt tokens. Its store may have a single page; afterwards
    it has forgotten everything, and has no graphs."""
    batch = largest_step(runner, chunk)

    def step() -> None:
        runner.collect(runner.launch(batch))
        runner.reset()

    # Once for nothing: libraries and kernels take memory when they are first used, and keep it.
    step()
    peak = memory.peak(step)
    graphs = _measure_graphs(runner, memory)
    return MemoryUse(total=memory.total(), free=memory.settle(), step=peak, graphs=graphs)


def _measure_graphs(runner: Runner, memory: DeviceMemory) -> int:
    """Bytes of all graphs, from recording the two largest."""
    before = memory.settle()
    shapes = runner.prepare_graphs()
    taken = []
    for _ in range(min(2, len(shapes))):
        runner.record_graph(shapes.pop(0))
        after = memory.settle()
        taken.append(before - after)
        before = after
    runner.free_graphs()
    first, second = (*taken, 0, 0)[:2]
    return graph_bytes(first, second, len(taken) + len(shapes))
