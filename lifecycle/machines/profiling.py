"""Whether a worker's steps are profiled."""

from __future__ import annotations

from enum import StrEnum

from pawl.lifecycle.machines.base import Machine


class Profiling(StrEnum):
    """What a worker does beside its steps."""

    IDLE = "idle"
    """Nothing is recorded, and a profile may be started."""
    ARMED = "armed"
    """The first step to be recorded is still to come; steps before it may warm the profiler up."""
    ACTIVE = "active"
    """Steps are recorded."""
    WRITING = "writing"
    """What was recorded goes into a file. The next step waits for it."""


class ProfilingEvent(StrEnum):
    """Messages, and how far the steps are."""

    START = "start"
    BEGIN = "begin"
    CANCEL = "cancel"
    WRITE = "write"
    WRITTEN = "written"
    REARM = "rearm"
    FAIL = "fail"


_s, _e = Profiling, ProfilingEvent

PROFILING: Machine[Profiling, ProfilingEvent] = Machine(
    "profiling",
    "Whether a worker's steps are profiled. A start in any state but idle, and a stop in that state, are refused.",
    _s.IDLE,
    (
        (_s.IDLE, _e.START, _s.ARMED, "somebody starts a profile"),
        (_s.ARMED, _e.BEGIN, _s.ACTIVE, "the first step to be recorded is launched"),
        (_s.ARMED, _e.CANCEL, _s.IDLE, "it is stopped before any step was recorded"),
        (_s.ARMED, _e.FAIL, _s.IDLE, "the profiler cannot be started"),
        (_s.ACTIVE, _e.WRITE, _s.WRITING, "all steps are recorded, or a stage ends, or it is stopped"),
        (_s.WRITING, _e.WRITTEN, _s.IDLE, "the file is whole"),
        (_s.WRITING, _e.REARM, _s.ARMED, "the file is whole, and another stage or repetition is to come"),
        (_s.WRITING, _e.FAIL, _s.IDLE, "the file could not be written: nothing is left of it"),
    ),
)
