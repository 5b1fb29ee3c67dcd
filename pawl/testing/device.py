"""The device of a simulated engine: what computes, which takes time, and fails where the schedule says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from itertools import cycle
from typing import Any, Protocol

import msgspec
import numpy as np

from pawl.actors.simulation.faults import FaultKind
from pawl.gpu.step_runner import CountsExperts
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import StepBatch, StepResult
from pawl.lifecycle.weight_source import WeightSource
from pawl.testing.experts import SimulatedExperts
from pawl.testing.shape import Shape

NO_NUMBERS = "no numbers"
"""Where scores are none, so that the token drawn from them means nothing."""


class StepLost(RuntimeError):
    """A step fails because the schedule says so."""


class World(Protocol):
    """Where a simulated device is."""

    now_s: float

    def strikes(self, place: str, kind: FaultKind = FaultKind.STRIKE) -> bool: ...

    def pick(self, name: str, labels: Sequence[str]) -> int: ...

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
        if len(result.tokens) and self._world.strikes(NO_NUMBERS, FaultKind.GARBLE):
            at = self._world.pick("the token", [str(number) for number in range(len(result.tokens))])
            return msgspec.structs.replace(result, unusable=np.arange(len(result.tokens)) == at)
        return result
