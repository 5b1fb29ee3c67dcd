"""Planted violations of what releasing memory owes."""

from __future__ import annotations

from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent
from pawl.lifecycle.records import MemoryMoved
from tests.lifecycle.canaries import Canary
from tests.lifecycle.canaries_shared import planted

KV, WEIGHTS = MemoryTag.KV_CACHE, MemoryTag.WEIGHTS


def moved(event: ResidencyEvent, *tags: MemoryTag) -> MemoryMoved:
    return MemoryMoved(event, tags, float("inf"))


RELEASED = moved(ResidencyEvent.RELEASE, WEIGHTS)
MEMORY_CANARIES: dict[str, Canary] = {
    "a step while the weights are released": Canary(
        "released_is_still", planted("commit 4", RELEASED), "a step was planned while weights is released"
    ),
    "an admission while the weights are released": Canary(
        "released_is_still", planted("submitted 3", RELEASED), "it was admitted while weights is released", 3
    ),
    "weights that are released under a step": Canary(
        "released_is_still", planted("plan 2", RELEASED), "weights is released, with 1 steps in flight"
    ),
    "pages that are released while somebody has some": Canary(
        "released_is_still", planted("commit 2", moved(ResidencyEvent.RELEASE, KV)), "while it is at work", 1
    ),
    "pages that are released and stay in the cache": Canary(
        "released_is_still", planted("finish 3", moved(ResidencyEvent.RELEASE, KV)), "of which are cached"
    ),
    "weights that are resumed and were not released": Canary(
        "released_is_still", planted("commit 2", moved(ResidencyEvent.RESUME, WEIGHTS)), "weights cannot resume"
    ),
}
