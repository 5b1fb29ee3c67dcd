"""Whether an engine plans steps."""

from __future__ import annotations

from enum import StrEnum

from pawl.lifecycle.machines.base import Machine


class Serving(StrEnum):
    """What an engine does with requests that can go on."""

    SERVING = "serving"
    """Steps are planned."""
    PAUSED = "paused"
    """No step is planned and nobody is admitted. Requests that arrive wait; steps in flight come back, and every other
    order is carried out."""


class ServingEvent(StrEnum):
    """Orders."""

    PAUSE = "pause"
    CONTINUE = "continue"


_SERVING, _PAUSED = Serving.SERVING, Serving.PAUSED

SERVING: Machine[Serving, ServingEvent] = Machine(
    "serving",
    "Whether an engine plans steps. Pauses are not counted: one `continue` ends them all.",
    _SERVING,
    (
        (_SERVING, ServingEvent.PAUSE, _PAUSED, "who runs keeps its memory, gives it back, or ends, as the mode says"),
        (_PAUSED, ServingEvent.PAUSE, _PAUSED, "it is paused already; the mode is applied to whoever still has memory"),
        (_PAUSED, ServingEvent.CONTINUE, _SERVING, "whoever waits or has kept its memory goes on"),
        (_SERVING, ServingEvent.CONTINUE, _SERVING, "it was not paused: nothing happens"),
    ),
)
