"""A profile of a worker's steps: when it begins and ends, and which files it makes. Needs no PyTorch.

    start ──► ARMED ──(warm-up)──► ACTIVE ── num_steps of them, or stop ──► WRITING ──► IDLE, or ARMED once more

A file holds one recording. By stage there is one of each stage, prefill (steps that compute prompts, whatever else is
in them) and decode (the others): from its first step until `num_steps` of it, or a step of the other stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from pawl.lifecycle.machines.profiling import PROFILING, Profiling, ProfilingEvent
from pawl.lifecycle.step import StepBatch

Stage: TypeAlias = Literal["prefill", "decode"]
Activity: TypeAlias = Literal["CPU", "GPU", "MEM"]


class ProfileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded of which steps, and where it is written."""

    folder: Path
    name: str
    """What files' names begin with."""
    start_step: int = 0
    """The first step that may be recorded, by its number."""
    num_steps: int | None = None
    """Steps of one recording; None: until it is stopped."""
    warmup: int = 0
    """Steps before each recording during which the profiler runs and nothing is kept."""
    repeat: int = 1
    """Recordings, one after the other; by stage, of each stage."""
    stages: tuple[Stage, ...] = ()
    """Empty: whatever stage a step is of."""
    activities: tuple[Activity, ...] = ("CPU", "GPU")
    with_stack: bool = False
    record_shapes: bool = False


class WrongState(Exception):
    """A start while a profile is under way, or a stop while none is."""


class ProfileRefused(Exception):
    """This profile cannot be made."""


class Tracer(Protocol):
    """What records. One recording at a time, in one thread."""

    def check(self, options: ProfileOptions) -> None:
        """Raises ProfileRefused for what cannot be recorded, or written there."""

    def prepare(self, options: ProfileOptions) -> None:
        """Warm up: what is done from now on is recorded, and thrown away by `begin`."""

    def begin(self) -> None:
        """Keep what is recorded from now on."""

    def span(self, name: str) -> AbstractContextManager[object]:
        """What is done within is shown under this name."""

    def end(self, path: Path) -> None:
        """Stop, and write what was recorded to a new file that only its owner may read. Whatever is raised, nothing is
        recorded any more, and no part of the file is left."""

    def abandon(self) -> None:
        """Stop, and write nothing."""

    def save(self, path: Path, data: bytes) -> None:
        """Write a file that is no recording, which only its owner may read. Raises OSError, with no part of it left."""


class Profiler:
    """The profiles of one worker, one at a time."""

    def __init__(self, make_tracer: Callable[[], Tracer], folder: Path, *, rank: int = 0) -> None:
        """`make_tracer` is called when the first profile is started; `folder`: where files go unless told."""
        self.phase = PROFILING.start
        self.folder = folder
        self.rank = rank
        self.trouble = ""
        """Why the last profile has come to nothing, if so."""
        self._make_tracer = make_tracer
        self._tracer: Tracer | None = None
        self._options: ProfileOptions | None = None
        self._todo: list[Stage | None] = []
        """Recordings to come, the one under way among them; None: of any stage."""
        self._current: Stage | None = None
        self._num_warm = 0
        self._num_recorded = 0
        self._files: list[Path] = []

    @property
    def tracer(self) -> Tracer:
        if self._tracer is None:
            self._tracer = self._make_tracer()
        return self._tracer

    def start(self, options: ProfileOptions) -> None:
        """Raises WrongState, or ProfileRefused."""
        if self.phase is not Profiling.IDLE:
            raise WrongState("a profile is under way already: stop it first")
        self.tracer.check(options)
        self._move(ProfilingEvent.START)
        stages: Sequence[Stage | None] = options.stages or (None,)
        self._todo = [*stages] * options.repeat
        self._options, self._files, self.trouble, self._num_warm = options, [], "", 0

    def stop(self) -> Sequence[Path]:
        """Write what was recorded; all files of the profile. Raises WrongState, or ProfileRefused where the last could
        not be written."""
        if self.phase is Profiling.IDLE:
            raise WrongState(f"no profile is under way{f'; the last one failed: {self.trouble}' * bool(self.trouble)}")
        self._todo.clear()
        if self.phase is Profiling.ARMED:
            if self._num_warm:
                self.tracer.abandon()
            self._move(ProfilingEvent.CANCEL)
        else:
            self._write()
            if self.trouble:
                raise ProfileRefused(self.trouble)
        return self._files

    @contextmanager
    def step(self, batch: StepBatch) -> Iterator[None]:
        """What launches this step happens within."""
        if self.phase is Profiling.IDLE:
            yield
            return
        stage: Stage = "decode" if batch.chained.all() else "prefill"
        if self.phase is Profiling.ACTIVE and self._current not in (None, stage):
            self._write()
        if self.phase is Profiling.ARMED:
            self._approach(batch.step, stage)
        if self.phase is not Profiling.ACTIVE:
            yield
            return
        with self.tracer.span(f"step {batch.step}: {stage}"):
            yield
        self._num_recorded += 1
        if self._options is not None and self._num_recorded == self._options.num_steps:
            self._write()

    def _approach(self, step: int, stage: Stage) -> None:
        """Warm up with this step, or begin with it, if it is time."""
        options = self._options
        wanted = None if None in self._todo else stage
        if options is None or step < options.start_step or wanted not in self._todo:
            return
        try:
            if self._num_warm == 0:
                self.tracer.prepare(options)
            if self._num_warm < options.warmup:
                self._num_warm += 1
                return
            try:
                self.tracer.begin()
            except Exception:
                self.tracer.abandon()
                raise
        except Exception as error:
            self._fail(error)
            return
        self._current, self._num_recorded = wanted, 0
        self._move(ProfilingEvent.BEGIN)

    def _write(self) -> None:
        self._move(ProfilingEvent.WRITE)
        path = self._path()
        try:
            self.tracer.end(path)
        except Exception as error:
            self._fail(error)
            return
        self._files.append(path)
        self._num_warm = 0
        if self._current in self._todo:
            self._todo.remove(self._current)
        self._move(ProfilingEvent.REARM if self._todo else ProfilingEvent.WRITTEN)
        _log().info("a profile is written", file=str(path), steps=self._num_recorded)

    def _path(self) -> Path:
        assert self._options is not None
        number = f"-{len(self._files) + 1}" if self._options.repeat > 1 else ""
        stage = "" if self._current is None else f"-{self._current}"
        return self._options.folder / f"{self._options.name}-TP-{self.rank}{stage}{number}.trace.json.gz"

    def _fail(self, error: Exception) -> None:
        self.trouble = f"{type(error).__name__}: {error}"
        self._todo.clear()
        self._move(ProfilingEvent.FAIL)
        _log().error("a profile has failed", reason=self.trouble)

    def _move(self, event: ProfilingEvent) -> None:
        self.phase = PROFILING.next(self.phase, event)


def _log() -> Any:
    import structlog  # it takes longer than all else that the options and states above need

    return structlog.get_logger("pawl.gpu.profiler")
