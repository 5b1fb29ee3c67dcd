"""Decode steps recorded once and replayed: which graph takes a step, what its inputs are, and who records it.

A graph reads its inputs from a block of its own, always at the same address:

    row 0     tokens
    row 1     positions      -1 in rows of padding
    row 2     slots          -1
    row 3...  entries that keys and values go to, one row for each store      -1

A row of padding reads and writes nothing of anybody: it has no slot and no entry. Its token is the one that was there
last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.cuda.shapes import GraphShape, GraphShapes
from pawl.gpu.devices import new_stream, upload_into
from pawl.lifecycle.step import Int32s

Replay: TypeAlias = Callable[[], None]
PADDING = -1


class Recorder(Protocol):
    """Makes graphs."""

    def record(self, run: Callable[[], None]) -> Replay:
        """What does again, on the same tensors, what `run` does now. `run` may be called any number of times."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: only one of them is ever running."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = new_stream(device)
        self._pool: Any = None

    def record(self, run: Callable[[], None]) -> Replay:
        """See `Recorder.record`."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # Kernels are compiled, and libraries take their memory, when they run for the first time: neither may
            # happen while a graph is recorded.
            run()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # What the stager does on the device meanwhile, in its own thread, is no fault of the recording.
        options: Any = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **options):
            run()
        self._pool = graph.pool()
        replay: Replay = graph.replay
        return replay


@runtime_checkable
class GraphBackend(Protocol):
    """A backend whose decode steps can be graphs."""

    def allocate_graphs(
        self, recorder: Recorder, *, max_rows: int, num_slots: int, pages_per_slot: int, max_context: int
    ) -> DecodeGraphs:
        """Get ready to record; graphs are used once they are there. Tables and store must not move from now on."""

    def free_graphs(self) -> None:
        """Forget all graphs; tables and store may move again."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One graph."""

    block: Tensor
    """Its inputs, int32 [3 + stores, rows]."""
    replay: Replay


class DecodeGraphs:
    """The graphs of a decoder. What they compute, they leave where `compute` does."""

    def __init__(
        self,
        shapes: GraphShapes,
        recorder: Recorder,
        compute: Callable[[Tensor, GraphShape], None],
        *,
        num_stores: int,
        device: torch.device,
    ) -> None:
        """`compute(block, shape)` computes a step from a block of inputs."""
        self.shapes = shapes
        self._recorder = recorder
        self._compute = compute
        self._num_stores = num_stores
        self._device = device
        self._graphs: dict[GraphShape, Recorded] = {}

    def __len__(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    @torch.inference_mode()
    def record(self, shape: GraphShape) -> None:
        """Record one graph, of rows of padding only, so that no page is touched."""
        block = torch.full((3 + self._num_stores, shape.rows), PADDING, dtype=torch.int32, device=self._device)
        block[0] = 0
        replay = self._recorder.record(lambda: self._compute(block, shape))
        self._graphs[shape] = Recorded(block, replay)

    @torch.inference_mode()
    def run(self, tokens: Tensor, positions: Int32s, slots: Int32s, written: list[Int32s]) -> bool:
        """Compute a step of one token each, and return whether there was a graph for it.

        tokens int32 [n] on the device; positions, slots, and for each store written, int32 [n] on the host.
        """
        num_rows = len(positions)
        shape = self.shapes.find(num_rows, int(positions.max(initial=0)) + 1)
        graph = None if shape is None else self._graphs.get(shape)
        if graph is None:
            return False
        rows = np.full((graph.block.shape[0] - 1, graph.block.shape[1]), PADDING, np.int32)
        rows[0, :num_rows] = positions
        rows[1, :num_rows] = slots
        rows[2:, :num_rows] = written
        upload_into(rows, graph.block[1:])
        graph.block[0, :num_rows].copy_(tokens)
        graph.replay()
        return True


def graphs_for(
    backend: object, device: torch.device, table: tuple[int, ...], max_context: int, recorder: Recorder | None
) -> DecodeGraphs | None:
    """Graphs that are to be recorded, for page tables of shape `table`, [num_slots, pages_per_slot]; None where the
    backend or the device has none. `recorder` None: that of the device."""
    if recorder is None and device.type == "cuda":
        recorder = CudaRecorder(device)
    if recorder is None or not isinstance(backend, GraphBackend):
        return None
    num_slots, pages_per_slot = table
    sizes = {
        "max_rows": num_slots,
        "num_slots": num_slots,
        "pages_per_slot": pages_per_slot,
        "max_context": max_context,
    }
    return backend.allocate_graphs(recorder, **sizes)
