"""The loop. Everything the engine decides, it decides in `turn`; everything it learns, it learns in `executed`.

    turn:      while pacing allows:  plan (OPEN) -> launch (PREPARED)
    executed:  commit the oldest step (tokens, transitions, finishes), or
    failed:    roll back every step in flight, newest first

One step is one memory transaction. Nothing here does I/O or reads a clock: time comes in as an argument, effects go
out through `Effects`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.machines.serving import SERVING, Serving
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.states import Cause, Event
from pawl.lifecycle.step import Bools, StepResult
from pawl.loops.batch import Applied, BatchBuilder, LostStep, ScheduledBatch
from pawl.loops.cache_events import CacheEventLog
from pawl.loops.companion import Companion
from pawl.loops.effects import Effects
from pawl.loops.limits import LimitKeeper
from pawl.loops.pacing import Pacing
from pawl.loops.planner import Planner
from pawl.loops.properties.state import state_checks
from pawl.loops.queues import Queues
from pawl.loops.recovery import lose_runner, plan_failed, undo_newest, undo_plan
from pawl.loops.requests import Requests
from pawl.loops.runs import Runs, apply_runs
from pawl.loops.scores import embedded_of, scores_of
from pawl.loops.speculation import Drafter
from pawl.memory.memory import Memory

Kind = TypeVar("Kind")


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
        limits: LimitKeeper,
        feed: CacheEventLog,
        companions: Sequence[Companion] = (),
        drafter: Drafter | None = None,
        fresh_memory: Callable[[], Memory],
    ) -> None:
        self.table = table
        self.memory = memory
        self.queues = queues
        self.planner = planner
        self.pacing = pacing
        self.effects = effects
        self.journal = journal
        self.feed = feed
        self.companions = tuple(companions)
        self.drafter = drafter
        self.fresh_memory = fresh_memory
        """Makes what memory was at the start."""
        self.serving = SERVING.start
        self.limits = limits
        self.released = frozenset[MemoryTag]()
        """What is not resident; see `loops/residency.py`."""
        self.in_flight: deque[ScheduledBatch] = deque()
        """Steps that are recorded as planned and not as committed, oldest first."""
        self.committed: ScheduledBatch | None = None
        """The step that is recorded as committed last."""
        self.lost: LostStep | None = None
        self.rolled_back: ScheduledBatch | None = None
        """The step that is recorded as rolled back last."""
        self.planning: BatchBuilder | None = None
        """The step that is being planned, until it is in flight."""
        self.launching: ScheduledBatch | None = None
        """The step that is planned and not in flight yet."""
        self.checks = state_checks()
        self.requests = Requests(queues, effects, journal, self.companions, limits.now)
        self.counters = self.requests.counters
        self.fresh_at_commit = np.empty(0, np.bool_)
        """Segments of the step committed last whose requests were still at work."""
        self._runs: Runs | None = None
        """Of the step committed last, where it had some."""
        self.try_again = False
        """A plan has failed, and somebody has a strike for it: without them, or with the next, another may not."""

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is in flight."""
        return self.queues.idle and not self.in_flight

    @property
    def still(self) -> bool:
        """No step is planned: the engine is paused, or memory that steps need is released."""
        return self.serving is Serving.PAUSED or bool(self.released)

    @property
    def at_rest(self) -> bool:
        """Nothing runs or is in flight, and whoever waits, for the engine to go on, owns nothing."""
        return self.idle or (self.still and self.queues.owns_nothing and not self.in_flight)

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
            companion.turning(now)
        if self.still or now < self.limits.due_at:
            return
        while len(self.in_flight) <= self.pacing.depth and not (self.in_flight and self.in_flight[-1].runs):
            scheduled = self._plan(now)
            if scheduled is None:
                if self.in_flight or self.queues.idle or not self._unblock(now):  # idle: no record would tell of it
                    for broken in self.checks.check_idle(self):
                        self.effects.violated(broken)
                    return
                continue
            self._launch(scheduled, now)
            if self.limits.now.step_delay_s:
                return

    def executed(self, result: StepResult, now: float) -> None:
        """Commit the oldest step: apply its tokens, fire its transitions, give back what ended."""
        self.limits.ready_at = now
        scheduled = self.in_flight[0]
        if scheduled.step != result.step:
            raise AssertionError(f"step {result.step} came back, step {scheduled.step} is the oldest in flight")
        drawn, due = len(result.tokens if result.counts is None else result.counts), len(scheduled.sampled_rows)
        if drawn != due:
            raise AssertionError(f"step {result.step} came back with tokens of {drawn} requests, not {due}")
        for row, cause in scheduled.left_without_answer(result, self.table):
            self.requests.no_answer(row, cause, now)
        applied = self._committed(scheduled, result, now)
        if scheduled.prefills:
            self._prefilled(scheduled, now)
        for index in self.table.complete(applied.rows, applied.last):
            self.requests.complete(int(applied.rows[index]), int(applied.last[index]), now)
        self.memory.slide(scheduled.batch.slots, scheduled.batch.starts, applied.lengths)
        self.memory.ledger.commit(scheduled.transaction)
        self.glance()

    def _committed(self, scheduled: ScheduledBatch, result: StepResult, now: float) -> Applied:
        """Apply the step's tokens and record it as committed: both, or neither."""
        table, counters, rows = self.table, self.counters, scheduled.rows
        before = table.state[rows], table.num_tokens[rows], table.drafting[rows] if scheduled.runs else None
        counted = counters.of_output()
        try:
            applied = self._apply(scheduled, result)
            self.effects.output(applied.rows_of_tokens, applied.tokens, scheduled, result)
            pages, digest = self.memory.pages, self.memory.digest()
            told = embedded = None
            if self.journal.recording and (result.logprobs is not None or result.prompt_logprobs or result.embeddings):
                row_of_slot = scheduled.row_of_slot(self.fresh_at_commit)
                told = scores_of(result, table, applied.rows_of_tokens, self.wanted_tokens(scheduled), row_of_slot)
                embedded = embedded_of(result, row_of_slot)
            events, tokens, counts, step = applied.events, applied.recorded, applied.counts, scheduled.step
            self.journal.committed(
                step, events, tokens, counts, pages, now, digest=digest, scores=told, embedded=embedded
            )
        except Exception:
            table.undo_rows(rows, *before)
            counters.take_back(counted)
            raise
        self.committed = scheduled
        self.in_flight.popleft()
        self.limits.times.resolved(now)
        return applied

    def failed(self, step: int, reason: str, now: float, blameless: bool = False) -> None:
        """A worker lost `step`: roll back everything in flight, newest first; requests start again from what they
        have, except those that were part of too many lost steps. One that is `blameless` counts for nobody."""
        self.limits.ready_at = now
        if not self.in_flight or self.in_flight[0].step != step:
            raise AssertionError(f"step {step} failed, but it is not the oldest in flight")
        self.lost = LostStep([] if blameless else self.in_flight[0].at_work(self.table), reason, blameless)
        while self.in_flight:
            undo_newest(self, now)
            self.in_flight.pop()
            self.glance()
        self.limits.times.lost()
        self.requests.blame(self.lost, now)
        lose_runner(self, now)
        self.lost = None

    # ---- plan and launch, in parts ----

    def _plan(self, now: float) -> ScheduledBatch | None:
        """Decide one step inside its transaction: OPEN -> PREPARED."""
        if self.queues.idle:
            return None
        for companion in self.companions:
            companion.planning(now)
        transaction = self.memory.ledger.begin()
        ahead = [scheduled.rows for scheduled in self.in_flight]
        self.planning = builder = BatchBuilder(transaction, self.table, ahead)
        failure: Exception | None = None
        try:
            self.planner.plan(builder)
        except Exception as error:
            failure = error
            undo_plan(self, builder, error)
        if failure is not None:
            plan_failed(self, builder, failure, now)
            self.planning = None
            return None
        self.queues.prompts_planned([segment.row for segment in builder.prefills if segment.last])
        self.requests.gave_way(builder.retracted, Cause.MEMORY, now)
        if builder.empty:
            self.memory.ledger.discard(transaction)
            self.glance()
            self.journal.idled(now)
            self.planning = None
            return None
        for broken in self.checks.check_admitted(self) if builder.admitted else ():
            self.effects.violated(broken)
        for broken in self.checks.check_held_back(self) if self.queues.prefilling and not builder.prefills else ():
            self.effects.violated(broken)
        scheduled = builder.close(self.memory)
        self.memory.ledger.prepare(transaction)
        return scheduled

    def _unblock(self, now: float) -> bool:
        """Nothing could be planned and nothing is in flight: if requests hold memory that each other needs, the
        youngest gives way. The oldest is never asked, so it always ends."""
        if self.try_again:
            self.try_again = False
            return True
        if self.queues.num_running < 2:
            return False
        self.requests.retract(int(self.queues.oldest_first()[-1]), Cause.MEMORY, now)
        return True

    def _launch(self, scheduled: ScheduledBatch, now: float) -> None:
        """Send a planned step to the worker."""
        self.launching = scheduled
        self.limits.ready_at = now
        self.journal.planned(scheduled.batch, scheduled.rows, scheduled.admitted, self.table, now)
        hits = scheduled.first_hits(self.table)
        self.in_flight.append(scheduled)
        # Nothing can fail in between: what is in flight is counted.
        self.counters.cached_tokens += hits
        self.planning = self.launching = None
        self.limits.times.launched(len(scheduled.rows) - len(scheduled.prefills), scheduled.num_prompt_tokens, now)
        self.counters.steps += 1
        if scheduled.prefills:
            self.queues.behind = self.queues.behind + 1 if scheduled.passes_over else 0
        if self.pacing.stages > 1:
            self.queues.had_turns(scheduled.decoding_rows)
        for companion in self.companions:
            companion.launching(scheduled)
        self.effects.launch(scheduled)

    # ---- commit, in parts ----

    def _apply(self, scheduled: ScheduledBatch, result: StepResult) -> Applied:
        """Fire the step's events and append its tokens."""
        table = self.table
        fresh = self.fresh_at_commit = table.attempt[scheduled.rows] == scheduled.attempts
        events, rows, tokens = scheduled.events, scheduled.sampled_rows, result.tokens
        if 0 in fresh.tobytes():  # a fifth of the time that numpy takes to count them
            events = np.where(fresh, events, np.uint8(Event.STALE_TOKEN))
        table.move_rows(scheduled.rows, events)
        if result.counts is not None:
            applied, self._runs = apply_runs(scheduled, result, result.counts, fresh, events, table, self.memory)
            self.counters.dropped_tokens += len(applied.recorded) - len(applied.tokens)
            self.counters.generated_tokens += len(applied.tokens)
            if self.drafter is not None and applied.counts is not None:
                self.drafter.committed(scheduled, fresh, applied.counts, self.counters)
            return applied
        self._runs = None
        if events is not scheduled.events:
            wanted = fresh[scheduled.batch.samples]
            self.counters.dropped_tokens += len(rows) - int(np.count_nonzero(wanted))
            rows, tokens = rows[wanted], tokens[wanted]
        table.append(rows, tokens)
        self.counters.generated_tokens += len(rows)
        return Applied(events, rows, rows, tokens, tokens, result.tokens, None, scheduled.batch.lengths)

    def wanted_tokens(self, scheduled: ScheduledBatch) -> Bools:
        """Which tokens of the step committed last were given out, bool [tokens of its result]."""
        return self._runs.drawn if self._runs is not None else self.fresh_at_commit[scheduled.batch.samples]

    def _prefilled(self, scheduled: ScheduledBatch, now: float) -> None:
        """Prompt chunks are committed: share their full pages, and note first tokens."""
        table, prefills = self.table, scheduled.prefills
        for segment, attempt in zip(prefills, scheduled.attempts[-len(prefills) :].tolist(), strict=True):
            row = segment.row
            if table.attempt.item(row) != attempt:
                continue
            self.requests.begin(row)
            table.num_computed[row] = end = segment.start + segment.length
            info = table.info(row)
            self.queues.share_prefix(row, end)
            if segment.samples:
                if info.first_token is None:
                    info.first_token = now
            elif segment.last:
                cause = Cause.EMBEDDED if info.sampling.embed else self.requests.prompt_cause
                self.requests.leave(row, Event.FINISH, cause, now)
        self.requests.at_work = None

    # ---- the engine as a whole ----

    def stop(self, now: float) -> None:
        """The engine stops: nothing is live or to come."""
        self.requests.drain(Cause.DRAINED, now)
        for companion in self.companions:
            companion.stopped()

    def flush(self, now: float) -> bool:
        """Empty the prefix cache. False, and no change, where the loop does not rest."""
        if not self.at_rest or not self.memory.flush():
            return False
        for companion in self.companions:
            companion.flushed()
        self.journal.flushed(now)
        return True

    # ---- checks ----

    def glance(self) -> None:
        """What must hold after every step; O(1)."""
        for broken in self.checks.check(self):
            self.effects.violated(broken)

    def check_all(self) -> None:
        """Every property of the state, O(size): raise the first one found broken. All of them: `checks.check_all`."""
        for broken in self.checks.check_all(self):
            raise broken
