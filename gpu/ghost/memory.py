"""The ghost's memory: its page tables, and what each slot has computed. It writes, reads back, and checks.

Nothing here looks at how tokens are drawn; a batch comes with its input tokens resolved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pawl.gpu.ghost.store import GhostStore, first_break, tags_of
from pawl.gpu.ragged import ragged_offsets, ragged_positions
from pawl.gpu.sampling.mixing import UInt64s, mix64
from pawl.lifecycle.step import Int32s, StepBatch
from pawl.memory.partners import NO_PAGE

NEW = -1
"""Length of a slot whose request has not computed anything yet: where it begins is not known before its first step."""
OUTDATED = -2
"""Length of a slot that other weights, or another adapter, have computed."""
_WORD = (1 << 64) - 1


@dataclass(eq=False)
class Salts:
    """What each sequence's prefixes begin with: one number of the weights and of the adapter that compute it."""

    num_slots: int
    weights: int = 0
    adapters: dict[int, int] = field(default_factory=dict)
    """Of what is in each adapter slot, where something is."""

    def __post_init__(self) -> None:
        self.of_slot = [0] * self.num_slots
        self.adapter = [0] * self.num_slots
        """Adapter slot of the request in each slot."""

    def admit(self, batch: StepBatch) -> None:
        """Newcomers begin. Raises GhostFault where one's adapter is not there."""
        for admission in batch.admitted:
            slot, adapter = admission.slot, admission.adapter
            if adapter and adapter not in self.adapters:
                raise GhostFault(batch.step, slot, 0, f"there is no adapter in adapter slot {adapter}")
            self.adapter[slot] = adapter
            self.of_slot[slot] = (self.weights + self.adapters.get(adapter, 0)) & _WORD


class GhostFault(Exception):
    """Memory is not as the step needs it. The step gave nothing."""

    def __init__(self, step: int, slot: int, position: int, reason: str) -> None:
        super().__init__(f"step {step}: slot {slot}, position {position}: {reason}")
        self.step = step
        self.slot = slot
        self.position = position
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Computed:
    """What one step has written and read, by segment (s) and by position (t)."""

    offsets: Int32s
    """[s + 1], where each segment's positions begin."""
    positions: Int32s
    """[t]"""
    tokens: Int32s
    """[t], inputs."""
    states: UInt64s
    """[t], what each position has read."""

    @property
    def last_rows(self) -> Int32s:
        """[s], the last position of each segment."""
        return self.offsets[1:] - 1


