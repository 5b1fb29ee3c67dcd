"""How many launched steps may wait for their results when the next one is planned, and which decoding requests a step
takes.

A step needs the token before its own, so a request that decodes cannot be in two stages of a pipeline at once. Those
that decode share themselves out over as many micro-batches as there are stages, as in vLLM and SGLang. With three
stages, and A, B, C for the micro-batches:

    stage 0   A B C A B C       A is planned again while its last step is in the last stage: what it draws there is the
    stage 1     A B C A B       input of the next, and no stage waits for the host
    stage 2       A B C A
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pawl.memory.arrays import Indices


class Pacing(NamedTuple):
    """`depth` steps may be in flight while another is planned; each goes through `stages`."""

    depth: int
    stages: int = 1

    def micro_batch(self, decoding: Indices, ahead: Sequence[Indices]) -> Indices:
        """Those of the `decoding` rows, [n], that the next step takes; those that have waited longest come first.

        `ahead`: rows of the steps in flight, oldest first. A row of one of the `stages - 1` newest waits for what it
        draws there. The rest is shared out over the micro-batches that are not in flight, none of which is larger than
        all would be if they were equal.
        """
        if self.stages == 1:
            return decoding
        newest = ahead[1 - self.stages :]
        held = [np.isin(decoding, rows) for rows in newest]
        to_come = self.stages - sum(map(np.any, held))
        free = decoding[~np.logical_or.reduce(held)] if held else decoding
        return free[: min(-(-len(free) // to_come), -(-len(decoding) // self.stages))]


def _lockstep(stages: int) -> Pacing:
    """Plan, launch, wait, commit. The simplest cell: nothing is ever in flight while a step is planned."""
    return Pacing(depth=0)


def _overlap(stages: int) -> Pacing:
    """Step N+1 is planned while step N runs; its input tokens are resolved by the worker. Hides the host's work."""
    return Pacing(depth=1)


def _pipeline(stages: int) -> Pacing:
    """A step in each stage, and one more planned behind them. Through one stage it is overlap."""
    return Pacing(depth=stages, stages=stages)


PACINGS: Mapping[str, Callable[[int], Pacing]] = {"lockstep": _lockstep, "overlap": _overlap, "pipeline": _pipeline}
"""By name on the command line; made for a number of stages."""
