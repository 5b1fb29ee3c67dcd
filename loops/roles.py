"""What goes into the next step. A role turns the work at hand into a draft, inside the step's transaction."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pawl.lifecycle.states import Cause
from pawl.loops.admission import Admission, next_chunk
from pawl.loops.batch import Draft
from pawl.loops.work import Work
from pawl.memory.pages import Int32s, MemoryViolation


class Role(Protocol):
    """Unified, Prefill or Decode serving."""

    name: str

    def plan(self, draft: Draft) -> None:
        """Add this step's segments. An empty draft means there is nothing to do now."""


class Unified:
    """Prefill and decode on the same workers.

    mixed: decoding requests go on while prompts are computed, in one batch. Otherwise prompts come first and decoding
    requests wait for them, as in SGLang's default loop.
    """

    name = "unified"

    def __init__(self, work: Work, admission: Admission, *, prefill_chunk: int, mixed: bool) -> None:
        self.work = work
        self.admission = admission
        self.prefill_chunk = prefill_chunk
        self.mixed = mixed

    def plan(self, draft: Draft) -> None:
        if self.mixed:
            self._decode(draft)
            self._prefill(draft)
        else:
            self._prefill(draft)
            if draft.empty:
                self._decode(draft)

    def _prefill(self, draft: Draft) -> None:
        budget = self.prefill_chunk
        if self.work.prefilling:
            budget = self._continue(draft, budget)
        if self.work.num_waiting:
            self.admission.admit(draft, budget)

    def _continue(self, draft: Draft, budget: int) -> int:
        """Next chunks of prompts that have begun, in order of first admission; what is left of `budget`."""
        work = self.work
        for row in sorted(work.prefilling, key=work.table.order.__getitem__):
            slot = int(work.table.slot[row])
            segment = next_chunk(row, slot, int(work.memory.length[slot]), work, budget)
            if segment is None:
                break
            entries = work.memory.extend_slot(draft.transaction, slot, segment.start + segment.length)
            if entries is None:
                break
            draft.prefill(segment, entries)
            if segment.last:
                work.prompt_planned(row)
            budget -= segment.length
            if budget <= 0:
                break
        return budget

    def _decode(self, draft: Draft) -> None:
        """One token for each decoding request that can still have one."""
        work, table, memory = self.work, self.work.table, self.work.memory
        rows = work.decoding
        if not len(rows):
            return
        slots = table.slot[rows]
        starts = memory.length[slots]
        more = starts < table.max_length[rows]
        if np.count_nonzero(more) < len(rows):
            rows, slots, starts = rows[more], slots[more], starts[more]
            if not len(rows):
                return
        entries = memory.extend(draft.transaction, slots, starts + 1)
        if entries is None:
            rows = self._squeeze(draft, rows)
            if not len(rows):
                return
            slots = table.slot[rows]
            starts = memory.length[slots]
            entries = memory.extend(draft.transaction, slots, starts + 1)
            if entries is None:
                raise MemoryViolation("room that was made for rows is theirs", slots=slots)
        draft.decode(rows, slots, starts, entries)

    def _squeeze(self, draft: Draft, rows: Int32s) -> Int32s:
        """Pages ran short: promise them anew, the oldest request first, to what each needs to take its next step, and
        retract the youngest until that is enough. Those of `rows` that can go on now.

        Pages that a step in flight may touch come free when it is resolved; rows that need those wait.
        """
        work, memory = self.work, self.work.memory
        while True:
            running = work.oldest_first()
            short = memory.renew(work.table.slot[running], self._next_lengths(running))
            if not short or len(running) == 1:
                return self._able(rows)
            victim = int(running[-1])
            draft.retracted.append((victim, work.retract(victim, Cause.MEMORY)))
            rows = rows[rows != victim]
            if not len(rows):
                return rows

    def _next_lengths(self, rows: Int32s) -> Int32s:
        """What each row must reach to go on: its known tokens, and one more where those are computed."""
        table = self.work.table
        next_lengths = np.maximum(self.work.memory.length[table.slot[rows]] + 1, table.num_tokens[rows])
        return np.minimum(next_lengths, table.max_length[rows], dtype=np.int32)

    def _able(self, rows: Int32s) -> Int32s:
        """Those decoding `rows` whose next page is promised to them and free; older requests choose first."""
        table, memory = self.work.table, self.work.memory
        oldest_first = rows[np.argsort(table.order[rows], kind="stable")]
        slots = table.slot[oldest_first]
        able = oldest_first[memory.affordable(slots, memory.length[slots] + 1)]
        return rows[np.isin(rows, able)]
