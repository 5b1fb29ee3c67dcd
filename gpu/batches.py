"""Is a StepBatch one that the runner can execute? Checked before anything is changed, in a few numpy calls."""

from __future__ import annotations

import numpy as np

from pawl.lifecycle.step import Int32s, StepBatch
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
    vocab_size: int,
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
        within = _within(admission.history, vocab_size)
        _require(batch, within, "history of slot {} leaves the vocabulary", admission.slot)
    if not count:
        _require(batch, not len(batch.tokens), "tokens without segments")
        return
    _check_segments(batch, num_slots, max_context)
    _require(batch, _within(batch.tokens, vocab_size), "a token is not below {}", vocab_size)


def _check_sizes(batch: StepBatch, count: int, num_changes: int) -> None:
    columns = {"starts": batch.starts, "lengths": batch.lengths, "chained": batch.chained, "samples": batch.samples}
    for name, column in columns.items():
        _require(batch, len(column) == count, "{} has {} entries for {}", name, len(column), count)
    same = len(batch.page_slots) == len(batch.page_indices) == num_changes
    _require(batch, same, "page_slots, page_indices and pages differ in length")


def _check_segments(batch: StepBatch, num_slots: int, max_context: int) -> None:
    starts, lengths = batch.starts, batch.lengths
    _require(batch, _within(batch.slots, num_slots), "a slot is not below {}", num_slots)
    _require(batch, np.bincount(batch.slots).max() == 1, "a slot has two segments")
    _require(batch, lengths.min() >= 1, "an empty segment")
    _require(batch, starts.min() >= 0, "a negative start")
    _require(batch, (starts + lengths).max() <= max_context, "a segment ends beyond the context {}", max_context)
    taken = int(lengths[batch.chained].sum())
    _require(batch, taken == np.count_nonzero(batch.chained), "a chained segment is longer than 1")
    given = int(lengths.sum()) - taken
    _require(batch, len(batch.tokens) == given, "{} tokens for {} positions", len(batch.tokens), given)


def _require(batch: StepBatch, holds: object, rule: str, *facts: object) -> None:
    # The text is put together where it is needed: this is on the path of every step.
    if not holds:
        raise InvalidBatch(batch.step, rule.format(*facts))


def _within(values: Int32s, limit: int) -> bool:
    """Whether all are from 0 to `limit` - 1. A negative int32 is a huge uint32: one look at each is enough."""
    return not len(values) or bool(values.view(np.uint32).max() < limit)
