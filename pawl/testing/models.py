"""What computes in a simulated run: the ghost, or a real model in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from errno import EIO
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
import numpy as np

from pawl.actors.messages.hand_over import HandedPages
from pawl.actors.messages.transfer import Fetch
from pawl.actors.names import NAMES, Names
from pawl.actors.storage import Storage
from pawl.actors.tiers.files import HEADER, FileStore
from pawl.gpu.ghost.recompute import ghost_again
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.recompute import Compute, Computed, Content, Recorded
from pawl.lifecycle.records import ENCODER
from pawl.lifecycle.request import SamplingParameters
from pawl.loops.saving import WritePolicy
from pawl.loops.select import LoopConfig
from pawl.memory.tiers.host import HostPool
from pawl.testing.device import World
from pawl.testing.expectations import OF_THE_GHOST, DrawnBy, Expectations, Said, drawn_alone, simulated_grammars
from pawl.testing.reuse import WatchedGhost
from pawl.testing.shape import Shape
from pawl.testing.stores import TiersAsStated
from pawl.testing.workload import Arrival

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pawl.gpu.models.config import ModelConfig
    from pawl.gpu.runner import Runner
    from pawl.gpu.select import BackendChoice

Strikes: TypeAlias = Callable[[str], bool]
"""Whether a fault strikes at the place of this name."""
STALE = 1000.0
"""What pages hold before they are written: a finite number, as a masked place counts 0 times what is there."""


class Model(Protocol):
    """A model of the ghost's vocabulary."""

    name: str
    expectations: Expectations

    @property
    def compute(self) -> Compute | None:
        """Computes the words of recorded requests again; None: each is only compared with what is expected of it."""

    def runner(self, config: LoopConfig, number: int = 0) -> Any:
        """A runner for this server, on which nothing has run; the one given before under this number is not used any
        more."""


class GhostModel:
    """No model: a hash that sees every defect of memory."""

    name = "ghost"
    expectations = OF_THE_GHOST

    def compute(self, requests: Sequence[Recorded]) -> list[Computed | None]:
        """Each request once: under another schedule of its workload it comes again."""
        return [
            _again(each.tokens.tobytes(), each.num_prompt, ENCODER.encode(each.sampling), each.adapter)
            for each in requests
        ]

    def runner(self, config: LoopConfig, number: int = 0) -> Ghost:
        return WatchedGhost.for_shape(config, small=config.tiers is None, grammars=simulated_grammars())


@lru_cache(maxsize=4096)
def _again(tokens: bytes, num_prompt: int, sampling: bytes, adapter: Content | None) -> Computed | None:
    parameters = msgspec.msgpack.decode(sampling, type=SamplingParameters)
    (computed,) = ghost_again(
        [Recorded(np.frombuffer(tokens, np.int32), num_prompt, parameters, adapter)], grammars=simulated_grammars()
    )
    return computed


GHOST = GhostModel()


