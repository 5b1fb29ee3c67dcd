"""Who starts next, and whether it fits: escrow admission with a savepoint for each request that is tried.

A request is admitted only when, after everything that runs has been promised the pages to reach its next safe point,
the pool can still promise as much to it. Safe points: a prefilling request's whole prompt plus a little output; a
decoding request's next `lookahead` tokens; for the oldest running request all that it may ever need. So prompts do not
stop half-way for newcomers, retractions are rare, and the oldest request always ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from pawl.lifecycle.limits import Limits
from pawl.loops.adapters import Adapters
from pawl.loops.batch import BatchBuilder, PrefillSegment
from pawl.loops.policy import HighestPriority, Policy, PolicyFailed
from pawl.loops.queues import Queues
from pawl.memory.arrays import Int32s
from pawl.memory.partners import NO_PAGE

MAX_PASSED_OVER = 32
"""Requests that may be passed over in one step because a running request is computing their prefix right now."""


Left: TypeAlias = tuple[int, int]
"""Tokens of a prompt that are not computed, behind the priority of its request where admission is by that. Less goes
first."""


PrefixKey: TypeAlias = tuple[str, int, bytes]
"""The next page that a request would compute: its namespace, the cached page before it, which stands in one place of
the cache (NO_PAGE for the first of a prompt), and its tokens. Two requests with equal keys would compute the same page.
"""


class Admission:
    """Fills a builder with new requests while budget, slots and memory last."""

    def __init__(
        self,
        queues: Queues,
        policy: Policy,
        limits: Limits,
        *,
        lookahead: int,
        share_prefixes: bool,
        adapters: Adapters | None = None,
    ) -> None:
        self.queues = queues
        self.adapters = adapters
        self.lookahead = lookahead
        self.policy = policy
        self.limits = limits
        self.share_prefixes = share_prefixes
        """Whether what one request computes can serve another: then it is worth waiting for."""

    def left_of(self, row: int) -> Left:
        """What is left of a prompt that has begun."""
        return self._left(row, self.queues.memory.page_table.length.item(self.queues.table.slot.item(row)))

    def _left(self, row: int, num_computed: int) -> Left:
        table = self.queues.table
        urgency = table.priority.item(row) if self.policy.name == HighestPriority.name else 0
        return -urgency, table.num_tokens.item(row) - num_computed

    def admit(self, builder: BatchBuilder, budget: int, before: Left | None = None) -> int:
        """Admit requests whose chunks fit `budget` prompt tokens, up to the first that has not less left than `before`
        where that is given; what is left of `budget`."""
        queues = self.queues
        if not queues.num_waiting or budget <= 0 or self._full():
            return budget
        self._renew_promises()
        computing = self._computing()
        passed_over = 0
        for row in self._candidates():
            savepoint, builder.trying = builder.transaction.savepoint(), row
            outcome = self._try(builder, row, budget, computing, before)
            if not outcome:
                builder.transaction.rollback(savepoint)
                builder.trying = None  # it has no part in what may fail from here on
                passed_over += 1
                if outcome is None or passed_over == MAX_PASSED_OVER:
                    break
                continue
            budget -= outcome
            if budget <= 0 or self._full():
                break
        return budget

    def _full(self) -> bool:
        """Nobody else may run now."""
        return not self.queues.memory.slots.free or self.queues.num_running >= self.limits.max_running

    def _candidates(self) -> Iterator[int]:
        """Retracted requests first, in their old order: an admitted request is never overtaken by an admission."""
        queues = self.queues
        yield from queues.admissible(queues.retracted)
        waiting = queues.admissible(queues.waiting)
        if waiting:
            try:
                ordered = list(self.policy.order(waiting, queues))
            except Exception as error:
                raise PolicyFailed(self.policy.name, waiting) from error
            yield from ordered

    def _try(
        self, builder: BatchBuilder, row: int, budget: int, computing: set[PrefixKey], before: Left | None
    ) -> int | None:
        """Tokens of the row's first chunk; 0: wait for a prefix being computed; None: does not fit, or begin, now. The
        page that an admitted row computes next is added to `computing`.

        Everything taken is in the transaction; the caller rolls back what did not end in an admission.
        """
        queues, memory, table = self.queues, self.queues.memory, self.queues.table
        info, known = table.info(row), table.known(row)
        num_tokens = len(known)
        granted = memory.admit(
            builder.transaction,
            known,
            info.namespace,
            use_cache=not info.sampling.needs_whole_prompt,
            priority=table.priority.item(row),
        )
        if granted is None:
            return None
        page = self._page_after(known, info.namespace, *granted) if self.share_prefixes else None
        if page in computing and not info.sampling.needs_whole_prompt:
            return 0
        if before is not None and self._left(row, granted.num_cached) >= before:
            return None
        reach = min(table.max_length.item(row), num_tokens + self.lookahead)
        if not memory.promise(granted.slot, reach):
            return None
        segment = next_chunk(row, granted.slot, granted.num_cached, queues, budget)
        if segment is None:
            return None
        if memory.extend_slot(builder.transaction, granted.slot, segment.start + segment.length) is None:
            return None
        queues.admitted(builder.transaction, row, granted.slot, granted.num_cached)
        builder.admit(row, granted.slot, 0 if self.adapters is None else self.adapters.slot_of(info.namespace))
        builder.prefill(segment, memory.page_table.entries(granted.slot))
        if page is not None:
            computing.add(page)
        info.num_cached = info.num_cached if info.num_retractions else min(granted.num_cached, info.most_cached)
        return segment.length

    def _computing(self) -> set[PrefixKey]:
        """The pages that running requests compute next."""
        if not self.share_prefixes:
            return set()
        return {key for row in self.queues.uncommitted() if (key := self._next_page(row)) is not None}

    def _renew_promises(self) -> None:
        """Promise running requests the pages to their next safe points, the oldest first."""
        queues, table = self.queues, self.queues.table
        rows = queues.oldest_first()
        if not len(rows):
            return
        reach = np.minimum(table.max_length[rows], table.num_tokens[rows] + self.lookahead)
        reach[0] = table.max_length[rows[0]]
        queues.memory.renew(table.slot[rows], reach)

    def _next_page(self, row: int) -> PrefixKey | None:
        """The page that a running, not yet committed request computes next."""
        slot = self.queues.table.slot.item(row)
        hold = self.queues.memory.page_table.holds[slot]
        known, namespace = self.queues.table.known(row), self.queues.table.info(row).namespace
        return self._page_after(known, namespace, slot, hold.num_tokens if hold is not None else 0)

    def _page_after(self, known: Int32s, namespace: str, slot: int, num_cached: int) -> PrefixKey | None:
        """The page after the cached ones, with which a request begins on its slot; None where no whole page follows."""
        memory = self.queues.memory
        size = memory.page_size
        if num_cached + size >= len(known):
            return None
        parent = memory.page_table.pages.item(slot, num_cached // size - 1) if num_cached else NO_PAGE
        return namespace, parent, known[num_cached : num_cached + size].tobytes()


def next_chunk(row: int, slot: int, start: int, queues: Queues, budget: int) -> PrefillSegment | None:
    """The next chunk of a prompt within `budget` tokens; None when the budget is too small to reach a page's end.

    Chunks end at multiples of the page size or at the last known token, so that where a prompt is cut does not depend
    on what else is in the step, and every full page can be shared at once.
    """
    table = queues.table
    target = table.num_tokens.item(row)
    end = min(target, start + budget)
    if end < target:
        end -= end % queues.memory.page_size
        if end <= start:
            return None
    last = end == target
    wants_output = table.max_tokens.item(row) > target or table.num_prompt.item(row) < target
    return PrefillSegment(row, slot, start, end - start, last, last and wants_output)
