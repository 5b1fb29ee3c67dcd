"""The prefill replica's side of prompts that are computed for others: says when the last of their pages is on its way.

A request of a prefill replica wants no output. Its pages go down as they are computed (loops/saving.py), and who has
asked for them is known below: here it is only said, behind the last save, that a request has ended.
"""

from __future__ import annotations

from pawl.lifecycle.snapshot import Plain
from pawl.loops.companion import Companion
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.queues import Queues
from pawl.loops.tiers import TierEffects


class HandingOver(Companion):
    """Stands behind the lower tiers among the companions."""

    def __init__(self, queues: Queues, tiers: LowerTiers, effects: TierEffects) -> None:
        self._queues = queues
        self._tiers = tiers
        self._effects = effects

    def left(self, row: int) -> None:
        self._tiers.settle()
        info = self._queues.table.info(row)
        self._effects.end_of_pages(info.request, info.num_cached)

    def snapshot(self) -> Plain:
        return {}

    def restore(self, plain: Plain) -> None: ...
