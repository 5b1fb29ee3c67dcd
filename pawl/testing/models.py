"""What computes in a simulated run: the ghost, or a real model in its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from errno import EIO
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
import numpy as np

from pawl.actors.messages.hand_over import HandedPages
from pawl.actors.names import NAMES, Names
from pawl.actors.storage import Storage
from pawl.actors.tiers.files import HEADER, FileStore
from pawl.gpu.ghost.recompute import ghost_again
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.step_runner import CountsExperts
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.recompute import Compute, Computed, Content, Recorded
from pawl.lifecycle.records import ENCODER
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import StepBatch, StepResult
from pawl.lifecycle.weight_source import WeightSource
from pawl.loops.saving import WritePolicy
from pawl.loops.select import LoopConfig
from pawl.memory.tiers.host import HostPool
from pawl.testing.expectations import OF_THE_GHOST, DrawnBy, Expectations, Said, drawn_alone, simulated_grammars
from pawl.testing.experts import SimulatedExperts
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
    shape: Shape, config: LoopConfig, runner: Any, strikes: Strikes, names: Names = NAMES
) -> SimulatedStorage | None:
    """Host memory and files for as many pages as the server has below the device, if it has any."""
    if config.tiers is None:
        return None
    eager = WritePolicy(config.tiers.write_policy) is not WritePolicy.WRITE_BACK
    files = None
    if shape.storage_pages:
        limit = shape.storage_pages * (HEADER.size + runner.page_bytes)
        files = FileStore(Path(), runner.layout, runner.page_bytes, limit, MemoryDisk(strikes))
    return SimulatedStorage(
        TiersAsStated(HostPool(shape.host_pages, runner.page_bytes), files, eager=eager), names, strikes
    )


class SimulatedStorage(Storage):
    """Pages of another replica come damaged where the schedule says so."""

    store: TiersAsStated

    def __init__(self, store: TiersAsStated, names: Names, strikes: Strikes) -> None:
        super().__init__(store, names)
        self._strikes = strikes

    def receive(self, message: Any) -> None:
        if isinstance(message, HandedPages) and message.data is not None and self._strikes("page"):
            message = msgspec.structs.replace(message, data=tuple(~block for block in message.data))
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


class StepLost(RuntimeError):
    """A step fails because the schedule says so."""


class World(Protocol):
    """Where a simulated device is."""

    now_s: float

    def strikes(self, place: str) -> bool: ...

    def advance(self, until: float) -> None: ...


class Stages:
    """When steps are through the stages of a device. Each stage computes one step at a time, in order; the first one of
    a step whose inputs were not drawn yet waits for them."""

    def __init__(self, shape: Shape) -> None:
        self._at_once = not shape.steps_take_time
        self._times = shape.times
        self._token_s = shape.token_s
        self._hitches = cycle(shape.hitches or (0.0,))
        self._free_at = [0.0] * len(self._times)
        self._drawn_at = np.zeros(shape.max_running)
        """When the last token of each slot is known."""

    def through(self, batch: StepBatch, now: float) -> float:
        """When a step that is launched `now` has left the last stage."""
        if self._at_once:
            return now
        at = max(now, float(self._drawn_at[batch.slots[batch.chained]].max(initial=0.0)))
        more_s = next(self._hitches) + self._token_s * int(batch.lengths.sum())
        for stage, seconds in enumerate(self._times):
            at = self._free_at[stage] = max(at, self._free_at[stage]) + seconds + more_s / len(self._times)
        self._drawn_at[batch.slots[batch.samples]] = at
        return at

    def reset(self) -> None:
        """Nothing is under way."""
        self._free_at = [0.0] * len(self._times)
        self._drawn_at[:] = 0.0


class SimulatedDevice:
    """A runner as it is on a device: steps fail where the schedule says so, when they are launched or, on a device
    that works asynchronously, when their result is waited for, as moves of its memory do; and they take time, in each
    of its stages."""

    def __init__(self, runner: Any, world: World, shape: Shape) -> None:
        self.depth = shape.stages if shape.stages > 1 else int(shape.asynchronous)
        self._runner = runner
        self._world = world
        self._alone = not shape.routed
        self._stages = Stages(shape)
        self._ends: deque[float] = deque()
        """When the steps in flight are through, oldest first."""
        self._own_experts = SimulatedExperts()
        self.experts: CountsExperts = runner.experts or self._own_experts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def stage(self, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        if self._world.strikes("staging"):
            raise StepLost("staging")
        fingerprint: str = self._runner.stage(ticket, source, last=last)
        return fingerprint

    def load_adapter(self, slot: int, source: str) -> str:
        if self._world.strikes("adapter"):
            raise StepLost("adapter")
        fingerprint: str = self._runner.load_adapter(slot, source)
        return fingerprint

    def swap(self, ticket: int) -> None:
        if self._world.strikes("swap"):
            raise StepLost("swap")
        self._runner.swap(ticket)

    def release(self, tags: Collection[MemoryTag]) -> None:
        self._move_memory("release")
        self._runner.release(tags)

    def resume(self, tags: Collection[MemoryTag]) -> None:
        self._move_memory("resume")
        self._runner.resume(tags)

    def _move_memory(self, what: str) -> None:
        # Of several replicas one that fails would be told nothing more, and differ from then on.
        if self._alone and self._world.strikes(what):
            raise StepLost(what)

    def reset(self) -> None:
        self._ends.clear()
        self._stages.reset()
        self._runner.reset()

    def launch(self, batch: StepBatch) -> Any:
        if self._world.strikes("step"):
            raise StepLost(f"step {batch.step}")
        launched = self._runner.launch(batch)
        self._own_experts.computed(batch)
        self._ends.append(self._stages.through(batch, self._world.now_s))
        return launched

    def collect(self, launched: Any) -> StepResult:
        ends = self._ends.popleft()
        if ends > self._world.now_s:
            self._world.advance(ends)
        result: StepResult = self._runner.collect(launched)
        if self.depth and self._world.strikes("result"):
            raise StepLost(f"the result of step {result.step}")
        return result
