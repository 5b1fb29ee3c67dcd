"""Vectors of prompts: what a model makes of their positions, pooled into one.

Pooling happens on the host and adds one position after the other in float64, so that a vector's bits do not depend on
where its prompt was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.gpu.step_runner import Abilities
from pawl.lifecycle.step import Bools, Embedding, Float32s, Int32s, SlotAssignment, StepBatch

PoolingKind: TypeAlias = Literal["last", "mean", "cls"]
TINY = 1e-12
"""No vector is divided by less."""


class Pooling(msgspec.Struct, frozen=True):
    """How a model's hidden states become one vector."""

    kind: PoolingKind
    """Which positions count: the last, all of them alike, or the first."""
    normalised: bool
    """Vectors have length 1."""


def abilities_of(pooling: Pooling | None, size: int) -> Abilities:
    """Of a model that generates, whose hidden states have so many numbers."""
    if pooling is None:
        return Abilities()
    return Abilities(vector_size=size, unit_vectors=pooling.normalised)


def finished(pooling: Pooling, vector: NDArray[np.float64]) -> Float32s:
    """float32 [size] of what was pooled."""
    if pooling.normalised:
        vector = vector / max(float(np.sqrt((vector * vector).sum())), TINY)
    return vector.astype(np.float32)


def pooled(pooling: Pooling, rows: Float32s) -> Float32s:
    """The vector of a whole prompt's hidden states, float32 [n, size]."""
    if pooling.kind != "mean":
        return finished(pooling, rows[-1 if pooling.kind == "last" else 0].astype(np.float64))
    return finished(pooling, total(rows) / len(rows))


def total(rows: Float32s, before: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The sum of rows [n, size] one after the other, and of what came before them."""
    summed = np.zeros(rows.shape[1]) if before is None else before.copy()
    for row in rows:
        summed += row
    return summed


class Part(NamedTuple):
    """What a step computes of one prompt whose vector is wanted."""

    slot: int
    start: int
    length: int
    num_prompt: int
    usable: bool
    """The prompt names tokens of the model only."""

    @property
    def ends(self) -> bool:
        return self.start + self.length == self.num_prompt


class Pooler:
    """Which slots want a vector, and what was pooled of their prompts so far."""

    def __init__(self, num_slots: int, pooling: Pooling | None) -> None:
        """`pooling` None: nobody wants any."""
        self.pooling = pooling
        self._num_prompt = np.zeros(num_slots, np.int32)
        """Tokens of the slot's prompt; 0 where no vector is wanted."""
        self._totals: dict[int, NDArray[np.float64]] = {}

    def reset(self) -> None:
        """Forget every slot."""
        self._num_prompt[:] = 0
        self._totals.clear()

    def admit(self, admissions: Sequence[SlotAssignment]) -> None:
        """Requests enter their slots."""
        for admission in admissions:
            wanted = admission.sampling.embed and self.pooling is not None
            self._num_prompt[admission.slot] = admission.num_prompt if wanted else 0

    def wanted(self, batch: StepBatch) -> Bools:
        """The segments of prompts whose vectors are wanted, bool [s]."""
        return self._num_prompt[batch.slots] > 0

    def parts(self, batch: StepBatch, spoiled: Bools) -> tuple[Part, ...]:
        """Of a batch of such segments; `spoiled` says it of slots."""
        columns = zip(batch.slots.tolist(), batch.starts.tolist(), batch.lengths.tolist(), strict=True)
        return tuple(Part(*each, int(self._num_prompt[each[0]]), not spoiled[each[0]]) for each in columns)

    def rows(self, parts: Sequence[Part], offsets: Int32s) -> Int32s:
        """Rising rows of the batch whose hidden states are pooled."""
        if self.pooling is not None and self.pooling.kind == "mean":
            return np.arange(offsets[-1], dtype=np.int32)
        ends = [end - 1 for part, end in zip(parts, offsets[1:].tolist(), strict=True) if part.ends]
        return np.array(ends, np.int32)

    def pool(self, parts: Sequence[Part], hidden: Float32s) -> tuple[Embedding, ...]:
        """Take in the hidden states [n, size] of those rows: the vectors of the prompts that end with them."""
        assert self.pooling is not None
        mean, at = self.pooling.kind == "mean", 0
        found = []
        for part in parts:
            count = part.length if mean else int(part.ends)
            rows, at = hidden[at : at + count], at + count
            summed = self._total(part, rows) / part.num_prompt if mean else rows.sum(0, np.float64)
            if part.ends and part.usable and np.isfinite(summed).all():
                found.append(Embedding.of(part.slot, finished(self.pooling, summed)))
        return tuple(found)

    def _total(self, part: Part, rows: Float32s) -> NDArray[np.float64]:
        """Of the prompt so far; one that begins anew is computed from its beginning."""
        summed = total(rows, self._totals.pop(part.slot, None) if part.start else None)
        if not part.ends:
            self._totals[part.slot] = summed
        return summed
