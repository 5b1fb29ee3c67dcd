"""Last tokens across the stages of a pipeline: the last one draws them, the first one computes with them.

The last stage sends what a step has drawn as soon as it has drawn it. The first one takes it when a step needs it, and
otherwise once nobody can be waiting for it any more.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from pawl.gpu.dtypes import array_of, tensor_of
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.sampling.last_tokens import LastTokens
from pawl.lifecycle.step import Int32s, StepBatch


def across_stages(tokens: LastTokens, rank: Rank | None) -> LastTokens:
    """`tokens` as the stage of this rank keeps them."""
    if rank is None or rank.shard.topology.pipeline == 1:
        return tokens
    if rank.shard.last:
        return GivenTokens(tokens, rank)
    return TakenTokens(tokens, rank) if rank.shard.first else tokens


class GivenTokens(LastTokens):
    """Of the last stage."""

    def __init__(self, own: LastTokens, rank: Rank) -> None:
        self._own, self._rank = own, rank

    def reset(self) -> None:
        """See `LastTokens.reset`."""
        self._own.reset()

    def remember(self, slots: Int32s, tokens: Any) -> None:
        """See `LastTokens.remember`; the first stage gets them."""
        self._own.remember(slots, tokens)
        if len(slots):
            self._rank.communicator.send(_copied(tokens), 0)

    def resolve(self, batch: StepBatch, offsets: Int32s) -> Any:
        """See `LastTokens.resolve`."""
        return self._own.resolve(batch, offsets)


class TakenTokens(LastTokens):
    """Of the first stage."""

    def __init__(self, own: LastTokens, rank: Rank) -> None:
        self._own, self._rank = own, rank
        self._stages = rank.shard.topology.pipeline
        self._owed: deque[Int32s] = deque()
        """Slots of the steps whose tokens were not taken, oldest first."""

    def reset(self) -> None:
        """See `LastTokens.reset`. Every step has come back, so nothing that is owed is to come."""
        while self._owed:
            self._take()
        self._own.reset()

    def expect(self, slots: Int32s) -> None:
        """See `LastTokens.expect`."""
        if len(slots):
            self._owed.append(slots)

    def resolve(self, batch: StepBatch, offsets: Int32s) -> Any:
        """See `LastTokens.resolve`. Waits for what the batch needs."""
        chained = batch.slots[batch.chained]
        # No more than `stages` steps before this one have not come back.
        while len(self._owed) > self._stages or any(np.isin(chained, slots).any() for slots in self._owed):
            self._take()
        return self._own.resolve(batch, offsets)

    def _take(self) -> None:
        slots = self._owed.popleft()
        tokens = torch.empty(len(slots), dtype=torch.int32, device=self._own.device)
        self._rank.communicator.receive(tokens, self._stages - 1)
        self._own.remember(slots, array_of(tokens) if self._own.device is None else tokens)


def _copied(tokens: Any) -> torch.Tensor:
    """A copy of tokens of either kind, contiguous int32."""
    if isinstance(tokens, np.ndarray):
        return tensor_of(tokens.astype(np.int32))
    copied: torch.Tensor = tokens.to(torch.int32, copy=True).contiguous()
    return copied
