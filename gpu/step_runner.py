"""What a worker drives: the one interface of everything that turns step batches into tokens.

Three kinds satisfy it: `pawl.gpu.runner.Runner`, the ghost, and what tests put in their place. Needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import Int32s, StepBatch, StepResult
from pawl.lifecycle.weight_group import TensorSpec
from pawl.lifecycle.weight_source import WeightSource

Launched = TypeVar("Launched")


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a model can be asked for."""

    generates: bool = True
    """Tokens."""
    vector_size: int = 0
    """Numbers of a prompt's vector; 0: it makes none."""
    unit_vectors: bool = False
    """Vectors have length 1."""


class RankState(msgspec.Struct, frozen=True, kw_only=True):
    """What one of the processes that share a model out has, and has done since the start of its group."""

    rank: int
    stage: int
    tensor: int
    """Its number among the ranks of its stage."""
    pid: int
    host: str = ""
    """Where that is; empty: where its replica's process is."""
    device: str
    max_tokens: int
    """That its pages hold."""
    kv_bytes: int
    shard: str
    """Fingerprint of its part of the weights, as it was read at the start."""
    restarts: int
    """How often its group was started again."""
    steps: int = 0
    """That it has applied."""
    step_s: float = 0.0
    """Seconds that it was in these."""
    waiting_s: float = 0.0
    """Of these: waiting for other ranks."""
    resident_bytes: int = 0
    """Memory of its process that is in use."""
    device_bytes: int = 0
    """Memory of its device that it has taken; 0 on a CPU."""


class WeightsRefused(Exception):
    """New weights cannot be served; nothing has changed. Its words are for whoever sent them."""


PARTS_LOST = "ranks were lost, and with them the parts of these weights that had come: send all of them again"


class AdapterRefused(ValueError):
    """An adapter cannot be served; its slot is empty. Its words are for whoever sent it."""


class MemoryRefused(Exception):
    """Memory cannot be released or resumed; everything is as it was. Its words are for whoever asked."""


REFUSALS: tuple[type[Exception], ...] = (WeightsRefused, AdapterRefused, MemoryRefused)
"""What was asked for cannot be, and nothing is amiss."""


class RunnerLost(Exception):
    """What computes is gone, in the middle of a step or before it: every step in flight is lost, and what pages hold.
    `StepRunner.reset` makes it anew, or raises this again when it gives up."""

    def __init__(self, reason: str, *, blameless: bool) -> None:
        super().__init__(reason)
        self.blameless = blameless
        """Whether what the steps were asked to compute has no part in it."""


class CountsExperts(Protocol):
    """Counts which experts tokens use, (token, expert) pairs of each step that is launched. What steps give is the same
    meanwhile where a row's bits do not depend on its batch."""

    @property
    def chosen(self) -> int:
        """Experts of one token in one layer."""

    @property
    def layers(self) -> Sequence[bool]:
        """Of each layer whether it has experts."""

    def start(self) -> None:
        """Count from the next step on, and from nothing."""

    def stop(self) -> None:
        """Count no more, and keep what was counted."""

    def take(self) -> NDArray[np.int64]:
        """What was counted, [layers, experts]; that is forgotten."""


class PlacesExperts(Protocol):
    """Moves experts between the ranks that share them out, by what tokens have used. What steps give is the same."""

    def due(self) -> bool:
        """Whether it is time to; true once each time."""

    def stage(self) -> PlannedMove | None:
        """Lay out what ranks get by a better map, beside what computes; None where there is none that helps. Another
        thread may call it while steps are launched and collected. Raises WeightsRefused."""

    def switch(self, ticket: int) -> None:
        """Compute by it; no step is in flight. Raises WeightsRefused, with nothing changed, where something else was
        staged or exchanged since."""


class PlannedMove(msgspec.Struct, frozen=True):
    """Experts that are to move."""

    ticket: int
    moved: int
    """Experts that come to a rank."""
    layers: int
    """In so many layers."""
    before: float
    """Tokens of the busiest rank of a layer, by those that each would have if they were shared out evenly: the mean of
    all layers, 1 at best."""
    after: float


