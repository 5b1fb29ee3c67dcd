"""Is a StepBatch one that the runner can execute? Checked before anything is changed, in a few numpy calls.

Two kinds of fault differ in whom they cost. A batch that breaks the contract is no request's fault: it is refused
whole. A token that the model does not have came with one request, and ends that request alone.
"""

from __future__ import annotations

import msgspec
import numpy as np

from pawl.lifecycle.step import Bools, Int32s, SlotAssignment, StepBatch
from pawl.memory.arrays import highest, lowest
from pawl.memory.partners import NO_PAGE


class InvalidBatch(Exception):
    """A batch breaks the contract of `pawl.lifecycle.step`. Nothing was changed."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason


def check_batch(
    batch: StepBatch,
    *,
    num_slots: int,
    num_pages: int,
    pages_per_slot: int,
    max_context: int,
    num_window_pages: int | None = None,
) -> None:
    """Raises InvalidBatch with the first rule that does not hold. `num_window_pages` None: there is no second store."""

    count, num_changes = len(batch.slots), len(batch.pages)
    _check_sizes(batch, count, num_changes)
    if num_changes:
        _require(batch, _within(batch.page_slots, num_slots), "a page slot is not below {}", num_slots)
        _require(batch, _within(batch.page_indices, pages_per_slot), "a page index is not below {}", pages_per_slot)
        _require(batch, _within(batch.pages, num_pages), "a page is not below {}", num_pages)
    _require(
        batch, (batch.window_pages is None) == (num_window_pages is None), "window pages and a window store go together"
    )
    if batch.window_pages is not None and num_window_pages is not None:
        _require(batch, len(batch.window_pages) == num_changes, "window_pages and pages differ in length")
        within = _within(batch.window_pages - NO_PAGE, num_window_pages - NO_PAGE)
        _require(batch, within, "a window page is not below {}, nor {} for none", num_window_pages, NO_PAGE)
    for admission in batch.admitted:
        _require(batch, 0 <= admission.slot < num_slots, "admitted slot {} is not below {}", admission.slot, num_slots)
    if not count:
        _require(batch, not len(batch.tokens), "tokens without segments")
        return
    _check_segments(batch, num_slots, max_context)


def part_of(batch: StepBatch, segments: Bools) -> StepBatch:
    """The batch with these of its segments, bool [s], alone; tables and admissions stay what they are."""
    tokens = batch.tokens[np.repeat(segments, batch.lengths - batch.chained)]
    columns = {name: getattr(batch, name)[segments] for name in ("slots", "starts", "lengths", "chained", "samples")}
    return msgspec.structs.replace(batch, tokens=tokens, **columns)


def within_vocabulary(batch: StepBatch, vocab_size: int) -> tuple[StepBatch, Int32s]:
    """A checked batch that names only tokens of the vocabulary, and the slots [n] of requests that named others: they
    are computed, so that nobody beside them waits, and what they draw means nothing."""
    admitted = tuple(known_tokens(admission, vocab_size) for admission in batch.admitted)
    slots = [new.slot for old, new in zip(batch.admitted, admitted, strict=True) if new is not old]
    tokens = batch.tokens
    if not _within(tokens, vocab_size):
        foreign = (tokens < 0) | (tokens >= vocab_size)
        slots += np.repeat(batch.slots, batch.lengths - batch.chained)[foreign].tolist()
        tokens = np.where(foreign, np.int32(0), tokens)
    if not slots:
        return batch, np.zeros(0, np.int32)
    return msgspec.structs.replace(batch, tokens=tokens, admitted=admitted), np.unique(slots).astype(np.int32)


def known_tokens(admission: SlotAssignment, vocab_size: int) -> SlotAssignment:
    """The admission, itself where it names tokens of the vocabulary only."""
    sampling, known = admission.sampling, range(vocab_size)
    named = (*sampling.stop_token_ids, *(sampling.logit_bias or ()))
    if _within(admission.history, vocab_size) and all(token in known for token in named):
        return admission
    stops = tuple(token for token in sampling.stop_token_ids if token in known)
    bias = {token: value for token, value in (sampling.logit_bias or {}).items() if token in known}
    return msgspec.structs.replace(
        admission,
        history=np.clip(admission.history, 0, vocab_size - 1),
        sampling=msgspec.structs.replace(sampling, stop_token_ids=stops, logit_bias=bias),
    )


def _check_sizes(batch: StepBatch, count: int, num_changes: int) -> None:
    columns = {"starts": batch.starts, "lengths": batch.lengths, "chained": batch.chained, "samples": batch.samples}
    for name, column in columns.items():
        _require(batch, len(column) == count, "{} has {} entries for {}", name, len(column), count)
    same = len(batch.page_slots) == len(batch.page_indices) == num_changes
    _require(batch, same, "page_slots, page_indices and pages differ in length")


def _check_segments(batch: StepBatch, num_slots: int, max_context: int) -> None:
    starts, lengths = batch.starts, batch.lengths
    _require(batch, _within(batch.slots, num_slots), "a slot is not below {}", num_slots)
    _require(batch, highest(np.bincount(batch.slots)) == 1, "a slot has two segments")
    _require(batch, lowest(lengths) >= 1, "an empty segment")
    _require(batch, lowest(starts) >= 0, "a negative start")
    _require(batch, highest(starts + lengths) <= max_context, "a segment ends beyond the context {}", max_context)
    given = int(lengths.sum()) - np.count_nonzero(batch.chained)
    _require(batch, len(batch.tokens) == given, "{} tokens for {} positions", len(batch.tokens), given)


def _require(batch: StepBatch, holds: object, rule: str, *facts: object) -> None:
    # The text is put together where it is needed: this is on the path of every step.
    if not holds:
        raise InvalidBatch(batch.step, rule.format(*facts))


def _within(values: Int32s, limit: int) -> bool:
    """Whether all are from 0 to `limit` - 1. A negative int32 is a huge uint32: one look at each is enough."""
    return not len(values) or highest(values.view(np.uint32)) < limit
