"""What a runner keeps in memory, weights, pages and recorded steps: how each is exchanged, released and had again.

weights    wait in a file of the process's own; a backend stands in their place that refuses every batch
pages      the store keeps its addresses, with no memory behind them
graphs     hold addresses of both: they go with either, and are recorded again when all is resident
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NoReturn, cast

from pawl.gpu.adapters.low_rank import Adapter
from pawl.gpu.backend import Backend, ForwardInputs, GreedyBackend, RefusedInputs
from pawl.gpu.devices import Device, give_back_device_memory
from pawl.gpu.folders import cache_folder
from pawl.gpu.heap import give_back_memory
from pawl.gpu.kv import KvStore
from pawl.gpu.step_runner import AdapterRefused, MemoryRefused, NotShared
from pawl.gpu.updates import Updates, Version
from pawl.gpu.weights.blocks import Weight
from pawl.gpu.weights.kept import KeptWeights, KeptWeightsDamaged
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import Int32s

if TYPE_CHECKING:
    from pawl.gpu.cuda.graphs import DecodeGraphs, GraphBackend, Recorder
    from pawl.gpu.cuda.shapes import GraphShape

_WORDS = {MemoryTag.WEIGHTS: "weights", MemoryTag.KV_CACHE: "pages", MemoryTag.CUDA_GRAPH: "recorded steps"}


class Parked:
    """A `Backend` whose weights are released."""

    def __init__(self, name: str, device: Device, kept: Mapping[str, Weight]) -> None:
        self.name, self.device = name, device
        self._kept = kept

    def forward(self, inputs: ForwardInputs) -> NoReturn:
        """Raises RefusedInputs."""
        raise RefusedInputs("the weights are released")

    def hidden(self, inputs: ForwardInputs) -> NoReturn:
        """Raises RefusedInputs."""
        self.forward(inputs)

    def named_weights(self) -> Mapping[str, Weight]:
        """See `Backend.named_weights`: from the file."""
        return self._kept

    def pack_adapter(self, adapter: Adapter) -> NoReturn:
        """Raises AdapterRefused."""
        raise AdapterRefused("the weights that it goes with are released")


class Occupancy(NotShared):
    """The part of a runner that holds memory."""

    kv: KvStore
    backend: Backend
    device: Device
    """That of the backend."""
    page_table: Int32s
    max_context: int
    released: frozenset[MemoryTag] = frozenset()
    """See `StepRunner.released`."""
    _greedy_backend: GreedyBackend | None
    updates: Updates
    _graphs: DecodeGraphs | None
    _recorded = False
    """Steps were recorded, and are to be recorded again."""

    def prepare_graphs(self, recorder: Recorder | None = None) -> list[GraphShape]:
        """Get ready to record the decode steps of this device, and return their sizes, largest first; none where steps
        cannot be recorded. `recorder` None: that of the device, where it has one."""
        if self.device is None:
            return []
        from pawl.gpu.cuda.graphs import graphs_for

        self._graphs = graphs_for(self.backend, self.device, self.page_table.shape, self.max_context, recorder)
        return [] if self._graphs is None else list(self._graphs.shapes)

    def record_graph(self, shape: GraphShape) -> None:
        """Record one of what `prepare_graphs` returned: decode steps of that size are replayed from now on."""
        if self._graphs is None:
            raise ValueError("graphs are prepared before they are recorded")
        self._graphs.record(shape)

    def free_graphs(self) -> None:
        """Forget all graphs; steps are computed without them, and pages may move again."""
        if self._graphs is not None:
            cast("GraphBackend", self.backend).free_graphs()
        self._graphs = None

    def swap(self, ticket: int) -> None:
        """See `StepRunner.swap`."""
        taken, before, old = self.updates.take(ticket), self.released, self.updates.serving
        self._forget_graphs()
        try:
            self._serve(taken)
            self.released -= {MemoryTag.WEIGHTS}
            self._record()
        except BaseException:
            self._forget_graphs()
            self._serve(old)
            self.released = before
            raise
        del old
        give_back_memory()

    def release(self, tags: Collection[MemoryTag]) -> None:
        """See `StepRunner.release`."""
        going, serving = set(tags) - self.released, self.updates.serving
        if MemoryTag.WEIGHTS in going:
            try:
                kept = KeptWeights(self.backend.named_weights(), cache_folder())
            except OSError as error:
                raise MemoryRefused(f"weights cannot wait in {cache_folder()}: {error.strerror}") from error
            serving = Version(Parked(self.backend.name, self.backend.device, kept), serving.fingerprint)
        self._forget_graphs()
        self._serve(serving)
        # Of what fails from here on, `released` says how far it came.
        self.released |= going - {MemoryTag.KV_CACHE}
        if MemoryTag.KV_CACHE in going:
            self.kv.release()
        self.released |= going
        give_back_device_memory(self.backend.device)

    def resume(self, tags: Collection[MemoryTag]) -> None:
        """See `StepRunner.resume`."""
        before, serving = self.released, self.updates.serving
        coming = before.intersection(tags)
        try:
            if MemoryTag.WEIGHTS in coming:
                self._serve(self.updates.again(serving))
            if MemoryTag.KV_CACHE in coming:
                self.kv.resume()
            self.released -= coming
            self._record()
        except BaseException as error:
            self._forget_graphs()
            self._serve(serving)
            if MemoryTag.KV_CACHE in before:
                self.kv.release()
            self.released = before
            give_back_device_memory(self.backend.device)
            if isinstance(error, KeptWeightsDamaged):
                raise MemoryRefused(str(error)) from error
            raise

    def _require(self, *needed: MemoryTag) -> None:
        """Raises RefusedInputs while any of these is released."""
        for tag in needed:
            if tag in self.released:
                raise RefusedInputs(f"the {_WORDS[tag]} are released")

    def _keep(self, updates: Updates) -> None:
        """Where weights come from, from the start."""
        self.updates = updates
        self.stage, self.expect = updates.stage, updates.expect
        self._serve(updates.serving)

    def _serve(self, version: Version) -> None:
        backend = version.backend
        self.backend = backend
        self._greedy_backend = backend if isinstance(backend, GreedyBackend) else None
        self.updates.serves(version)

    def _forget_graphs(self) -> None:
        self._recorded |= self._graphs is not None
        self.free_graphs()

    def _record(self) -> None:
        if self._recorded and not self.released:
            for shape in self.prepare_graphs():
                self.record_graph(shape)
            self._recorded = False