class RealModel:
    """Forward passes. Every request must get what it gets from a runner that it has for itself.

    Exact where a row's result does not depend on its batch (`docs/architecture.md`, "What may differ between runs");
    elsewhere two nearly equal logits may be taken for a defect.
    """

    compute: Compute | None = None

    def __init__(
        self,
        config: ModelConfig,
        weights: Callable[[], dict[str, Tensor]],
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        backend: BackendChoice = "auto",
        deterministic: bool = False,
        longest: int = 64,
    ) -> None:
        """`weights` makes a copy that a runner may keep; `longest`: tokens of a request at the most."""
        self.name = f"{config.architecture} on {device}"
        self.expectations = Expectations(self._alone)
        self._config = config
        self._weights = weights
        self._device, self._dtype, self._backend, self._deterministic = device, dtype, backend, deterministic
        self._longest = longest
        self._runners: dict[tuple[int, ...], Runner] = {}

    def runner(self, config: LoopConfig, number: int = 0) -> Runner:
        sizes = config.num_pages, config.page_size, config.max_running, config.max_context
        runner = self._emptied(*sizes, number=number)
        for slot in range(1, config.max_loras + 1):
            runner.unload_adapter(slot)
        return runner

    def _alone(self, arrival: Arrival, drawn_by: DrawnBy) -> Said:
        runner = self._emptied(1, self._longest, 1, self._longest)
        if arrival.adapter:
            runner.load_adapter(1, arrival.adapter)
        return drawn_alone(runner, arrival, self._longest)

    def _emptied(self, num_pages: int, page_size: int, num_slots: int, max_context: int, *, number: int = 0) -> Runner:
        """A runner of this size; one is made once, and then emptied."""
        import torch

        from pawl.gpu.adapters.small import named_adapter
        from pawl.gpu.pooling import Pooling
        from pawl.gpu.runner import Runner

        size = num_pages, page_size, num_slots, max_context, number
        if size not in self._runners:
            self._runners[size] = Runner(
                self._config,
                self._weights(),
                num_pages=num_pages,
                page_size=page_size,
                num_slots=num_slots,
                max_context=max_context,
                device=self._device,
                dtype=self._dtype or torch.float32,
                threads=1,
                backend=self._backend,
                deterministic=self._deterministic,
                grammars=simulated_grammars(),
                pooling=Pooling("mean", normalised=True),
                adapters=named_adapter,
            )
        runner = self._runners[size]
        # An earlier run may have ended while it slept.
        runner.resume(runner.released)
        runner.reset()
        # What an earlier run wrote could be right by chance.
        runner.kv.data.fill_(STALE)
        return runner


def storage_of(
    shape: Shape, config: LoopConfig, runner: Any, world: World, names: Names = NAMES
) -> SimulatedStorage | None:
    """Host memory and files for as many pages as the server has below the device, if it has any."""
    if config.tiers is None:
        return None
    eager = WritePolicy(config.tiers.write_policy) is not WritePolicy.WRITE_BACK
    files = None
    if shape.storage_pages:
        limit = shape.storage_pages * (HEADER.size + runner.page_bytes)
        files = FileStore(Path(), runner.layout, runner.page_bytes, limit, MemoryDisk(world.strikes))
    store = TiersAsStated(HostPool(shape.host_pages, runner.page_bytes), files, eager=eager)
    return SimulatedStorage(store, names, world, shape.fetch_s)


class SimulatedStorage(Storage):
    """Pages of another replica come damaged where the schedule says so, and those that are waited for take time."""

    store: TiersAsStated

    def __init__(self, store: TiersAsStated, names: Names, world: World, fetch_s: float) -> None:
        super().__init__(store, names)
        self._world = world
        self._fetch_s = fetch_s

    def receive(self, message: Any) -> None:
        if isinstance(message, HandedPages) and message.data is not None and self._world.strikes("page"):
            message = msgspec.structs.replace(message, data=tuple(~block for block in message.data))
        if isinstance(message, Fetch) and self._fetch_s:
            self._world.advance(self._world.now_s + self._fetch_s)
        super().receive(message)


class MemoryDisk:
    """Files in memory, on a disk that refuses where the schedule says so (a `Disk`)."""

    def __init__(self, strikes: Strikes) -> None:
        self._strikes = strikes
        self._files: dict[Path, bytes] = {}

    def _may_fail(self) -> None:
        if self._strikes("disk"):
            raise OSError(EIO, "the disk refuses")

    def names(self, folder: Path) -> list[str]:
        return [path.name for path in self._files if path.parent == folder]

    def read(self, path: Path, limit: int) -> bytes:
        self._may_fail()
        if path not in self._files:
            raise FileNotFoundError(path)
        return self._files[path][:limit]

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        self._may_fail()
        self._files[path] = b"".join(parts)

    def move(self, source: Path, target: Path) -> None:
        self._files[target] = self._files.pop(source)

    def remove(self, path: Path) -> None:
        self._files.pop(path, None)
