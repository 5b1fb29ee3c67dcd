"""Window pages that steps in flight read: none of them is taken by a later step. No trace tells of the second pool, and
a ghost, which computes a step at once, reads nothing late."""

from __future__ import annotations

from pawl.loops.batch import ScheduledBatch
from pawl.loops.loop import Loop
from pawl.memory.window_pool import WindowPool


class WindowsInFlight:
    """Of one loop."""

    def __init__(self) -> None:
        self._read: dict[int, set[int]] = {}
        """Step that was in flight when the last one was launched -> window pages that it reads or writes."""

    def launched(self, loop: Loop, scheduled: ScheduledBatch) -> str:
        """A step is launched. What is wrong with what it takes; empty: nothing."""
        windows, batch = loop.memory.windows, scheduled.batch
        if not isinstance(windows, WindowPool) or batch.window_pages is None:
            return ""
        in_flight = {each.step for each in loop.in_flight} - {scheduled.step}
        self._read = {step: pages for step, pages in self._read.items() if step in in_flight}
        starts = dict(zip(batch.slots.tolist(), batch.starts.tolist(), strict=True))
        entries = zip(batch.page_slots.tolist(), batch.page_indices.tolist(), batch.window_pages.tolist(), strict=True)
        # What lies before a row's first position here is the cache's, and is shared.
        taken = {page for slot, at, page in entries if at * windows.page_size >= starts.get(slot, 1 << 62)}
        wrong = [(step, page) for step, pages in self._read.items() for page in sorted(taken & pages)]
        self._read[scheduled.step] = {
            page
            for slot, start in starts.items()
            for page in windows.partners.living(loop.memory.page_table.row(slot)[_first(windows, start) :]).tolist()
        }
        if not wrong:
            return ""
        step, page = wrong[0]
        return f"step {scheduled.step} takes window page {page}, which step {step}, in flight, may still read"


def _first(windows: WindowPool, start: int) -> int:
    """Index of the first page that a query at this position reads."""
    return max(start // windows.page_size - windows.behind, 0)
