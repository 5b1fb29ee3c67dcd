"""Is a StepBatch one that the runner can execute? Checked before anything is changed, in a few numpy calls."""

from __future__ import annotations

import numpy as np

from lifecycle.step import Int32s, StepBatch
from memory.window import NO_PAGE


class InvalidBatch(Exception):
    """A batch breaks the contract of `lifecycle.step`. Nothing was changed."""

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

    def require(holds: object, reason: str) -> None:
        if not holds:
            raise InvalidBatch(batch.step, reason)

    count, num_changes = len(batch.slots), len(batch.pages)
    for name in ("starts", "lengths", "chained", "samples"):
        require(len(getattr(batch, name)) == count, f"{name} has {len(getattr(batch, name))} entries for {count}")
    for name in ("page_slots", "page_indices"):
        require(len(getattr(batch, name)) == num_changes, f"{name} and pages differ in length")
    require(_within(batch.page_slots, num_slots), f"a page slot is not below {num_slots}")
    require(_within(batch.page_indices, pages_per_slot), f"a page index is not below {pages_per_slot}")
    require(_within(batch.pages, num_pages), f"a page is not below {num_pages}")
    require((batch.window_pages is None) == (num_window_pages is None), "window pages and a window store go together")
    if batch.window_pages is not None and num_window_pages is not None:
        require(len(batch.window_pages) == num_changes, "window_pages and pages differ in length")
        require(
            _within(batch.window_pages, num_window_pages, least=NO_PAGE),
            f"a window page is not below {num_window_pages}, nor {NO_PAGE} for none",
        )
    for admission in batch.admitted:
        require(0 <= admission.slot < num_slots, f"admitted slot {admission.slot} is not below {num_slots}")
        require(_within(admission.history, vocab_size), f"history of slot {admission.slot} leaves the vocabulary")
    if not count:
        require(not len(batch.tokens), "tokens without segments")
        return
    require(_within(batch.slots, num_slots), f"a slot is not below {num_slots}")
    require(np.bincount(batch.slots).max() == 1, "a slot has two segments")
    require((batch.lengths >= 1).all(), "an empty segment")
    require((batch.starts >= 0).all(), "a negative start")
    require(((batch.starts + batch.lengths) <= max_context).all(), f"a segment ends beyond the context {max_context}")
    require((batch.lengths[batch.chained] == 1).all(), "a chained segment is longer than 1")
    given = int(batch.lengths[~batch.chained].sum())
    require(len(batch.tokens) == given, f"{len(batch.tokens)} tokens for {given} positions")
    require(_within(batch.tokens, vocab_size), f"a token is not below {vocab_size}")


def _within(values: Int32s, limit: int, least: int = 0) -> bool:
    return not len(values) or bool(values.min() >= least and values.max() < limit)
