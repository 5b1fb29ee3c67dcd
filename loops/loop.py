"""The loop. Everything the engine decides, it decides in `turn`; everything it learns, it learns in `executed`.

    turn:      while pacing allows:  plan (OPEN) -> launch (PREPARED)
    executed:  commit the oldest step (tokens, transitions, finishes), or
    failed:    roll back every step in flight, newest first

One step is one memory transaction. Nothing here does I/O or reads a clock: time comes in as an argument, effects go
out through `Effects`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.lifecycle.states import Cause, Event, State
from pawl.lifecycle.step import StepResult
from pawl.loops.batch import BatchBuilder, ScheduledBatch
from pawl.loops.cache_events import CacheEventLog
from pawl.loops.companion import Companion
from pawl.loops.effects import Effects as Effects
from pawl.loops.effects import Ending as Ending
from pawl.loops.pacing import Pacing
from pawl.loops.planner import Planner
from pawl.loops.properties.laws import state_monitor
from pawl.loops.queues import Queues
from pawl.memory.memory import Memory
from pawl.memory.page_pool import Int32s, MemoryViolation

MAX_STRIKES = 2
"""Lost steps after which a request that was part of each of them is ended instead of tried again."""
Kind = TypeVar("Kind")
NOT_NUMBERS = "the model's scores for the next token are not finite numbers"
_NO_ROWS: Int32s = np.empty(0, np.int32)


class Counters(msgspec.Struct):
    """Totals since start."""

    received: int = 0
    finished: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    dropped_tokens: int = 0
    retractions: int = 0
    steps: int = 0
    steps_lost: int = 0
    by_cause: dict[str, int] = msgspec.field(default_factory=dict)


class Loop:
    """One replica's scheduler: requests in, steps out."""

    def __init__(
        self,
        table: RequestTable,
        memory: Memory,
        queues: Queues,
        planner: Planner,
        pacing: Pacing,
        effects: Effects,
        journal: Journal,
        *,
        max_queued: int,
        feed: CacheEventLog,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.table = table
        self.memory = memory
        self.queues = queues
        self.planner = planner
        self.pacing = pacing
        self.effects = effects
        self.journal = journal
        self.max_queued = max_queued
        self.feed = feed
        self.companions = tuple(companions)
        self.in_flight: deque[ScheduledBatch] = deque()
        self.monitor = state_monitor()
        self.counters = Counters()
        self.fresh_at_commit = np.empty(0, np.bool_)
        """Segments of the step committed last whose requests were still at work."""
        self._try_again = False
        """A plan has failed, and somebody has a strike for it: without them, or with the next, another may not."""

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is in flight."""
        return self.queues.idle and not self.in_flight

    def companion(self, kind: type[Kind]) -> Kind:
        """The companion of this class. Raises LookupError where there is none."""
        for companion in self.companions:
            if isinstance(companion, kind):
                return companion
        raise LookupError(f"the loop has no {kind.__name__}")

    # ---- the loop ----

    def turn(self, now: float) -> None:
        """Launch steps until pacing says to wait for results, or there is nothing to do."""
        for companion in self.companions:
            companion.turning()
        while len(self.in_flight) <= self.pacing.depth:
            plan = self._plan(now)
            if plan is None:
                if self.in_flight or not self._unblock(now):
                    for broken in self.monitor.settled(self):
                        self.effects.violated(broken)
                    return
                continue
            self.in_flight.append(plan)
            for row in plan.admitted:
                info = self.table.info(row)
                self.counters.cached_tokens += info.num_cached if not info.num_retractions else 0
            self.counters.steps += 1
            self.journal.planned(plan.batch, plan.rows, plan.admitted, self.table, now)
            for companion in self.companions:
                companion.launching(plan)
            self.effects.launch(plan)

    def _plan(self, now: float) -> ScheduledBatch | None:
        """Decide one step inside its transaction: OPEN -> PREPARED."""
        if self.queues.idle:
            return None
        for companion in self.companions:
            companion.planning(now)
        transaction = self.memory.ledger.begin()
        builder = BatchBuilder(transaction, self.table)
        failure: Exception | None = None
        try:
            self.planner.plan(builder)
        except (MemoryViolation, MemoryError) as error:
            failure = error
        for row, source in builder.retracted:
            self._retracted(row, source, Cause.MEMORY, now)
        if failure is not None:
            self._plan_failed(builder, failure, now)
            return None
        if builder.empty:
            self.memory.ledger.discard(transaction)
            self._check()
            self.journal.idled(now)
            return None
        plan = builder.close(self.memory)
        self.memory.ledger.prepare(transaction)
        return plan

    def _plan_failed(self, builder: BatchBuilder, error: Exception, now: float) -> None:
        """Planning broke a law, or ran out of host memory: nothing of the step remains, and who runs starts again from
        what it has. The request that was being tried, else those that ran, may be what does it: too often, and it
        ends."""
        self.memory.ledger.discard(builder.transaction)
        self.effects.violated(error if isinstance(error, MemoryViolation) else MemoryViolation(str(error)))
        self._check()
        running = self.queues.running().tolist()
        for row in running:
            self.retract(row, Cause.STEP_LOST, now)
        for row in running if builder.trying is None else [builder.trying]:
            self._try_again = True
            self._strike(row, Cause.INTERNAL, f"the request could not be planned: {error}", now)

    def _strike(self, row: int, cause: Cause, message: str, now: float) -> None:
        """The request was part of something that went wrong; too often, and it ends."""
        info = self.table.info(row)
        info.strikes += 1
        if info.strikes >= MAX_STRIKES:
            self._leave(row, Event.ABORT, cause, now, message=message)

    def _unblock(self, now: float) -> bool:
        """Nothing could be planned and nothing is in flight: if requests hold memory that each other needs, the
        youngest gives way. The oldest is never asked, so it always ends."""
        if self._try_again:
            self._try_again = False
            return True
        if self.queues.num_running < 2:
            return False
        self.retract(int(self.queues.oldest_first()[-1]), Cause.MEMORY, now)
        return True

    def executed(self, result: StepResult, now: float) -> None:
        """Commit the oldest step: apply its tokens, fire its transitions, give back what ended."""
        plan = self.in_flight.popleft()
        if plan.step != result.step:
            raise AssertionError(f"step {result.step} came back, step {plan.step} is the oldest in flight")
        for row in plan.left_without_token(result.unusable, self.table.attempt):
            self._leave(row, Event.ABORT, Cause.INTERNAL, now, message=NOT_NUMBERS)
        events, rows, tokens = self._apply(plan, result)
        self.effects.output(rows, tokens, plan, result)
        digest = self.memory.digest()
        self.journal.committed(plan.step, events, result.tokens, self.memory.pages, now, digest=digest)
        if plan.prefills:
            self._prefilled(plan, now)
        ended = self._ended(rows, tokens)
        for index in ended:
            self._finish(int(rows[index]), int(tokens[index]), now)
        self.memory.slide(plan.batch.slots, plan.batch.starts + plan.batch.lengths)
        self.memory.ledger.commit(plan.transaction)
        self._check()

    def failed(self, step: int, reason: str, now: float) -> None:
        """A worker lost `step`: roll back everything in flight, newest first; requests start again from what they
        have, except those that were part of too many lost steps."""
        lost = self.in_flight.popleft() if self.in_flight else None
        if lost is None or lost.step != step:
            raise AssertionError(f"step {step} failed, but it is not the oldest in flight")
        for plan in reversed([lost, *self.in_flight]):
            self.memory.ledger.abort(plan.transaction)
            self.journal.rolled_back(plan.step, reason, now, digest=self.memory.digest())
            self.counters.steps_lost += 1
            self._check()
        self.in_flight.clear()
        for row in lost.rows[self.table.attempt[lost.rows] == lost.attempts].tolist():
            self._strike(row, Cause.WORKER_LOST, f"the worker failed: {reason}", now)
        for row in self.queues.running().tolist():
            # What the worker computed is gone with it: nothing of it may be offered to other requests.
            self.table.num_computed[row] = 0
            self.retract(row, Cause.STEP_LOST, now)
        for companion in self.companions:
            companion.lost(now)
        self.memory.flush()
        self.memory.take_replaced()
        self._check()

    # ---- commit, in parts ----

    def _apply(self, plan: ScheduledBatch, result: StepResult) -> tuple[np.ndarray, Int32s, Int32s]:
        """Fire the step's events and append its tokens; the rows that still wanted theirs, and their tokens."""
        table = self.table
        fresh = self.fresh_at_commit = table.attempt[plan.rows] == plan.attempts
        events, rows, tokens = plan.events, plan.sampled_rows, result.tokens
        if np.count_nonzero(fresh) < len(fresh):
            events = np.where(fresh, events, np.uint8(Event.STALE_TOKEN))
            wanted = fresh[plan.batch.samples]
            self.counters.dropped_tokens += len(rows) - int(np.count_nonzero(wanted))
            rows, tokens = rows[wanted], tokens[wanted]
        table.move_rows(plan.rows, events)
        at = table.num_tokens[rows]
        table.tokens[rows, at] = tokens
        table.num_tokens[rows] = at + 1
        self.counters.generated_tokens += len(rows)
        return events, rows, tokens

    def _ended(self, rows: Int32s, tokens: Int32s) -> Sequence[int]:
        """Indices of rows that have all they wanted, or drew a stop token."""
        table = self.table
        done = table.num_tokens[rows] >= table.max_tokens[rows]
        stops = table.stop_tokens[rows] == tokens[:, None]
        if np.count_nonzero(stops):
            done |= stops.any(1)
        return np.flatnonzero(done).tolist() if np.count_nonzero(done) else ()

    def _prefilled(self, plan: ScheduledBatch, now: float) -> None:
        """Prompt chunks are committed: share their full pages, and note first tokens."""
        table = self.table
        for segment, attempt in zip(plan.prefills, plan.attempts[-len(plan.prefills) :].tolist(), strict=True):
            row = segment.row
            if table.attempt[row] != attempt:
                continue
            table.num_computed[row] = end = segment.start + segment.length
            info = table.info(row)
            self.queues.share_prefix(row, end)
            if segment.samples:
                if info.first_token is None:
                    info.first_token = now
            elif segment.last:
                self._leave(row, Event.FINISH, Cause.LENGTH, now)

    def _finish(self, row: int, token: int, now: float) -> None:
        sampling = self.table.info(row).sampling
        if token in sampling.stop_token_ids:
            cause = Cause.EOS if token in sampling.eos_token_ids else Cause.STOP_TOKEN
            self._leave(row, Event.FINISH, cause, now, matched=token)
        else:
            self._leave(row, Event.FINISH, Cause.LENGTH, now)

    # ---- what arrives ----

    def submit(self, info: RequestInfo, tokens: Int32s, priority: int, deadline: float, now: float) -> int:
        """Take a request: QUEUED, or ABORTED at once with a cause. The row it has (had)."""
        self.counters.received += 1
        row = self.table.open(info, tokens, priority, deadline)
        self.effects.opened(row, info, tokens)
        self.journal.submitted(row, info, tokens, priority, now)
        refusal = self._refusal(row)
        if refusal is not None:
            self._leave(row, Event.ABORT, refusal[0], now, message=refusal[1])
            return row
        self.table.move(row, Event.SUBMIT)
        self.journal.moved(row, info.request, State.NEW, Event.SUBMIT, State.QUEUED, Cause.NONE, now)
        self.queues.waiting[row] = None
        self.counters.prompt_tokens += len(tokens)
        return row

    def _refusal(self, row: int) -> tuple[Cause, str] | None:
        """Why a new request cannot be taken, if so."""
        need, most = int(self.table.max_length[row]), self.memory.max_context
        if need > most:
            return Cause.NEVER_FITS, (
                f"prompt and output need memory for {need} tokens; this server has room for {most} of one request"
            )
        if len(self.queues.waiting) >= self.max_queued or self.table.full:
            return Cause.OVERLOADED, f"{self.max_queued} requests wait already; try again later"
        return None

    def abort(self, request: int, cause: Cause, now: float, message: str = "") -> bool:
        """End a request in whatever state it is. False when no live request has this number."""
        row = self.table.row_of.get(request)
        if row is None:
            return False
        self._leave(row, Event.ABORT, cause, now, message=message)
        return True

    def finish(self, request: int, num_output: int, now: float) -> bool:
        """A stop string ended the request within its first `num_output` tokens; the rest is dropped."""
        row = self.table.row_of.get(request)
        if row is None:
            return False
        extra = int(self.table.num_tokens[row] - self.table.num_prompt[row]) - num_output
        self.counters.dropped_tokens += extra
        self.counters.generated_tokens -= extra
        self._leave(row, Event.FINISH, Cause.STOP_STRING, now, num_output=num_output)
        return True

    def expire(self, now: float) -> None:
        """Abort every live request whose deadline has passed."""
        live = self.table.live_rows()
        for row in live[self.table.deadline[live] <= now].tolist():
            self._leave(row, Event.ABORT, Cause.TIMEOUT, now, message="the request ran out of time")

    def drain(self, cause: Cause, now: float) -> None:
        """End every live request."""
        for row in self.table.live_rows().tolist():
            self._leave(row, Event.ABORT, cause, now, message="the server stops")

    def stop(self, now: float) -> None:
        """The engine stops: nothing is live or to come."""
        self.drain(Cause.DRAINED, now)
        for companion in self.companions:
            companion.stopped()

    def flush(self, now: float) -> bool:
        """Empty the prefix cache. False, and no change, while anything is live or in flight."""
        if not self.idle or not self.memory.flush():
            return False
        for companion in self.companions:
            companion.flushed()
        self.journal.flushed(now)
        return True

    def retract(self, row: int, cause: Cause, now: float) -> None:
        """Take a running request's memory away; it goes back to the queue."""
        self._retracted(row, self.queues.retract(row, cause), cause, now)

    def _retracted(self, row: int, source: State, cause: Cause, now: float) -> None:
        self.counters.retractions += 1
        self.journal.moved(row, self.table.info(row).request, source, Event.RETRACT, State.QUEUED, cause, now)

    def _leave(
        self,
        row: int,
        event: Event,
        cause: Cause,
        now: float,
        *,
        message: str = "",
        matched: int | None = None,
        num_output: int | None = None,
    ) -> None:
        """The terminal event: everything the request owns goes back, its client gets its one terminal record."""
        table, info = self.table, self.table.info(row)
        source = State(int(table.state[row]))
        for companion in self.companions:
            companion.left(row)
        if source in (State.PREFILLING, State.DECODING):
            if cause is not Cause.INTERNAL:  # what went wrong is not offered to others
                self.queues.keep_prefix(row)
            self.memory.release(int(table.slot[row]))
        if source != State.NEW:
            self.queues.drop(row)
        target = table.move(row, event, cause)
        table.close(row)
        # A request that never ran is named by no step.
        fence = self.memory.ledger.fence if source != State.NEW else 0
        self.memory.ledger.after(fence, table.free, row)
        if target == State.FINISHED:
            self.counters.finished += 1
        else:
            self.counters.aborted += 1
        self.counters.by_cause[cause] = self.counters.by_cause.get(cause, 0) + 1
        num_prompt = int(table.num_prompt[row])
        if num_output is None:
            num_output = int(table.num_tokens[row]) - num_prompt
        self.journal.moved(row, info.request, source, event, target, cause, now, num_output=num_output)
        self.effects.ended(Ending(row, info, target, cause, num_prompt, num_output, message, matched))

    # ---- laws ----

    def _check(self) -> None:
        """What must hold after every step; O(1)."""
        for broken in self.monitor.glance(self):
            self.effects.violated(broken)

    def check(self) -> None:
        """Every property of the state, O(size): raise what is found first. All of it: `monitor.inspect`."""
        for broken in self.monitor.inspect(self):
            raise broken