class GhostMemory:
    """Pages, and window pages where `num_window_pages` says how many, for `num_slots` rows."""

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        max_context: int,
        window: int | None,
        num_window_pages: int | None,
    ) -> None:
        if (window is None) != (num_window_pages is None):
            raise ValueError("a window needs pages, and window pages need a window")
        self.page_size = page_size
        self.store = GhostStore(num_pages, page_size)
        self.page_table: Int32s = np.full((num_slots, -(-max_context // page_size)), NO_PAGE, np.int32)
        self.window = window
        self.num_window_pages = num_window_pages
        self.window_store = None if num_window_pages is None else GhostStore(num_window_pages, page_size)
        self.window_table = np.full_like(self.page_table, NO_PAGE)
        self.salts = Salts(num_slots)
        self.num_window_reads = 0
        """Window pages looked at so far."""
        self._length = np.full(num_slots, NEW, np.int32)
        self._prefix: UInt64s = np.zeros(num_slots, np.uint64)
        self._total: UInt64s = np.zeros(num_slots, np.uint64)
        """What each slot has computed: number of positions, last prefix, and sum of all prefixes."""

    @property
    def num_pages(self) -> int:
        return self.store.num_pages

    @property
    def pages_per_slot(self) -> int:
        return int(self.page_table.shape[1])

    def clear(self) -> None:
        """Forget everything. What is read from now on must have been written since."""
        for store in (self.store, self.window_store):
            if store is not None:
                store.clear()
        self.page_table[:] = NO_PAGE
        self.window_table[:] = NO_PAGE
        self._length[:] = NEW

    def exchange(self, salt: int) -> None:
        """Compute with other weights. What slots have computed with the old ones they cannot go on from, and what pages
        hold of them is broken."""
        self.salts.weights = salt
        self._outdate(range(len(self._length)))

    def place(self, adapter: int, salt: int | None) -> None:
        """Have an adapter with this salt in an adapter slot; None: nothing. What slots have computed with the one
        before they cannot go on from."""
        self.salts.adapters.pop(adapter, None)
        if salt is not None:
            self.salts.adapters[adapter] = salt
        self._outdate([slot for slot, its in enumerate(self.salts.adapter) if its == adapter])

    def _outdate(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if self._length[slot] != NEW:
                self._length[slot] = OUTDATED

    def take(self, batch: StepBatch) -> None:
        """What a checked batch says about page tables and newcomers. Raises GhostFault."""
        self.page_table[batch.page_slots, batch.page_indices] = batch.pages
        if batch.window_pages is not None:
            self.window_table[batch.page_slots, batch.page_indices] = batch.window_pages
        self.salts.admit(batch)
        for admission in batch.admitted:
            self._length[admission.slot] = NEW

    def compute(self, batch: StepBatch, tokens: Int32s, offsets: Int32s) -> Computed:
        """Write and read the segments of a batch that was taken; `tokens` [t] are its inputs, `offsets` [s + 1] where
        each segment's begin. Raises GhostFault; then only `clear` makes sense of the slots again."""
        slots, starts, ends = batch.slots, batch.starts, batch.starts + batch.lengths
        positions = ragged_positions(starts, batch.lengths, offsets)
        prefix, total = self._before(batch)
        tags = tags_of(positions, tokens)
        prefixes = _running_sums(mix64(tags), offsets, prefix)
        self._write(batch, positions, tags, prefixes)
        totals = _running_sums(prefixes, offsets, total)
        last_rows = offsets[1:] - 1
        read = self._read(batch, ends)
        wrong = np.flatnonzero(read != totals[last_rows])
        if len(wrong):
            raise self._diagnosis(batch, int(wrong[0]))
        self._length[slots] = ends
        self._prefix[slots] = prefixes[last_rows]
        self._total[slots] = read
        # The last position's state is what was read; those before it have read as much less as came after them.
        states = mix64(totals - np.repeat(totals[last_rows] - read, batch.lengths))
        return Computed(offsets, positions, tokens, states)

    def _before(self, batch: StepBatch) -> tuple[UInt64s, UInt64s]:
        """Last prefix and sum of prefixes before each segment, uint64 [s] each: what slots have written, and what new
        ones find in the cache."""
        slots, starts = batch.slots, batch.starts
        known = self._length[slots]
        for segment in np.flatnonzero(known == NEW).tolist():
            self._begin(batch, segment, int(starts[segment]))
        moved = np.flatnonzero((known != NEW) & (known != starts))
        if len(moved):
            segment = int(moved[0])
            raise fault_at(batch, segment, int(starts[segment]), not_there(int(known[segment])))
        return self._prefix[slots], self._total[slots]

    def rewind(self, batch: StepBatch, segment: int, length: int) -> None:
        """Of what a segment has computed, the slot keeps its first `length` positions. The others stay where they were
        written, as they do on a device."""
        self._begin(batch, segment, length)
        self._length[batch.slots[segment]] = length

    def _begin(self, batch: StepBatch, segment: int, length: int) -> None:
        """A slot goes on after `length` positions: every one of them must be there, and they form one sequence."""
        slot = int(batch.slots[segment])
        self._prefix[slot], self._total[slot] = self.salts.of_slot[slot], 0
        if not length:
            return
        entries = self._row_entries(batch, segment, length)
        position = first_break(entries, self.salts.of_slot[slot])
        if position is not None:
            raise fault_at(batch, segment, position, "the cached prefix is broken here")
        self._prefix[slot] = entries[-1, 1]
        self._total[slot] = entries[:, 1].sum()

    def _write(self, batch: StepBatch, positions: Int32s, tags: UInt64s, prefixes: UInt64s) -> None:
        slots = np.repeat(batch.slots, batch.lengths)
        indices = positions // self.page_size
        stores = [(self.store, self.page_table)]
        if self.window_store is not None:
            stores.append((self.window_store, self.window_table))
        for store, table in stores:
            pages = table[slots, indices]
            if pages.min() < 0:
                row = int(pages.argmin())
                segment = int(np.flatnonzero(batch.slots == slots[row])[0])
                raise fault_at(batch, segment, int(positions[row]), "there is no page to write to")
            store.write(pages, positions, tags, prefixes)

    def _read(self, batch: StepBatch, ends: Int32s) -> UInt64s:
        """Sum of the prefixes of all positions before `ends`, uint64 [s]: every page of every row is looked at."""
        page_size = self.page_size
        counts = -(-ends // page_size)
        offsets = ragged_offsets(counts)
        indices = ragged_positions(np.zeros_like(counts), counts, offsets)
        slots = np.repeat(batch.slots, counts)
        pages = self.page_table[slots, indices]
        held = pages >= 0
        placed = held & self.store.begin_at(pages, indices)
        if not placed.all():
            row = int(placed.argmin())
            segment = int(np.searchsorted(offsets, row, "right")) - 1
            reason = "the page begins with another position" if held[row] else "there is no page to read"
            raise fault_at(batch, segment, int(indices[row]) * page_size, reason)
        sums = self.store.sums[pages]
        last = offsets[1:] - 1
        sums[last] = self.store.partial_sums(pages[last], ends - indices[last] * page_size)
        if self.window_store is not None:
            self._read_windows(batch, ends, self.window_store)
        running = np.cumsum(sums, dtype=np.uint64)
        read: UInt64s = running[last] - running[offsets[:-1]] + sums[offsets[:-1]]
        return read

    def _read_windows(self, batch: StepBatch, ends: Int32s, store: GhostStore) -> None:
        """Window pages that the window of any position of a segment reaches hold what the row's full pages hold."""
        page_size, window = self.page_size, self.window or 0
        first = np.maximum(batch.starts - window + 1, 0) // page_size
        counts = -(-ends // page_size) - first
        offsets = ragged_offsets(counts)
        indices = ragged_positions(first, counts, offsets)
        slots = np.repeat(batch.slots, counts)
        pages, partners = self.page_table[slots, indices], self.window_table[slots, indices]
        self.num_window_reads += len(pages)
        used = np.minimum(np.repeat(ends, counts) - indices * page_size, page_size)
        held = partners >= 0
        # Sums of prefixes say which positions and tokens these are.
        right = held & (store.partial_sums(partners, used) == self.store.partial_sums(pages, used))
        if not right.all():
            row = int(right.argmin())
            segment = int(np.searchsorted(offsets, row, "right")) - 1
            reason = "the window page is not the row's own" if held[row] else "there is no window page to read"
            raise fault_at(batch, segment, int(indices[row]) * page_size, reason)

    def _row_entries(self, batch: StepBatch, segment: int, count: int) -> UInt64s:
        """The first `count` entries of a row, uint64 [count, 2]. Raises GhostFault where it has no page."""
        slot = int(batch.slots[segment])
        positions = np.arange(count, dtype=np.int32)
        pages = self.page_table[slot, positions // self.page_size]
        if pages.min() < 0:
            raise fault_at(batch, segment, int(pages.argmin()), "there is no page to read")
        return self.store.entries(pages, positions)

    def _diagnosis(self, batch: StepBatch, segment: int) -> GhostFault:
        """Where the row of a segment stops being what its slot has written."""
        end = int(batch.starts[segment] + batch.lengths[segment])
        salt = self.salts.of_slot[int(batch.slots[segment])]
        position = first_break(self._row_entries(batch, segment, end), salt)
        reason = "what is read is not what the slot has computed"
        return fault_at(batch, segment, end - 1 if position is None else position, reason)


def not_there(length: int) -> str:
    """Why a slot of this length cannot go on where a step wants it to."""
    if length == OUTDATED:
        return "other weights, or another adapter, have computed what the slot would go on from"
    return f"the slot has computed {length} positions so far"


def fault_at(batch: StepBatch, segment: int, position: int, reason: str) -> GhostFault:
    """What is wrong at `position` of a segment."""
    return GhostFault(batch.step, int(batch.slots[segment]), position, reason)


def _running_sums(values: UInt64s, offsets: Int32s, first: UInt64s) -> UInt64s:
    """Running sums of `values` [t] within each segment, beginning with `first` [s]; modulo 2^64."""
    running = np.cumsum(values, dtype=np.uint64)
    begins = offsets[:-1]
    before = running[begins] - values[begins] - first
    sums: UInt64s = running - np.repeat(before, np.diff(offsets))
    return sums