class StepRunner(Protocol[Launched]):
    """Runs steps in the order they are launched, and copies pages out and in between them."""

    depth: int
    """Steps that may be on their way when one more is launched, before the oldest is collected: 0 where `launch`
    computes the step, 1 on a device that works asynchronously, as many as there are stages in a pipeline."""

    @property
    def experts(self) -> CountsExperts | None:
        """Where its model has experts."""

    @property
    def ranks(self) -> tuple[RankState, ...]:
        """As of the answer that came last; none where the model is not shared out."""

    @property
    def lost(self) -> bool:
        """What computes is gone, as far as is known, and is made anew by `reset`."""

    @property
    def placing(self) -> PlacesExperts | None:
        """Where its experts are shared out among ranks, and may move."""

    @property
    def abilities(self) -> Abilities:
        """What requests may want of its model."""

    @property
    def layout(self) -> str:
        """How a page's bytes are to be read, and whose they are: a copy may be written wherever this is equal."""

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""

    def launch(self, batch: StepBatch) -> Launched:
        """Start a step. Raises `InvalidBatch` before anything has changed."""

    def collect(self, launched: Launched) -> StepResult:
        """Wait for the oldest step in flight."""

    def reset(self) -> None:
        """Forget every slot and every step in flight. Adapters stay."""

    def stage(self, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        """Read the weights of `source`, verify that they are this model's, and lay them out under `ticket` beside those
        that compute. Returns their fingerprint. Another thread may call it while steps are launched and collected.
        Raises WeightsRefused, and then nothing is staged; RunnerLost, where it may be called again after `reset`.

        Tensors (every source but `FromDisk`) replace the weights of their names, and all others are those that compute
        now. They may come in parts, each by a call under the same ticket, `last` with the last of them:

            runner.stage(7, FromTensors({"model.norm.weight": one}), last=False)      # verified and kept; returns ""
            runner.stage(7, FromTensors({"model.embed_tokens.weight": other}))        # laid out; returns a fingerprint
            runner.swap(7)

        Of two parts that name the same weight the later counts. A call under another ticket drops what was kept or
        staged before."""

    def expect(self, specs: Sequence[TensorSpec]) -> None:
        """Check that tensors of these names, types and shapes can be staged, before they are there. Any thread may call
        it. Raises WeightsRefused."""

    def swap(self, ticket: int) -> None:
        """Compute with what is staged under `ticket`; no step is in flight. Pages keep their bytes, which mean nothing
        any more. Raises WeightsRefused, with nothing changed, where nothing is staged under it."""

    def load_adapter(self, slot: int, source: str) -> str:
        """Read the adapter in the folder `source`, verify that this model can compute with it (rank, targets, shapes),
        and lay it out in adapter slot `slot`, from 1 on; what was there is dropped. Returns its fingerprint, a digest
        of its content. Another thread may call it while steps are launched and collected, none of which uses the slot.
        It outlives `swap` and `reset`. Raises AdapterRefused; RunnerLost, where it may be called again after that."""

    def unload_adapter(self, slot: int) -> None:
        """Drop what is in adapter slot `slot`, if anything. Called as `load_adapter` is."""

    def named_weights(self) -> Mapping[str, Any]:
        """The weights that compute, host tensors or arrays, under the names and with the values of a checkpoint; none
        where a runner shows none. They stay those of one version when they are exchanged. Any thread may read them."""

    @property
    def released(self) -> Collection[MemoryTag]:
        """What of its memory is released; a step that is launched then fails."""

    def release(self, tags: Collection[MemoryTag]) -> None:
        """Give the memory of these back to the system before returning; no step is in flight. What was released stays
        so. Raises MemoryRefused, or what the system raises: then `released` says what is."""

    def resume(self, tags: Collection[MemoryTag]) -> None:
        """Have it again: weights with the same bytes; pages mean nothing. What is resident stays so. Raises as
        `release`."""

    def read_pages(self, pages: Int32s) -> NDArray[np.uint8]:
        """Copies of `pages`, uint8 [n, page_bytes], as all launched steps leave them."""

    def write_pages(self, pages: Int32s, blocks: NDArray[np.uint8]) -> None:
        """Put the bytes that `read_pages` gave into `pages`, before any step that is launched later."""


class NotShared:
    """What a runner derives from whose model is not shared out among ranks."""

    ranks: tuple[RankState, ...] = ()
    lost = False
    placing: PlacesExperts | None = None


class NoAdapters:
    """What a runner derives from that does not compute with adapters."""

    def load_adapter(self, slot: int, source: str) -> str:
        """See `StepRunner.load_adapter`."""
        raise AdapterRefused("this model does not compute with adapters")

    def unload_adapter(self, slot: int) -> None:
        """See `StepRunner.unload_adapter`."""
