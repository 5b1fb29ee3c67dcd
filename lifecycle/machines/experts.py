"""Whether a worker counts which experts tokens use."""

from __future__ import annotations

from enum import StrEnum

from pawl.lifecycle.machines.base import Machine


class Counting(StrEnum):
    """What a worker does beside its steps."""

    IDLE = "idle"
    """Nothing is counted; what was counted before can be had."""
    RECORDING = "recording"
    """Every token that a step computes is counted."""


class CountingEvent(StrEnum):
    """Messages."""

    START = "start"
    STOP = "stop"
    DUMP = "dump"


_IDLE, _RECORDING = Counting.IDLE, Counting.RECORDING

EXPERTS: Machine[Counting, CountingEvent] = Machine(
    "experts",
    "Whether a worker counts which experts tokens use. A second start, and a stop without one, are refused.",
    _IDLE,
    (
        (_IDLE, CountingEvent.START, _RECORDING, "counts begin at 0"),
        (_RECORDING, CountingEvent.STOP, _IDLE, "counts stay as they are"),
        (_RECORDING, CountingEvent.DUMP, _RECORDING, "counts are written, and begin at 0 again"),
        (_IDLE, CountingEvent.DUMP, _IDLE, "counts are written, and forgotten"),
    ),
)
