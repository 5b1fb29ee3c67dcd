"""Profiles in a simulated run: a tracer that records nothing, sees how it is used, and may fail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from errno import ENOSPC
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.profiler import ProfileOptions, Profiler
from pawl.lifecycle.machines.profiling import Profiling
from pawl.lifecycle.step import StepBatch


class SimulatedTracer:
    """A `Tracer` whose disk is full where the schedule says so."""

    def __init__(self, strikes: Callable[[str], bool]) -> None:
        self.running = self.keeping = False
        self.misuse: list[str] = []
        self._strikes = strikes

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.misuse.append(what)

    def check(self, options: ProfileOptions) -> None:
        self._expect(not self.running, "started while it runs")

    def prepare(self, options: ProfileOptions) -> None:
        self._expect(not self.running, "prepared while it runs")
        if self._strikes("profile"):
            raise OSError(ENOSPC, "no profiler")
        self.running = True

    def begin(self) -> None:
        self._expect(self.running and not self.keeping, "begun though it does not run, or twice")
        self.keeping = True

    def span(self, name: str) -> AbstractContextManager[object]:
        self._expect(self.keeping, f"{name} is shown where nothing is kept")
        return nullcontext()

    def end(self, path: Path) -> None:
        self._expect(self.keeping, f"{path} is written, and nothing was kept")
        self.running = self.keeping = False
        if self._strikes("profile"):
            raise OSError(ENOSPC, "the disk is full")

    def abandon(self) -> None:
        self._expect(self.running and not self.keeping, "abandoned though it does not run")
        self.running = False

    def save(self, path: Path, data: bytes) -> None:
        if self._strikes("profile"):
            raise OSError(ENOSPC, "the disk is full")


class OneExpert:
    """The experts of a simulated device (`CountsExperts`): one, in the second of two layers, which every token uses."""

    chosen = 1
    layers = (False, True)

    def __init__(self) -> None:
        self._count = 0
        self._counting = False

    def start(self) -> None:
        self._counting, self._count = True, 0

    def stop(self) -> None:
        self._counting = False

    def take(self) -> NDArray[np.int64]:
        count, self._count = self._count, 0
        return np.array([[0], [count]])

    def computed(self, batch: StepBatch) -> None:
        """A step has been computed."""
        self._count += int(batch.lengths.sum()) if self._counting else 0


def simulated_profiler(strikes: Callable[[str], bool]) -> Profiler:
    """One that writes no files."""
    return Profiler(lambda: SimulatedTracer(strikes), Path("profiles"))


def profile_at_rest(profiler: Profiler) -> str | None:
    """What is wrong with a profiler between two steps, if anything."""
    tracer = profiler._tracer
    if not isinstance(tracer, SimulatedTracer):
        return None
    if tracer.misuse:
        return f"the tracer was {tracer.misuse[0]}"
    if tracer.keeping != (profiler.phase is Profiling.ACTIVE) or (tracer.running and profiler.phase is Profiling.IDLE):
        return f"it is {profiler.phase}, and its tracer runs: {tracer.running}, keeps: {tracer.keeping}"
    return None
