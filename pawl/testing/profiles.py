"""Profiles in a simulated run: a tracer that records nothing, sees how it is used, and may fail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from errno import ENOSPC
from pathlib import Path

from pawl.gpu.profiler import ProfileOptions, Profiler
from pawl.lifecycle.machines.profiling import Profiling


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
