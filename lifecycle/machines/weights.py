"""Which weights compute, and how far an update of them is."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from pawl.lifecycle.machines.base import Machine


class Weights(StrEnum):
    """Where the weights of an engine are."""

    SERVING = "serving"
    """One version computes every step."""
    STAGING = "staging"
    """New weights are read, verified and laid out beside those that serve, which go on."""
    GATHERING = "gathering"
    """Some of them lie there, and others are to come. Those that serve go on."""
    SWAPPING = "swapping"
    """The new ones lie there. No step is launched; those in flight come back, and the worker exchanges the weights."""


class WeightEvent(StrEnum):
    """What moves them."""

    UPDATE = "update"
    PART = "part"
    STAGED = "staged"
    SWAPPED = "swapped"
    FAILED = "failed"
    RENAMED = "renamed"


_s, _e = Weights, WeightEvent
WeightMove: TypeAlias = tuple[Weights, WeightEvent, Weights, str]
_MOVES: tuple[WeightMove, ...] = (
    (_s.SERVING, _e.UPDATE, _s.STAGING, "somebody asks for other weights"),
    (_s.STAGING, _e.PART, _s.GATHERING, "they fit the model, and others are to come"),
    (_s.GATHERING, _e.UPDATE, _s.STAGING, "others come, or another update takes the place of this one"),
    (_s.STAGING, _e.STAGED, _s.SWAPPING, "they fit the model, and none is missing"),
    (_s.GATHERING, _e.FAILED, _s.SERVING, "the loop has failed: what was gathered is dropped"),
    (_s.STAGING, _e.FAILED, _s.SERVING, "they cannot be read, or do not fit: the old ones stay"),
    (_s.SWAPPING, _e.SWAPPED, _s.SERVING, "the worker has exchanged them; who ran starts again under the new ones"),
    (_s.SWAPPING, _e.FAILED, _s.SERVING, "the worker could not exchange them: the old ones stay"),
    *((state, _e.RENAMED, state, "replies call those that serve otherwise") for state in Weights),
)

WEIGHTS: Machine[Weights, WeightEvent] = Machine(
    "weights",
    "Which weights compute. An update is staged while requests are served, and exchanged between two steps. Wherever "
    "it fails, the version before it serves on.",
    _s.SERVING,
    _MOVES,
)
