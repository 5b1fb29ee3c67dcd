"""What goes into the next step. A planner fills the step's builder from the queues, inside its transaction."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pawl.lifecycle.requests import NOT_ADMITTED
from pawl.lifecycle.states import Cause
from pawl.loops.admission import Admission, next_chunk
from pawl.loops.batch import BatchBuilder, GaveWay
from pawl.loops.limits import LimitKeeper
from pawl.loops.pacing import Pacing
from pawl.loops.queues import Queues
from pawl.loops.speculation import Drafter
from pawl.memory.arrays import Indices, Int32s
from pawl.memory.violation import MemoryViolation

MOST_BEHIND = 2
"""Steps with prompts running in which the prompt that began first may be behind another: a third of them are its own,
so that it takes no more than three times as long as if there were no others."""


class Planner(Protocol):
    """UnifiedPlanner, Prefill or Decode serving."""

    name: str
    lookahead: int
    """Output tokens beyond the known ones to which those at work are promised pages when somebody is admitted."""
    max_step_s: float | None
    """How long prompts may make a step beside requests that decode; None: as long as they do."""

    def plan(self, builder: BatchBuilder) -> None:
        """Add this step's segments. An empty builder means there is nothing to do now."""


class UnifiedPlanner:
    """Prefill and decode on the same workers.

    mixed: decoding requests go on while prompts are computed, in one batch. Otherwise prompts come first and decoding
    requests wait for them, as in SGLang's default loop. Where nobody waits and no prompt is under way, decoding
    requests may have drafts. A step with both takes about `max_step_s` at the most, or prompts are a page.

    Of prompts, the one with least left goes first, and so do requests that wait and have less to compute than all that
    have begun. But after `MOST_BEHIND` steps in which the one that began first was behind another, they go by age.
    Where there are no pages for one, only older ones may have some.
    """

    name = "unified"

    def __init__(
        self,
        queues: Queues,
        admission: Admission,
        limits: LimitKeeper,
        *,
        pacing: Pacing,
        mixed: bool,
        max_step_s: float | None,
        drafter: Drafter | None = None,
    ) -> None:
        """Without a `drafter` there are no drafts."""
        self.queues = queues
        self.drafter = drafter
        self.admission = admission
        self.lookahead = admission.lookahead
        self.limits = limits
        self.pacing = pacing
        self.mixed = mixed
        self.max_step_s = max_step_s

    def plan(self, builder: BatchBuilder) -> None:
        if self.mixed:
            self._decode(builder)
            self._prefill(builder)
        else:
            self._prefill(builder)
            if builder.empty:
                self._decode(builder)

    def _prefill(self, builder: BatchBuilder) -> None:
        if not self.queues.prefilling and not self.queues.num_waiting:
            return
        budget = self.budget(len(builder.decode_rows))
        order, youngest = self.queues.table.order, NOT_ADMITTED
        rows = sorted(self.queues.prefilling, key=order.__getitem__)
        builder.oldest_prompt = rows[0] if rows else None
        shortest_first = self.queues.behind < MOST_BEHIND
        if shortest_first:
            rows.sort(key=self.admission.left_of)
        for row in rows:
            if order[row] > youngest:
                continue
            if shortest_first and not builder.short:
                budget = self.admission.admit(builder, budget, self.admission.left_of(row))
            if budget <= 0:
                return
            left = self._continue(builder, row, budget)
            if left is None:
                builder.short, youngest = True, int(order[row])
            else:
                budget = left
        if not builder.short:
            self.admission.admit(builder, budget)

    def budget(self, decoding: int) -> int:
        """Prompt tokens that the next step may compute beside so many requests that decode."""
        limits, queues = self.limits, self.queues
        chunk, page_size = limits.now.prefill_chunk, queues.memory.page_size
        return limits.times.prompt_tokens(decoding, queues.num_waiting, self.max_step_s, chunk, page_size)

    def _continue(self, builder: BatchBuilder, row: int, budget: int) -> int | None:
        """The next chunk of a prompt that has begun; what is left of `budget`. None: there are no pages for it."""
        queues, page_table = self.queues, self.queues.memory.page_table
        slot = int(queues.table.slot[row])
        segment = next_chunk(row, slot, int(page_table.length[slot]), queues, budget)
        if segment is None:
            return budget
        first = int(page_table.num_pages[slot])
        if queues.memory.extend_slot(builder.transaction, slot, segment.start + segment.length) is None:
            return None
        builder.prefill(segment, page_table.entries(slot, first))
        return budget - segment.length

    def _decode(self, builder: BatchBuilder) -> None:
        """One token for each decoding request of the next micro-batch that can still have one."""
        queues, table, memory = self.queues, self.queues.table, self.queues.memory
        everybody = queues.decoding
        if not len(everybody):
            return
        slots = table.slot[everybody]
        starts = memory.page_table.length[slots]
        more = starts < table.max_length[everybody]
        if 0 in more.tobytes():
            everybody = everybody[more]
        rows = self.pacing.micro_batch(everybody, builder.ahead)
        if not len(rows):
            return
        if len(rows) < len(slots):
            slots = table.slot[rows]
            starts = memory.page_table.length[slots]
        if self._speculate(builder, rows, slots, starts):
            return
        entries = memory.advance(builder.transaction, slots, starts)
        if entries is None:
            rows = self.pacing.micro_batch(self._squeeze(builder, everybody), builder.ahead)
            if not len(rows):
                return
            slots = table.slot[rows]
            starts = memory.page_table.length[slots]
            entries = memory.advance(builder.transaction, slots, starts)
            if entries is None:
                raise MemoryViolation("room that was made for rows is theirs", slots=slots)
        builder.decode(rows, slots, starts, entries)

    def _speculate(self, builder: BatchBuilder, rows: Indices, slots: Indices, starts: Int32s) -> bool:
        """The same with drafts, if there are some and pages for them."""
        queues, memory = self.queues, self.queues.memory
        if self.drafter is None or queues.prefilling or queues.num_waiting:
            return False
        drafts = self.drafter.draft(rows, starts)
        if drafts is None:
            return False
        ends = starts + drafts.lengths
        memory.make_room(int(memory.demand(slots, ends).sum()))
        entries = memory.extend(builder.transaction, slots, ends)
        if entries is None:
            return False
        builder.decode(rows, slots, starts, entries, drafts)
        return True

    def _squeeze(self, builder: BatchBuilder, rows: Indices) -> Indices:
        """Pages ran short: promise them anew, the oldest request first, to what each needs to take its next step, and
        retract the youngest until that is enough. Those of `rows` that can go on now.

        Pages that a step in flight may touch come free when it is resolved; rows that need those wait.
        """
        queues, memory = self.queues, self.queues.memory
        while True:
            running = queues.oldest_first()
            short = memory.renew(queues.table.slot[running], self._next_lengths(running))
            if not short or len(running) == 1:
                return self._able(rows)
            victim = int(running[-1])
            attempt = int(queues.table.attempt[victim])
            builder.retracted.append(GaveWay(victim, queues.table.state_of(victim), attempt))
            queues.retract(victim, Cause.MEMORY)
            rows = rows[rows != victim]
            if not len(rows):
                return rows

    def _next_lengths(self, rows: Indices) -> Int32s:
        """What each row must reach to go on: its known tokens, and one more where those are computed."""
        table = self.queues.table
        next_lengths = np.maximum(self.queues.memory.page_table.length[table.slot[rows]] + 1, table.num_tokens[rows])
        return np.minimum(next_lengths, table.max_length[rows], dtype=np.int32)

    def _able(self, rows: Indices) -> Indices:
        """Those decoding `rows` whose next page is promised to them and free; older requests choose first."""
        table, memory = self.queues.table, self.queues.memory
        oldest_first = rows[np.argsort(table.order[rows], kind="stable")]
        slots = table.slot[oldest_first]
        able = oldest_first[memory.affordable(slots, memory.page_table.length[slots] + 1)]
        return rows[np.isin(rows, able)]
