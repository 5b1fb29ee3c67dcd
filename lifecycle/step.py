"""One scheduling step as the worker sees it: a batch of segments in, one token for each sampled segment out.

A segment is consecutive positions of one request. A decoding request is a segment of length 1, a prefill
chunk is a longer one; the runner does not care which is which. All index arrays are int32.

    segment i:  slot slots[i], positions starts[i] .. starts[i]+lengths[i]-1
    inputs:     chained[i]  -> the token that the worker itself drew last for that slot, then the next lengths[i] - 1
                               entries of `tokens`: drafts of the tokens to come. With drafts it is called a run
                else        -> the next lengths[i] entries of `tokens`
    output:     samples[i]  -> one token, drawn from the logits at the segment's last position; of a run, one after the
                               first position, and one after each draft for as long as what was drawn is the draft

Token ids of decoding requests therefore never travel to the worker, and a step can be planned while the step that
computes its inputs still runs (overlap): the placeholder is resolved by the worker.
"""

from __future__ import annotations

import hashlib
from typing import Self, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.request import SamplingParameters

Int32s: TypeAlias = NDArray[np.int32]
Float32s: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]


class SlotAssignment(msgspec.Struct, frozen=True, eq=False):
    """A request that takes a slot with this step; the worker resets what it keeps for the slot."""

    slot: int
    sampling: SamplingParameters
    num_prompt: int
    """Tokens of `history` that are prompt; the rest is output from before a retraction."""
    history: Int32s
    """Prompt and earlier output tokens, int32 [n]; empty unless penalties or a grammar need it."""
    num_output: int
    """Output tokens that exist already (> 0 only after a retraction)."""
    adapter: int = 0
    """Slot of the adapter that computes it together with the weights; 0: none."""


class StepBatch(msgspec.Struct, frozen=True, eq=False):
    """What one step computes."""

    step: int
    slots: Int32s
    starts: Int32s
    lengths: Int32s
    tokens: Int32s
    chained: Bools
    samples: Bools
    page_slots: Int32s
    """page_table[page_slots[j], page_indices[j]] = pages[j] takes effect before this step's forward."""
    page_indices: Int32s
    pages: Int32s
    window_pages: Int32s | None = None
    """Models whose windowed layers have a store of their own: window_table[page_slots[j], page_indices[j]] =
    window_pages[j], int32, as many as `pages`; -1 where there is none. Entries behind every window are never read, one
    of -1 that would be is refused. None: one store."""
    admitted: tuple[SlotAssignment, ...] = ()


class StepLogprobs(msgspec.Struct, frozen=True, eq=False):
    """Log-probabilities for sampled segments, aligned with `StepResult.tokens`.

    Taken from the model's own distribution at temperature 1 over the tokens that the request's grammar allows, before
    penalties and truncation.
    """

    chosen: Float32s
    """[n]; NaN where the request did not ask."""
    top_tokens: Int32s
    """[n, k], k the largest count asked for in this batch. Of each row first the likeliest that its request asked for,
    then the tokens that it named; what is beyond these means nothing."""
    top: Float32s
    """[n, k]"""


class PromptLogprobs(msgspec.Struct, frozen=True, eq=False):
    """Scores of prompt tokens in one prefill segment: entry j belongs to the token at position `start + 1 + j`
    and is conditioned on everything up to position `start + j`."""

    slot: int
    start: int
    chosen: Float32s
    top_tokens: Int32s
    top: Float32s
    ranks: Int32s
    """[n], how many tokens are at least as likely, itself included. For clients: a trace has the scores alone."""


DIGEST_BYTES = 16


class Embedding(msgspec.Struct, frozen=True, eq=False):
    """The vector of a request whose prompt ends in this step."""

    slot: int
    vector: Float32s
    """[size], finite numbers; empty in a replay, which decides nothing from them."""
    digest: bytes
    """The first bytes of SHA-256 of the vector's: what a trace keeps of it."""

    @classmethod
    def of(cls, slot: int, vector: Float32s) -> Self:
        return cls(slot, vector, hashlib.sha256(vector.astype("<f4").tobytes()).digest()[:DIGEST_BYTES])


class StepResult(msgspec.Struct, frozen=True, eq=False):
    """What one step gave."""

    step: int
    tokens: Int32s
    """In segment order; one for each True in `samples` unless `counts` says otherwise."""
    logprobs: StepLogprobs | None = None
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    unusable: Bools | None = None
    """[as many as `tokens`]: the token means nothing, as the model gave scores that are not finite numbers, or the
    request named tokens that the model does not have. None: all tokens are good."""
    counts: Int32s | None = None
    """[number of True in `samples`]: tokens of each segment that samples, from 1 to its length in a run, 1 elsewhere.
    None: the step had no runs."""
    refused: Bools | None = None
    """[as many as `tokens`]: the request's grammar does not allow the token. None: all are allowed."""
    embeddings: tuple[Embedding, ...] = ()
    """Of the requests that want one and whose prompts end here; none where the vector is not made of finite numbers."""

    @property
    def last(self) -> Int32s:
        """The last token of each segment that samples."""
        return self.tokens if self.counts is None else self.tokens[np.cumsum(self.counts) - 1]
