"""A worker without a model: every KV entry carries (request history hash), so a wrong page becomes a wrong token.

Each written position stores a hash of the whole prefix up to it. Reading checks the chain through the page table; the
next token is a hash of what was read. The expected output is computable from the prompt alone.
"""

from __future__ import annotations

import numpy as np

from lifecycle.step import StepBatch, StepResult

VOCABULARY = 1000
_MASK = (1 << 63) - 1


def chain(previous: int, token: int) -> int:
    """Hash of a prefix, from the hash of the prefix before it and its last token."""
    value = (previous * 6364136223846793005 + token * 1442695040888963407 + 1013904223) & _MASK
    return value ^ (value >> 29)


def expected(prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that follow `prompt`."""
    value = 0
    for token in prompt:
        value = chain(value, token)
    output = []
    for _ in range(count):
        output.append(value % VOCABULARY)
        value = chain(value, output[-1])
    return output


class Ghost:
    """Runs step batches over a paged store of prefix hashes; raises AssertionError on any inconsistency."""

    asynchronous = False

    def __init__(self, *, num_pages: int, page_size: int, num_slots: int, max_context: int) -> None:
        self.page_size = page_size
        self.store = np.full((num_pages, page_size), -1, np.int64)
        self.page_table = np.full((num_slots, -(-max_context // page_size)), -1, np.int64)
        self.last = np.full(num_slots, -1, np.int64)
        self.next_step = 1
        self.fail_at: set[int] = set()

    def launch(self, batch: StepBatch) -> StepResult:
        if batch.step in self.fail_at:
            self.fail_at.discard(batch.step)
            raise RuntimeError("the ghost was told to fail")
        self.page_table[batch.page_slots, batch.page_indices] = batch.pages
        tokens = batch.tokens.tolist()
        out, cursor = [], 0
        segments = zip(
            batch.slots.tolist(),
            batch.starts.tolist(),
            batch.lengths.tolist(),
            batch.chained.tolist(),
            batch.samples.tolist(),
            strict=True,
        )
        for slot, start, length, chained, samples in segments:
            if chained:
                inputs = [int(self.last[slot])]
            else:
                inputs, cursor = tokens[cursor : cursor + length], cursor + length
            value = self._write(slot, start, inputs)
            if samples:
                self.last[slot] = value % VOCABULARY
                out.append(value % VOCABULARY)
        assert cursor == len(tokens)
        return StepResult(batch.step, np.array(out, np.int32))

    def _write(self, slot: int, start: int, inputs: list[int]) -> int:
        value = self._read(slot, start - 1) if start else 0
        for position, token in enumerate(inputs, start):
            value = chain(value, token)
            self.store[self._page(slot, position), position % self.page_size] = value
        return value

    def _read(self, slot: int, position: int) -> int:
        value = int(self.store[self._page(slot, position), position % self.page_size])
        assert value >= 0, f"slot {slot} reads position {position}, which was never written"
        return value

    def _page(self, slot: int, position: int) -> int:
        page = int(self.page_table[slot, position // self.page_size])
        assert page >= 0, f"slot {slot} has no page for position {position}"
        return page

    def read_pages(self, pages: np.ndarray) -> np.ndarray:
        """uint8 [n, page_bytes]"""
        return self.store[pages].view(np.uint8)

    def write_pages(self, pages: np.ndarray, blocks: np.ndarray) -> None:
        """The inverse of `read_pages`."""
        self.store[pages] = np.ascontiguousarray(blocks).view(np.int64)

    def collect(self, launched: StepResult) -> StepResult:
        return launched

    def reset(self) -> None:
        self.store[:] = -1
        self.page_table[:] = -1
        self.last[:] = -1
