"""The ghost's memory in plain integers: answers and faults of `pawl.gpu.ghost.memory`, quicker for short steps.

A simulated run makes thousands of steps of one to ten tokens, where a numpy call costs more than the arithmetic in it.
Entries are those of `pawl.gpu.ghost.store`; window pages are not kept here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from pawl.gpu.ghost.language import likeliest
from pawl.gpu.ghost.memory import NEW, OUTDATED, Computed, GhostMemory, Salts, fault_at, not_there
from pawl.gpu.ragged import ragged_positions
from pawl.gpu.sampling.mixing import mix64
from pawl.lifecycle.step import Int32s, StepBatch
from pawl.memory.partners import NO_PAGE

_POSITION_BITS = 32
_WORD = (1 << 64) - 1


@lru_cache(maxsize=1 << 16)
def _mixed(word: int) -> int:
    """`mix64` of one word. The same words come again under every schedule of a workload."""
    return int(mix64(np.array([word], np.uint64))[0])


@lru_cache(maxsize=1 << 16)
def likeliest_after(total: int, token: int) -> int:
    """The likeliest token of a row that has read `total` and was fed `token` last."""
    states = np.array([_mixed(total)], np.uint64)
    return int(likeliest(states, np.array([token], np.int32))[0])


class SmallMemory(GhostMemory):
    """Another body of the same memory, without stores that could be copied."""

    def __init__(self, *, num_pages: int, page_size: int, num_slots: int, max_context: int) -> None:
        self.page_size = page_size
        self.window = self.num_window_pages = None
        self._num_pages = num_pages
        self._num_slots = num_slots
        self._pages_per_slot = -(-max_context // page_size)
        self.salts = Salts(num_slots)
        self._empty()

    @property
    def num_pages(self) -> int:
        return self._num_pages

    @property
    def pages_per_slot(self) -> int:
        return self._pages_per_slot

    def clear(self) -> None:
        """Forget everything."""
        self._empty()

    def _empty(self) -> None:
        slots = range(self._num_slots)
        self.tags = [[0] * self.page_size for _ in range(self._num_pages)]
        self.prefixes = [[0] * self.page_size for _ in range(self._num_pages)]
        """Tags and prefixes of each page's entries."""
        self.rows = [[NO_PAGE] * self._pages_per_slot for _ in slots]
        self._lengths = [NEW for _ in slots]
        self._last_prefix = [0 for _ in slots]
        self._totals = [0 for _ in slots]

    def exchange(self, salt: int) -> None:
        """Compute with other weights."""
        self.salts.weights = salt
        self._outdate(range(self._num_slots))

    def _outdate(self, slots: Iterable[int]) -> None:
        for slot in slots:
            if self._lengths[slot] != NEW:
                self._lengths[slot] = OUTDATED

    def take(self, batch: StepBatch) -> None:
        """What a checked batch says about page tables and newcomers. Raises GhostFault."""
        places = zip(batch.page_slots.tolist(), batch.page_indices.tolist(), batch.pages.tolist(), strict=True)
        for slot, index, page in places:
            self.rows[slot][index] = page
        self.salts.admit(batch)
        for admission in batch.admitted:
            self._lengths[admission.slot] = NEW

    def compute(self, batch: StepBatch, tokens: Int32s, offsets: Int32s) -> Computed:
        """Write and read the segments of a batch. Raises GhostFault; then only `clear` makes sense of the slots."""
        states = [_mixed(total) for sums in self.sums(batch, tokens.tolist()) for total in sums]
        positions = ragged_positions(batch.starts, batch.lengths, offsets)
        return Computed(offsets, positions, tokens, np.array(states, np.uint64))

    def sums(self, batch: StepBatch, tokens: list[int]) -> list[list[int]]:
        """The same in fewer words: for each segment the sum of prefixes up to each of its positions, of which a hash is
        the state there."""
        slots, starts, lengths = batch.slots.tolist(), batch.starts.tolist(), batch.lengths.tolist()
        self._welcome(batch, slots, starts)
        totals = self._enter(batch, slots, starts, lengths, tokens)
        read = [
            self._look_over(batch, segment, slot, start + length)
            for segment, (slot, start, length) in enumerate(zip(slots, starts, lengths, strict=True))
        ]
        for segment, slot in enumerate(slots):
            if read[segment] != totals[segment][-1]:
                end = starts[segment] + lengths[segment]
                position = self._first_break(batch, segment, slot, end)
                reason = "what is read is not what the slot has computed"
                raise fault_at(batch, segment, end - 1 if position is None else position, reason)
            self._lengths[slot] = starts[segment] + lengths[segment]
            self._totals[slot] = read[segment]
        return totals

    def _welcome(self, batch: StepBatch, slots: list[int], starts: list[int]) -> None:
        """Newcomers find their prefix in the cache, whole; others go on where they were."""
        known = [self._lengths[slot] for slot in slots]
        for segment, slot in enumerate(slots):
            if known[segment] == NEW:
                self._last_prefix[slot], self._totals[slot] = self.salts.of_slot[slot], 0
                if starts[segment]:
                    self._adopt(batch, segment, slot, starts[segment])
        for segment, length in enumerate(known):
            if length not in (NEW, starts[segment]):
                raise fault_at(batch, segment, starts[segment], not_there(length))

    def rewind(self, batch: StepBatch, segment: int, length: int) -> None:
        """See `GhostMemory.rewind`."""
        slot = int(batch.slots[segment])
        self._adopt(batch, segment, slot, length)
        self._lengths[slot] = length

    def _adopt(self, batch: StepBatch, segment: int, slot: int, start: int) -> None:
        position = self._first_break(batch, segment, slot, start)
        if position is not None:
            raise fault_at(batch, segment, position, "the cached prefix is broken here")
        row, size = self.rows[slot], self.page_size
        prefixes = [self.prefixes[row[at // size]][at % size] for at in range(start)]
        self._last_prefix[slot], self._totals[slot] = prefixes[-1], sum(prefixes) & _WORD

    def _first_break(self, batch: StepBatch, segment: int, slot: int, count: int) -> int | None:
        """The first of a row's `count` entries that does not follow from those before it. Raises GhostFault where the
        row has no page."""
        row, size = self.rows[slot], self.page_size
        for at in range(count):
            if row[at // size] < 0:
                raise fault_at(batch, segment, at, "there is no page to read")
        prefix = self.salts.of_slot[slot]
        for at in range(count):
            page = row[at // size]
            prefix = (prefix + _mixed(self.tags[page][at % size])) & _WORD
            if prefix != self.prefixes[page][at % size]:
                return at
        return None

    def _enter(
        self, batch: StepBatch, slots: list[int], starts: list[int], lengths: list[int], tokens: list[int]
    ) -> list[list[int]]:
        """Enter all new positions; gives back, by segment, the sum of prefixes up to each of them."""
        size = self.page_size
        for segment, slot in enumerate(slots):
            row = self.rows[slot]
            for position in range(starts[segment], starts[segment] + lengths[segment]):
                if row[position // size] < 0:
                    raise fault_at(batch, segment, position, "there is no page to write to")
        totals, given = [], 0
        for segment, slot in enumerate(slots):
            row, prefix, total = self.rows[slot], self._last_prefix[slot], self._totals[slot]
            sums = []
            for position in range(starts[segment], starts[segment] + lengths[segment]):
                tag = (position + 1) << _POSITION_BITS | tokens[given]
                given += 1
                prefix = (prefix + _mixed(tag)) & _WORD
                total = (total + prefix) & _WORD
                page, offset = row[position // size], position % size
                self.tags[page][offset] = tag
                self.prefixes[page][offset] = prefix
                sums.append(total)
            self._last_prefix[slot] = prefix
            totals.append(sums)
        return totals

    def _look_over(self, batch: StepBatch, segment: int, slot: int, end: int) -> int:
        """Sum of the prefixes of all positions before `end`: every page of the row is looked at."""
        size, row, total = self.page_size, self.rows[slot], 0
        for index in range(-(-end // size)):
            page = row[index]
            if page < 0 or self.tags[page][0] >> _POSITION_BITS != index * size + 1:
                reason = "there is no page to read" if page < 0 else "the page begins with another position"
                raise fault_at(batch, segment, index * size, reason)
            entries = self.prefixes[page]
            used = end - index * size
            total += sum(entries if used >= size else entries[:used])
        return total & _WORD
