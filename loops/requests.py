"""What arrives, and how each request ends: the verbs of one request, and what the steps do to one.

    submit ──► QUEUED, or refused          abort, expire, drain ──► ABORTED
    submit ──► QUEUED_COMPILING ── grammar_ready ──► QUEUED
    retract ──► QUEUED once more           complete, finish ──► FINISHED

`leave` is the one place where a request ends: what it owns goes back, and its client gets its one terminal record.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.limits import Limits
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.batch import GaveWay, LostStep
from pawl.loops.companion import Companion
from pawl.loops.effects import Effects, Ending
from pawl.loops.queues import Queues
from pawl.loops.sessions import Sessions
from pawl.memory.arrays import Int32s

NOT_NUMBERS = "the model's scores for the next token are not finite numbers"
NOT_OF_THE_GRAMMAR = "no token that the request's grammar allows could be drawn"
NO_OUTPUT: Int32s = np.empty(0, np.int32)
MAX_STRIKES = 2
"""Lost steps after which a request that was part of each of them is ended instead of tried again."""


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
    drafts: int = 0
    """Of requests that were still at work when they had been tried."""
    draft_tokens: int = 0
    accepted_tokens: int = 0
    by_cause: dict[str, int] = msgspec.field(default_factory=dict)

    def of_output(self) -> tuple[int, ...]:
        """Totals that the commit of a step moves."""
        return self.generated_tokens, self.dropped_tokens, self.drafts, self.draft_tokens, self.accepted_tokens

    def take_back(self, totals: tuple[int, ...]) -> None:
        """They are these again: the step could not be committed."""
        self.generated_tokens, self.dropped_tokens, self.drafts, self.draft_tokens, self.accepted_tokens = totals


class Requests:
    """Every request of one loop, from its arrival to its end."""

    def __init__(
        self, queues: Queues, effects: Effects, journal: Journal, companions: Sequence[Companion], limits: Limits
    ) -> None:
        self.queues = queues
        self.table = queues.table
        self.memory = queues.memory
        self.effects = effects
        self.journal = journal
        self.companions = tuple(companions)
        self.limits = limits
        self.sessions = Sessions()
        self.counters = Counters()
        self.opened = 0
        """The request whose arrival was recorded last."""
        self.prompt_cause = Cause.LENGTH
        """Of the end of a request that wants no output."""
        self.at_work: tuple[int, State] | None = None
        """The one row that is worked for at the moment, and its state before: whose fault it is if that fails."""
        self.recorded: int | None = None
        """That row, once its end is recorded and counted."""

    # ---- from outside ----

    def submit(
        self,
        info: RequestInfo,
        tokens: Int32s,
        priority: int,
        deadline: float,
        now: float,
        refusal: tuple[Cause, str] | None = None,
        output: Int32s = NO_OUTPUT,
    ) -> int:
        """Take a request: QUEUED, or ABORTED at once with a cause, that of `refusal` where there is one. The row it has
        (had). With `output`, which it has had elsewhere, it goes on as after a retraction."""
        counters, request = self.counters, info.request
        received, prompt_tokens = counters.received + 1, counters.prompt_tokens + len(tokens)
        generated_tokens = counters.generated_tokens + len(output)
        known = np.concatenate((tokens, output)) if len(output) else tokens
        try:
            row = self.table.open(info, known, priority, deadline, len(output))
            self.begin(row)
            self.journal.submitted(row, info, tokens, priority, deadline, now, output)
        except Exception:
            self.table.withdraw(request)
            raise
        self.opened, counters.received, counters.generated_tokens = request, received, generated_tokens
        self.effects.opened(row, info, tokens)
        refusal = refusal or self._refusal(row)
        if refusal is not None:
            self.leave(row, Event.ABORT, refusal[0], now, message=refusal[1])
            return row
        event = Event.SUBMIT if info.sampling.grammar is None else Event.SUBMIT_GRAMMAR
        self.queues.waiting[row] = None
        self.journal.move(self.table, row, event, Cause.NONE, now)
        counters.prompt_tokens = prompt_tokens
        self.at_work = None
        return row

    def _refusal(self, row: int) -> tuple[Cause, str] | None:
        """Why a new request cannot be taken, if so."""
        need, most = self.table.max_length.item(row), self.memory.max_context
        if need > most:
            return Cause.NEVER_FITS, (
                f"prompt and output need memory for {need} tokens; this server has room for {most} of one request"
            )
        if len(self.queues.waiting) >= self.limits.max_queued or self.table.full:
            return Cause.OVERLOADED, f"{self.limits.max_queued} requests wait already; try again later"
        return None

    def abort(self, request: int, cause: Cause, now: float, message: str = "") -> None:
        """End a request in whatever state it is. Nothing happens where no live one has this number."""
        row = self.table.row_of.get(request)
        if row is not None:
            self.leave(row, Event.ABORT, cause, now, message=message)

    def grammar_ready(self, request: int, now: float) -> None:
        """The grammar that a request waits for is compiled. Nothing happens where it has ended meanwhile."""
        row = self.table.row_of.get(request)
        if row is not None and self.table.state[row] == State.QUEUED_COMPILING:
            self.journal.move(self.table, row, Event.GRAMMAR_READY, Cause.NONE, now)

    def finish(self, request: int, num_output: int, now: float) -> None:
        """A stop string ended the request within its first `num_output` tokens; the rest is dropped."""
        row = self.table.row_of.get(request)
        if row is not None:
            self.leave(row, Event.FINISH, Cause.STOP_STRING, now, num_output=num_output)

    def expire(self, now: float) -> None:
        """Abort every live request whose deadline has passed."""
        live = self.table.live_rows()
        for row in live[self.table.deadline[live] <= now].tolist():
            self.leave(row, Event.ABORT, Cause.TIMEOUT, now, message="the request ran out of time")

    def drain(self, cause: Cause, now: float) -> None:
        """End every live request."""
        for row in self.table.live_rows().tolist():
            self.leave(row, Event.ABORT, cause, now, message="the server stops")

    # ---- from steps ----

    def no_answer(self, row: int, cause: Cause, now: float) -> None:
        """The worker has no token, or no vector, for a request that was to get one of the oldest step: it ends."""
        message = NOT_OF_THE_GRAMMAR if cause is Cause.GRAMMAR else NOT_NUMBERS
        self.leave(row, Event.ABORT, cause, now, message=message)

    def complete(self, row: int, token: int, now: float) -> None:
        """The request has all that it wanted, and `token` is the last of it."""
        self.begin(row)
        cause, matched = self.end_of(row, token)
        self.leave(row, Event.FINISH, cause, now, matched=matched)

    def end_of(self, row: int, token: int) -> tuple[Cause, int | None]:
        """Why a request ends whose last token this is, and the stop token where it is one."""
        sampling = self.table.info(row).sampling
        if token in sampling.stop_token_ids:
            return (Cause.EOS if token in sampling.eos_token_ids else Cause.STOP_TOKEN), token
        return Cause.LENGTH, None

    def begin(self, row: int) -> None:
        """From here on, and until it is done, work is for this request alone."""
        self.at_work = row, self.table.state_of(row)
        self.recorded = None

    @property
    def touched_others(self) -> bool:
        """Work for one request failed half-way, and its memory or its row, which others share, may be changed."""
        if self.at_work is None:
            return False
        row, state = self.at_work
        return self.recorded == row or state not in (State.NEW, State.QUEUED)

    def interrupted(self) -> int | None:
        """Work for one request failed half-way: its row, None where it has ended or there was none. It has the state
        again that is recorded."""
        at_work, self.at_work = self.at_work, None
        if at_work is None:
            return None
        row, state = at_work
        info = self.table.infos[row]
        if info is None or self.table.row_of.get(info.request) != row:
            return None
        if self.recorded == row:
            self.sessions.ended(info.request, None)
            self.table.close(row)
            return None
        self.unmove(row, state)
        if state == State.NEW:
            self.queues.waiting.pop(row, None)
        return row

    def unmove(self, row: int, state: State) -> None:
        """What has taken this row out of `state`, if anything, is recorded nowhere."""
        table = self.table
        if state.owns_memory and table.state[row] == State.QUEUED:  # it was to be retracted
            table.attempt[row] -= 1
            table.info(row).num_retractions -= 1
        table.undo(row, state)

    def retract(self, row: int, cause: Cause, now: float) -> None:
        """Take a running request's memory away; it goes back to the queue."""
        self.begin(row)
        self.retracted(row, self.queues.retract(row, cause), cause, now)
        self.at_work = None

    def retracted(self, row: int, source: State, cause: Cause, now: float) -> None:
        """The queues have taken the memory of a request away that was in `source`: count it, and record it."""
        counters = self.counters
        retractions = counters.retractions + 1
        self.journal.moved(row, self.table.info(row).request, source, Event.RETRACT, State.QUEUED, cause, now)
        counters.retractions = retractions

    def gave_way(self, begun: Sequence[GaveWay], cause: Cause, now: float) -> None:
        """Record whom planning took the memory away from, or was about to. Where that fails on its way, those that are
        recorded say so."""
        for each in begun:
            # Planning may have failed before it came to that.
            if not each.recorded and self.table.attempt[each.row] != each.attempt:
                self.retracted(each.row, each.state, cause, now)
                each.recorded = True

    def strike(self, row: int, cause: Cause, message: str, now: float) -> None:
        """The request was part of something that went wrong; too often, and it ends."""
        info = self.table.info(row)
        info.strikes += 1
        if info.strikes >= MAX_STRIKES:
            self.leave(row, Event.ABORT, cause, now, message=message)

    def blame(self, lost: LostStep, now: float) -> None:
        """Each request that was part of a lost step has a strike. Where that fails on its way, it is gone on with."""
        infos = self.table.infos
        for row in lost.rows[lost.num_blamed :]:
            info, num_blamed = infos[row], lost.num_blamed + 1
            if info is not None:
                strikes = info.strikes + 1
                info.strikes = strikes
            lost.num_blamed = num_blamed
        for row in lost.rows:
            info = infos[row]
            if info is not None and info.strikes >= MAX_STRIKES:
                message = f"the worker failed: {lost.reason}"
                self.leave(row, Event.ABORT, Cause.WORKER_LOST, now, message=message)

    def leave(
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
        self.begin(row)
        source = self.table.state_of(row)
        if source.owns_memory:
            if cause is not Cause.INTERNAL:  # what went wrong is not offered to others
                self.queues.keep_prefix(row)
            self.memory.release(int(self.table.slot[row]))
        if source != State.NEW:
            self.queues.drop(row)
        self.close(row, event, cause, now, message=message, matched=matched, num_output=num_output)

    def close(
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
        """The last part of `leave`: the request owns nothing any more, and everybody is told that it has ended."""
        table, info = self.table, self.table.info(row)
        source = table.state_of(row)
        for companion in self.companions:
            companion.left(row)
        num_prompt = int(table.num_prompt[row])
        num_drawn = int(table.num_tokens[row]) - num_prompt
        if num_output is None:
            num_output = num_drawn
        target = table.move(row, event, cause)
        # Whoever is told twice in one turn, as the first time failed on the way, forgets the first.
        drafts = int(self.table.num_drafted[row]), int(self.table.num_accepted[row])
        self.effects.ended(Ending(row, info, target, cause, num_prompt, num_output, *drafts, message, matched))
        counters = self.counters
        finished = counters.finished + (target == State.FINISHED)
        aborted = counters.aborted + (target != State.FINISHED)
        by_cause = counters.by_cause | {cause: counters.by_cause.get(cause, 0) + 1}
        num_dropped = num_drawn - num_output
        dropped, generated = counters.dropped_tokens + num_dropped, counters.generated_tokens - num_dropped
        self.journal.moved(row, info.request, source, event, target, cause, now, num_output=num_output)
        counters.finished = finished
        counters.aborted = aborted
        counters.by_cause = by_cause
        counters.dropped_tokens = dropped
        counters.generated_tokens = generated
        self.recorded = row
        output = table.tokens[row, num_prompt : num_prompt + num_output] if target == State.FINISHED else None
        self.sessions.ended(info.request, output)
        table.close(row)
        # A request that never ran is named by no step.
        fence = self.memory.ledger.fence if source != State.NEW else 0
        self.memory.ledger.after(fence, table.free, row)
        self.at_work = None
