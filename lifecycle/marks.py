"""Records that only mark a moment: they carry no columns of a step or of a request."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent
from pawl.lifecycle.states import Cause


class Contained(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """The scheduler failed in the middle of something, and went on. What it then gave up is recorded after this; a
    replay cannot fail in the same place, so it ends here, and begins again at the next checkpoint."""

    request: int
    """The request for whose sake it failed, which ends; 0: nobody's."""
    failure: str
    """The class of the exception and where it was raised; not its words, which may quote a client."""
    time: float


class Digest(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The digest of memory after a step was rolled back: again what it was before that step, but for what has become
    final meanwhile."""

    step: int
    value: int
    """Unsigned, 64 bits."""


class Gap(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Records were lost here; nothing after it can be judged with certainty."""

    count: int
    reason: str


class Idled(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """A plan was begun and came to nothing: there was work, but none of it could be done. Only replay needs it: to try
    costs nothing but may move what is next to leave the cache."""

    time: float


class Flushed(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The prefix cache was emptied; nothing was live or in flight."""

    time: float


class MemoryMoved(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Parts of the engine's memory were released, or are resident again."""

    event: ResidencyEvent
    tags: tuple[MemoryTag, ...]
    time: float


class Answered(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """The gateway has given a request its terminal reply.

    Written by another actor than all other records: it may stand before the Transition that it follows from, and after
    Closed. Requests that never reached the scheduler have one as well, and nothing else.
    """

    request: int
    cause: Cause
    num_output: int
    """Output tokens that had left by then, the last included."""
    time: float
    number: int
    """Of this reply among all, from 1."""


class AnswersClosed(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """The gateway has stopped, and all that were open with it have been answered."""

    count: int
    """Answered records of this run."""
    time: float
