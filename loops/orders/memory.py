"""Orders about the engine's memory: two ask for a part of it to be released or resumed, one tells what came of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias

import msgspec

from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent
from pawl.loops.intake import LATER, Intake, Order, Outcome
from pawl.loops.loop import Loop
from pawl.loops.residency import in_the_way

MAX_WAIT_S = 3600.0
Some: TypeAlias = Annotated[tuple[MemoryTag, ...], msgspec.Meta(max_length=16)]
Tags: TypeAlias = Annotated[
    Some | None, msgspec.Meta(description="kv_cache, weights, cuda_graph; none of them: all that can be")
]


class ReleaseMemory(Order, frozen=True, tag="release_memory", rename={"timeout_s": "timeout"}):
    """Give memory back to the system until it is resumed. Meanwhile no step runs, and requests wait. Nobody may be at
    work: nothing is live, or generation is paused; for `kv_cache` nobody may own pages, and for `weights` no adapter is
    being read."""

    at_rest: ClassVar[bool] = True
    tags: Tags = None
    timeout_s: Annotated[
        float, msgspec.Meta(ge=0, le=MAX_WAIT_S, description="seconds to wait until nobody is at work")
    ] = 1.0

    def can_be_done(self, loop: Loop) -> bool:
        return in_the_way(loop, self.tags or tuple(MemoryTag)) is None

    def apply(self, intake: Intake, now: float) -> Outcome:
        return _begun(intake, ResidencyEvent.RELEASE, self.tags, now)


class ResumeMemory(Order, frozen=True, tag="resume_memory"):
    """Have memory again that was released: weights with the same bytes, pages empty. Then requests go on, unless
    generation is paused."""

    tags: Tags = None

    def apply(self, intake: Intake, now: float) -> Outcome:
        return _begun(intake, ResidencyEvent.RESUME, self.tags, now)


class MoveEnded(Order, frozen=True, tag="memory_move_ended"):
    """The worker has released or resumed memory, or has failed to."""

    ticket: int
    released: tuple[MemoryTag, ...]
    """All that is released there now."""
    message: str = ""
    """What has failed; empty: nothing."""

    def apply(self, intake: Intake, now: float) -> None:
        intake.memory.ended(self.ticket, self.released, self.message, now)


def _begun(intake: Intake, event: ResidencyEvent, tags: tuple[MemoryTag, ...] | None, now: float) -> Outcome:
    refusal = intake.memory.begin(event, tags, intake.number, now)
    return LATER if refusal is None else Outcome(False, refusal, {"conflict": True, **intake.memory.facts})
