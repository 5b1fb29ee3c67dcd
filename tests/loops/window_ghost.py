"""A ghost worker with a second store, as a hybrid model has it: window pages that are wrong or gone are noticed."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lifecycle.step import StepBatch, StepResult
from tests.loops.driver import Driver
from tests.loops.ghost import Ghost

Int64s: TypeAlias = NDArray[np.int64]


class WindowGhost(Ghost):
    """Writes every entry to both stores, and before it computes a position reads the window before it in both.

    The store of full pages is checked by the tokens it leads to, so what the window store says must be equal.
    """

    def __init__(self, *, num_window_pages: int, window: int, **sizes: int) -> None:
        super().__init__(**sizes)
        self.window = window
        self.window_store = np.full((num_window_pages, self.page_size), -1, np.int64)
        self.window_table = np.full_like(self.page_table, -1)
        self.checked = 0
        """Entries read from the window store."""

    def launch(self, batch: StepBatch) -> StepResult:
        assert batch.window_pages is not None
        assert len(batch.window_pages) == len(batch.pages)
        if batch.step not in self.fail_at:
            self.window_table[batch.page_slots, batch.page_indices] = batch.window_pages
        return super().launch(batch)

    def _write(self, slot: int, start: int, inputs: list[int]) -> int:
        for position in range(start, start + len(inputs)):
            # One token at a time: within a chunk, too, a query reads only its window.
            self._read_window(slot, position, start)
        value = super()._write(slot, start, inputs)
        written = np.arange(start, start + len(inputs))
        self.window_store[self._window_pages(slot, written), written % self.page_size] = self._full(slot, written)
        self._read_window(slot, start + len(inputs), start + len(inputs))
        return value

    def _read_window(self, slot: int, query: int, known: int) -> None:
        """The window of `query`, as far as it reaches back before `known`."""
        read = np.arange(max(query - self.window + 1, 0), known)
        pages = self._window_pages(slot, read)
        assert (self.window_store[pages, read % self.page_size] == self._full(slot, read)).all(), (
            f"slot {slot}: the query at {query} reads a window page that is not its own"
        )
        self.checked += len(read)

    def _full(self, slot: int, positions: Int64s) -> Int64s:
        values: Int64s = self.store[self.page_table[slot, positions // self.page_size], positions % self.page_size]
        return values

    def _window_pages(self, slot: int, positions: Int64s) -> Int64s:
        pages: Int64s = self.window_table[slot, positions // self.page_size]
        assert (pages >= 0).all(), f"slot {slot} has no window page for some of positions {positions}"
        return pages

    def reset(self) -> None:
        super().reset()
        self.window_store[:] = -1
        self.window_table[:] = -1


def window_driver(*, window: int, num_window_pages: int, **overrides: object) -> Driver:
    """A driver whose memory has two pools and whose ghost has two stores."""
    driver = Driver(window=window, num_window_pages=num_window_pages, **overrides)
    driver.ghost = WindowGhost(
        num_window_pages=num_window_pages,
        window=window,
        num_pages=driver.config.num_pages,
        page_size=driver.config.page_size,
        num_slots=driver.config.max_running,
        max_context=driver.config.max_context,
    )
    return driver
