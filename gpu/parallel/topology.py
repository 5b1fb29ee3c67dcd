"""Which rank is where. Ranks decide nothing: one scheduler sends all of them the same steps.

    --pp 2 --tp 2        stage 0        stage 1
    tensor 0             rank 0         rank 2
    tensor 1             rank 1         rank 3

The ranks of a stage have the same layers, and share what stands in them: a tensor group. With `expert` > 1 they share
the experts of a layer out whole among `expert` parts, and the inner columns of an expert among the ranks of a part.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class TopologyRefused(ValueError):
    """A model cannot be shared out so. Its words, with the numbers, are for the user."""


class Place(NamedTuple):
    """Where a rank stands."""

    stage: int
    """Its pipeline stage, from 0 on."""
    tensor: int
    """Its number among the ranks of the stage."""


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """How many ranks there are, and in which order. Raises TopologyRefused."""

    tensor: int = 1
    """Ranks of one stage."""
    pipeline: int = 1
    """Stages."""
    expert: int = 1
    """Parts that share out the experts of a layer; divides `tensor`."""

    def __post_init__(self) -> None:
        if min(self.tensor, self.pipeline, self.expert) < 1:
            raise TopologyRefused("tp, pp and ep are at least 1")
        if self.tensor % self.expert:
            raise TopologyRefused(f"ep {self.expert} does not divide tp {self.tensor}: a part has as many as another")

    @property
    def size(self) -> int:
        """All ranks."""
        return self.tensor * self.pipeline

    def place(self, rank: int) -> Place:
        """Where this rank stands."""
        return Place(*divmod(rank, self.tensor))

    def rank(self, place: Place) -> int:
        """Who stands there."""
        return place.stage * self.tensor + place.tensor

    def expert_place(self, tensor: int) -> tuple[int, int]:
        """Of a rank of a stage: its part of the experts, and its number in that part."""
        return divmod(tensor, self.tensor // self.expert)


ALONE = Topology()
"""One rank."""


def shared_out(total: int, parts: int, unit: int = 1) -> tuple[range, ...]:
    """`total` things for `parts`, in order and as evenly as they go, in whole units but for the last: the first parts
    have one unit more, and where there are too few units the last have none."""
    each, more = divmod(-(-total // unit), parts)
    ends = [min(total, unit * (part * each + min(part, more))) for part in range(parts + 1)]
    return tuple(map(range, ends, ends[1:]))
