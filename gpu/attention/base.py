"""What a decoder asks of attention: prepare once for a batch, then attend in each layer."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from torch import Tensor

from pawl.gpu.backend import ForwardInputs

ScheduledBatch = TypeVar("ScheduledBatch")


class Attention(Protocol, Generic[ScheduledBatch]):
    """Attention over the pages of a KvStore."""

    def prepare(self, inputs: ForwardInputs) -> ScheduledBatch:
        """What layers share for this batch: which pages to read and write. Raises RefusedInputs."""

    def attend(self, plan: ScheduledBatch, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the batch's keys and values, then attend.

        query [t, heads, head_dim] and key [t, kv_heads, head_dim] have been turned by rope; value is as key. Returns
        [t, heads * head_dim].
        """
