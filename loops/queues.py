"""What is waiting and what is running: the sets that planning draws from. Owned by the loop, changed by few verbs.

    queue ──► retracted? no: admit ──► prefilling ──last chunk planned──► decoding ──► (gone)
                 ▲                          │                                │
                 └─ retracted ◄─────────────┴───────── retract ──────────────┘

`prefilling` and `decoding` are about planning, not states: a request whose last chunk is in flight is planned as
decoding while its state is still PREFILLING (overlap).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from pawl.lifecycle.machine import WAITING
from pawl.lifecycle.requests import NOT_ADMITTED, RequestTable
from pawl.lifecycle.states import Cause, Event, State
from pawl.memory.arrays import Indices, Int32s
from pawl.memory.memory import Memory
from pawl.memory.transaction import Transaction

_ON_THE_WAY = [int(state) for state in (State.QUEUED_FETCHING, State.QUEUED_RESERVING, State.QUEUED_RECEIVING)]
# numpy compares with a number four times as fast as with an enumeration.
_QUEUED, _PREFILLING, _DECODING = int(State.QUEUED), int(State.PREFILLING), int(State.DECODING)


class Queues:
    """Live requests by what the planner does with them next."""

    def __init__(self, table: RequestTable, memory: Memory) -> None:
        self.table = table
        self.memory = memory
        self.waiting: dict[int, None] = {}
        """Rows never admitted, in arrival order."""
        self.retracted: list[int] = []
        """Rows that lost their memory; admitted before the queue, in the order of their first admission."""
        self.prefilling: dict[int, None] = {}
        """Rows with known tokens that no step computes yet, in order of admission."""
        self.decoding: Indices = np.empty(0, np.intp)
        """Rows all of whose known tokens are computed or in flight. Through several stages: in the order of their
        turns."""
        self.behind = 0
        """Steps with prompts running in which the prompt that began first was behind another."""
        self._admissions = 0

    # ---- views ----

    @property
    def num_running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.retracted)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.retracted or self.prefilling or len(self.decoding))

    @property
    def owns_nothing(self) -> bool:
        """Nobody runs, and nobody who waits has its prefix on the way, from a lower cache tier or a prefill replica."""
        waiting = [*self.waiting, *self.retracted]
        return not self.num_running and not np.isin(self.table.state[waiting], _ON_THE_WAY).any()

    def running(self) -> Indices:
        """Rows at work, [n]."""
        if not self.prefilling:
            return self.decoding
        return np.concatenate((self.decoding, np.fromiter(self.prefilling, np.intp, len(self.prefilling))))

    def uncommitted(self) -> Iterator[int]:
        """Rows whose prompt is not all committed, in no particular order of admission."""
        yield from self.prefilling
        yield from self.decoding[self.table.state[self.decoding] == _PREFILLING].tolist()

    def oldest_first(self) -> Indices:
        """Rows at work by first admission; the first is protected from retraction."""
        rows = self.running()
        return rows[np.argsort(self.table.order[rows], kind="stable")]

    def admissible(self, rows: Collection[int]) -> list[int]:
        """Those waiting `rows` that wait for nothing but room. The others keep their places, and let these go first."""
        waiting = np.fromiter(rows, np.intp, len(rows))
        states = self.table.state[waiting]
        if states.tobytes().count(_QUEUED) == len(rows):  # nearly always
            return list(rows)
        admissible: list[int] = waiting[states == _QUEUED].tolist()
        return admissible

    @property
    def held_up(self) -> bool:
        """Whether a request waits for something other than room: for its prefix from a lower cache tier, say."""
        waiting = (*self.waiting, *self.retracted)
        return len(self.admissible(waiting)) < len(waiting)

    def cached_pages(self, row: int) -> Int32s:
        """Pages that the prefix cache has for a waiting request now."""
        tokens = self.table.known(row)[:-1]
        hold = self.memory.cache.match_and_hold(tokens, self.table.info(row).namespace)
        pages = hold.pages
        self.memory.cache.release(hold, self.memory.ledger.resolved, used=False)
        return pages

    # ---- verbs of planning: undoable ----

    def admitted(self, transaction: Transaction, row: int, slot: int, num_cached: int) -> None:
        """The row starts to work on `slot`, whose first `num_cached` positions are there already."""
        table = self.table
        table.place(row)
        table.slot[row] = slot
        table.num_computed[row] = num_cached
        table.move(row, Event.ADMIT)
        queued = row in self.waiting
        transaction.log(self._unadmitted, row, queued)
        if queued:
            del self.waiting[row]
            table.order[row] = self._admissions
            self._admissions += 1
        else:
            self.retracted.remove(row)
        self.prefilling[row] = None

    def _unadmitted(self, row: int, was_queued: bool) -> None:
        # Void for a request that left while its step was in flight.
        if self.table.state[row] == _PREFILLING:
            self.table.undo(row, State.QUEUED)
            self.drop(row)
            if was_queued:
                self.table.order[row] = NOT_ADMITTED
                # In its place: behind those that came earlier and were passed over.
                arrival = {row: at for at, row in enumerate(self.table.row_of.values())}
                self.waiting = dict.fromkeys(sorted((row, *self.waiting), key=arrival.__getitem__))
            else:
                self._requeue(row)

    def prompts_planned(self, rows: Sequence[int]) -> None:
        """The last known tokens of these rows are in this step: from the next one on they decode."""
        for row in rows:
            del self.prefilling[row]
        if rows:
            self.decoding = np.concatenate((self.decoding, np.array(rows, np.intp)))

    def had_turns(self, rows: Indices) -> None:
        """These decoding rows are in the step that is launched: behind all others they wait for their next."""
        if len(rows) < len(self.decoding):
            self.decoding = np.concatenate((self.decoding[~np.isin(self.decoding, rows)], rows))

    # ---- verbs that are final ----

    def drop(self, row: int) -> None:
        """Forget where the row stands, wherever that is."""
        if row in self.prefilling:
            del self.prefilling[row]
        elif row in self.waiting:
            del self.waiting[row]
        elif row in self.retracted:
            self.retracted.remove(row)
        else:
            self.decoding = self.decoding[self.decoding != row]

    def retract(self, row: int, cause: Cause) -> State:
        """Take the row's memory away; it starts again from its known tokens when there is room. The state it had."""
        table = self.table
        source = table.state_of(row)
        if cause is not Cause.WEIGHTS:  # what other weights have computed is of no use to anybody
            self.keep_prefix(row)
        table.move(row, Event.RETRACT, cause)
        table.attempt[row] += 1
        table.info(row).num_retractions += 1
        self.memory.release(int(table.slot[row]))
        self.drop(row)
        self._requeue(row)
        return source

    def keep_prefix(self, row: int) -> None:
        """Offer the row's committed pages to the prefix cache."""
        table = self.table
        committed = table.num_tokens[row] - 1 if table.state[row] == _DECODING else table.num_computed[row]
        self.share_prefix(row, committed)

    def share_prefix(self, row: int, committed: int) -> None:
        """Offer the pages of the row's first `committed` positions to the prefix cache."""
        table = self.table
        namespace, priority = table.info(row).namespace, table.priority.item(row)
        self.memory.share_prefix(table.slot.item(row), table.tokens[row, :committed], namespace, priority)

    def rebuild(self) -> None:
        """Nobody runs: put every live request where its state says that it waits."""
        table = self.table
        rows = table.live_rows().tolist()
        admitted = {row for row in rows if table.order[row] != NOT_ADMITTED}
        self.waiting = {row: None for row in rows if row not in admitted and table.state[row] != State.NEW}
        self.retracted = sorted(admitted, key=table.order.__getitem__)
        self.prefilling, self.decoding = {}, np.empty(0, np.int32)

    def _requeue(self, row: int) -> None:
        self.retracted.append(row)
        self.retracted.sort(key=lambda other: int(self.table.order[other]))

    def check(self, rows: Iterable[int]) -> None:
        """Self-check: every row is in exactly one set, the one its state allows."""
        decoding = self.decoding.tolist()
        everywhere = [*self.waiting, *self.retracted, *self.prefilling, *decoding]
        if sorted(everywhere) != sorted(rows):
            raise AssertionError(f"live rows {sorted(rows)} are not the rows at hand {sorted(everywhere)}")
        for row in (*self.waiting, *self.retracted):
            if self.table.state_of(row) not in WAITING:
                raise AssertionError(f"row {row} waits in state {self.table.state_of(row).name}")
        for row in (*self.prefilling, *decoding):
            if int(self.table.state[row]) not in (_PREFILLING, _DECODING):
                raise AssertionError(f"row {row} runs in state {self.table.state_of(row).name}")
