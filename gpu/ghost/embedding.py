"""Vectors of a ghost: a hash of what the last position of a prompt has read, so memory that is wrong shows in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pawl.gpu.ghost.memory import Computed
from pawl.gpu.sampling.mixing import UInt64s, mix64
from pawl.lifecycle.step import Embedding, Float32s, SlotAssignment, StepBatch

VECTOR_SIZE = 8
_NUMBERS: UInt64s = np.arange(1, VECTOR_SIZE + 1, dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)


def vector_of(state: np.uint64) -> Float32s:
    """Float32 [VECTOR_SIZE] of length 1, a function of the state alone."""
    words = mix64(state ^ _NUMBERS)
    numbers = (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    vector: Float32s = (numbers / np.sqrt((numbers * numbers).sum())).astype(np.float32)
    return vector


class GhostEmbeddings:
    """Which slots want a vector, and where their prompts end."""

    def __init__(self, num_slots: int) -> None:
        self._ends = np.zeros(num_slots, np.int32)
        """Tokens of the prompt; 0 where no vector is wanted."""

    def reset(self) -> None:
        """Forget every slot."""
        self._ends[:] = 0

    def admit(self, admissions: Sequence[SlotAssignment]) -> None:
        for admission in admissions:
            self._ends[admission.slot] = admission.num_prompt if admission.sampling.embed else 0

    def of(self, batch: StepBatch, computed: Computed) -> tuple[Embedding, ...]:
        """Vectors of the prompts that end in this step."""
        ended = np.flatnonzero(self._ends[batch.slots] == batch.starts + batch.lengths).tolist()
        states = computed.states[computed.last_rows]
        return tuple(Embedding.of(int(batch.slots[segment]), vector_of(states[segment])) for segment in ended)
