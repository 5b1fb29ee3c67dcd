"""Which tokens are scored beside a slot's own: so many of the likeliest, then those that its request names."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Int32s

Int64s: TypeAlias = NDArray[np.int64]
LIKELIEST = -1
"""In place of a name: the column belongs to one of the likeliest, or the row has no use for it."""


class Columns(NamedTuple):
    """The columns of scores of n rows."""

    width: int
    """The most that any of the rows has."""
    named: Int64s | None
    """[n, width], token ids and LIKELIEST; None where no row names any."""

    def repeated(self, count: int) -> Columns:
        """Those of one row, for `count` rows."""
        return Columns(self.width, None if self.named is None else self.named.repeat(count, axis=0))


class Rivals:
    """What each slot's request asked for."""

    def __init__(self, num_slots: int) -> None:
        self._num_top = np.zeros(num_slots, np.int32)
        self._named: dict[int, tuple[int, ...]] = {}

    def reset(self) -> None:
        """Forget every slot."""
        self._num_top[:] = 0
        self._named.clear()

    def admit(self, slot: int, sampling: SamplingParameters) -> None:
        """Take over a request; what the slot held before is forgotten."""
        self._num_top[slot] = sampling.top_logprobs or 0
        self._named.pop(slot, None)
        if sampling.token_ids_logprob:
            self._named[slot] = sampling.token_ids_logprob

    def columns(self, slots: Int32s) -> Columns:
        """Of the rows of these `slots` [n]."""
        num_top = self._num_top[slots]
        names = [self._named.get(slot, ()) for slot in slots.tolist()] if self._named else []
        if not any(names):
            return Columns(int(num_top.max(initial=0)), None)
        ends = num_top + np.array([len(ids) for ids in names], np.int32)
        named = np.full((len(slots), int(ends.max())), LIKELIEST, np.int64)
        for row, ids in enumerate(names):
            named[row, num_top[row] : ends[row]] = ids
        return Columns(named.shape[1], named)
