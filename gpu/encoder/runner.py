"""The runner of an encoder. Its positions see those behind them, so nothing can be computed before a prompt is whole:
chunks are kept until the last one comes. Pages are counted as any model's are, and hold nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.batches import InvalidBatch, check_batch, within_vocabulary
from pawl.gpu.encoder.model import Encoder
from pawl.gpu.pooling import Pooling, pooled
from pawl.gpu.step_runner import Abilities, MemoryRefused, NoAdapters, NotShared, WeightsRefused
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.recompute import Computed, Recorded
from pawl.lifecycle.step import Embedding, Int32s, StepBatch, StepResult
from pawl.lifecycle.weight_group import TensorSpec
from pawl.lifecycle.weight_source import WeightSource

NAME = "encoder"
"""Where other models have the name of a backend."""
_NONE = np.zeros(0, np.int32)


FIXED = "the weights of an encoder are not exchanged while it serves: start another server"


class EncoderRunner(NoAdapters, NotShared):
    """A `StepRunner` that makes vectors and nothing else."""

    depth = 0
    experts = None
    released = frozenset[MemoryTag]()
    layout = "an encoder keeps no pages"
    page_bytes = 0

    def __init__(
        self, encoder: Encoder, pooling: Pooling, *, num_pages: int, page_size: int, num_slots: int, max_context: int
    ) -> None:
        self.encoder = encoder
        self.pooling = pooling
        self.abilities = Abilities(
            generates=False, vector_size=encoder.config.hidden_size, unit_vectors=pooling.normalised
        )
        self._num_pages = num_pages
        self._pages_per_slot = -(-max_context // page_size)
        self._max_context = max_context
        self._tokens = np.zeros((num_slots, max_context), np.int32)
        """Prompts as far as they have come, a row for each slot."""
        self._num_prompt = np.zeros(num_slots, np.int32)
        self._spoiled = np.zeros(num_slots, np.bool_)
        """Slots whose request named tokens that the model does not have."""

    def stage(self, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        """Raises WeightsRefused."""
        raise WeightsRefused(FIXED)

    def expect(self, specs: Sequence[TensorSpec]) -> None:
        """Raises WeightsRefused."""
        raise WeightsRefused(FIXED)

    def swap(self, ticket: int) -> None:
        """Raises WeightsRefused."""
        raise WeightsRefused(f"nothing is staged for update {ticket}")

    def named_weights(self) -> Mapping[str, Any]:
        """None: see `StepRunner.named_weights`."""
        return {}

    def release(self, tags: Collection[MemoryTag]) -> None:
        """Raises MemoryRefused."""
        raise MemoryRefused("an encoder keeps its memory: it has no pages, and few weights")

    def resume(self, tags: Collection[MemoryTag]) -> None:
        """Nothing is released."""

    def reset(self) -> None:
        """Forget every slot."""
        self._num_prompt[:] = 0

    def launch(self, batch: StepBatch) -> StepResult:
        """Take in the chunks of a step, and compute the prompts that are whole by them. Raises InvalidBatch before
        anything has changed."""
        check_batch(
            batch,
            num_slots=len(self._tokens),
            num_pages=self._num_pages,
            pages_per_slot=self._pages_per_slot,
            max_context=self._max_context,
        )
        if batch.samples.any():
            raise InvalidBatch(batch.step, "an encoder draws no tokens")
        batch, foreign = within_vocabulary(batch, self.encoder.config.vocab_size)
        for admission in batch.admitted:
            self._num_prompt[admission.slot] = admission.num_prompt
            self._spoiled[admission.slot] = False
        self._spoiled[foreign] = True
        embeddings: list[Embedding] = []
        columns = zip(batch.slots.tolist(), batch.starts.tolist(), batch.lengths.tolist(), strict=True)
        at = 0
        for slot, start, length in columns:
            self._tokens[slot, start : start + length] = batch.tokens[at : at + length]
            at += length
            if start + length == self._num_prompt[slot] and not self._spoiled[slot]:
                embeddings += embedded(self.encoder, self.pooling, slot, self._tokens[slot, : start + length])
        return StepResult(batch.step, _NONE, embeddings=tuple(embeddings))

    def collect(self, launched: StepResult) -> StepResult:
        """What `launch` gave: it was computed there."""
        return launched

    def read_pages(self, pages: Int32s) -> NDArray[np.uint8]:
        """Nothing of each."""
        return np.zeros((len(pages), 0), np.uint8)

    def write_pages(self, pages: Int32s, blocks: NDArray[np.uint8]) -> None:
        """There is nothing to write."""


def embedded(encoder: Encoder, pooling: Pooling, slot: int, tokens: Int32s) -> list[Embedding]:
    """The vector of a prompt; none where it is not made of finite numbers."""
    vector = pooled(pooling, encoder.hidden(tokens))
    return [Embedding.of(slot, vector)] if np.isfinite(vector).all() else []


def encoder_again(
    encoder: Encoder,
    pooling: Pooling,
    requests: Sequence[Recorded],
    advance: Callable[[int], object] = lambda count: None,
) -> list[Computed]:
    """`Compute` of an encoder; `advance` hears of tokens that are computed."""
    found = []
    for request in requests:
        computed = Computed.unknown(request)
        tokens = request.tokens[: request.num_prompt]
        if len(tokens) <= encoder.config.max_position and 0 <= tokens.min() <= tokens.max() < encoder.config.vocab_size:
            computed.digests.extend(each.digest for each in embedded(encoder, pooling, 0, tokens))
        found.append(computed)
        advance(len(tokens))
    return found
