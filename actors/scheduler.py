"""The scheduler actor: one for each replica. Turns messages into loop calls and the loop's effects into messages.

It handles everything that has arrived, then lets the loop turn (`settled`), so a step sees all requests that wait.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
import numpy as np
import structlog

from pawl.actors.messages.control import Drain, FlushCache, GetState, Heartbeat, Reply
from pawl.actors.messages.execution import Execute, Executed, ExecuteFailed, ResetWorker
from pawl.actors.messages.generate import (
    Abort,
    Admitted,
    Ended,
    Finish,
    Generate,
    Opened,
    Refused,
    StepTokens,
    Timing,
    Usage,
)
from pawl.actors.names import NAMES, Names
from pawl.actors.recorder import TraceSink
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.tiers.tier_client import NoTierClient, TierClient, TierMessage
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.records import STOPPED, Started
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause, State
from pawl.lifecycle.step import StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.loop import Loop
from pawl.loops.properties.laws import name_of
from pawl.loops.select import LoopConfig, make_loop
from pawl.memory.arrays import Int32s
from pawl.memory.prefix.namespace import namespace_of
from pawl.memory.violation import MemoryViolation

log = structlog.get_logger("pawl.scheduler")

DEADLINE_CHECK_S = 0.25
"""How often deadlines are looked at while requests live."""
HEARTBEAT_S = 1.0
"""How often the watchdog is told that messages are handled."""
FAILED = "the server failed on this request"
SELF_CHECK_S = 1.0
"""How long the engine must be idle before it looks its whole memory over."""


class CheckDeadlines(msgspec.Struct, frozen=True, tag=True):
    """Timer: look at deadlines."""


class FlushExpired(msgspec.Struct, frozen=True, tag=True):
    """Timer: a flush has waited long enough."""

    ticket: int


class SelfCheck(msgspec.Struct, frozen=True, tag=True):
    """Timer: the engine has been idle for a while."""


class HeartbeatDue(msgspec.Struct, frozen=True, tag=True):
    """Timer: tell the watchdog that messages are handled."""


class DrainExpired(msgspec.Struct, frozen=True, tag=True):
    """Timer: end what is left."""


ToScheduler: TypeAlias = (
    Generate
    | Abort
    | Finish
    | Executed
    | ExecuteFailed
    | FlushCache
    | GetState
    | Drain
    | CheckDeadlines
    | HeartbeatDue
    | FlushExpired
    | DrainExpired
    | SelfCheck
    | TierMessage
)


class Scheduler(Actor):
    """Owns table, memory and loop of one replica."""

    accepts = ToScheduler

    def __init__(
        self, config: LoopConfig, default_timeout_s: float, started: Started | None = None, names: Names = NAMES
    ) -> None:
        """With `started`, the first record, everything is traced to the recorder."""
        self._names = names
        self.config = config
        self.default_timeout_s = default_timeout_s
        self.trace = TraceSink(self, names.recorder) if started is not None else None
        self.journal = Journal(self.trace.emit if self.trace is not None else None, started)
        tier_client = TierClient(self, config.tiers.lease_s, names) if config.tiers is not None else None
        self.loop: Loop = make_loop(config, self, self.journal, tier_client)
        self.tier_client: TierClient | NoTierClient = tier_client or NoTierClient()
        self.tier_client.attach(self.loop)
        self._launched_at: dict[int, float] = {}
        self._aborted_early: dict[int, tuple[Cause, str]] = {}
        """Aborts that overtook their request."""
        self._newest = 0
        """The highest request number seen on the DATA lane."""
        self._flushes: dict[int, FlushCache] = {}
        self._draining = False
        self._checking_deadlines = False
        self._checking_self = False
        self._checked_at = 0
        """Requests received when the memory was last looked over."""
        self.violations: dict[str, int] = {}
        """Property -> how often it was found not to hold."""
        self._tokens: tuple[Int32s, Int32s, ScheduledBatch | None, StepResult | None] | None = None
        self._ended: list[Ended] = []
        self._admitted: list[Admitted] = []

    # ---- actor ----

    def started(self) -> None:
        self.journal.started()
        self._beat(self.context.now())

    def receive(self, message: Any) -> None:
        now = self.context.now()
        match message:
            case Executed(result):
                self._launched_at.pop(result.step, None)
                self.loop.executed(result, now)
            case Generate():
                self._submit(message, now)
            case Abort(requests, cause, text):
                self.journal.delivered(message, now)
                for request in requests:
                    self._abort(request, cause, text, now)
            case Finish(request, num_output):
                self.journal.delivered(message, now)
                self.loop.requests.finish(request, num_output, now)
            case ExecuteFailed(step, reason):
                self._failed(step, reason, now)
            case FlushCache():
                self.journal.delivered(message, now)
                self._flush(message)
            case FlushExpired(ticket):
                self._answer_flush(ticket, ok=self.loop.flush(self.context.now()))
            case GetState():
                self._send(message.reply_to, Reply(message.ticket, ok=True, body=self.state(message.detail)))
            case HeartbeatDue():
                self._beat(now)
            case CheckDeadlines():
                self._checking_deadlines = False
                self.loop.requests.expire(now)
            case Drain(grace_s):
                self.journal.delivered(message, now)
                self._draining = True
                self.context.after(grace_s, DrainExpired())
            case SelfCheck():
                self._self_check()
            case DrainExpired():
                self.loop.requests.drain(Cause.DRAINED, now)
            case _:
                self.tier_client.receive(message, now)
        self._send_step()

    def requests_of(self, message: Any) -> tuple[int, ...]:
        match message:
            case Generate():
                return (message.request,)
            case Finish() | Abort():
                asked = message.requests if isinstance(message, Abort) else (message.request,)
                return tuple(request for request in asked if request in self.loop.table.row_of)
        return ()

    def end_request(self, request: int) -> None:
        now = self.context.now()
        if not self.loop.requests.abort(request, Cause.INTERNAL, now, FAILED):
            # It never had a row, so nobody behind this actor knows it.
            self._send(self._names.gateway, Refused(request, Cause.INTERNAL, FAILED, 500), Lane.CONTROL)
        self._send_step()

    def settled(self) -> None:
        now = self.context.now()
        self.loop.turn(now)
        self._send_step()
        if len(self.loop.table) and not self._checking_deadlines:
            self._checking_deadlines = True
            self.context.after(DEADLINE_CHECK_S, CheckDeadlines())
        if self.loop.idle:
            self._rest()
        if self.trace is not None:
            self.trace.flush()

    def stopped(self, reason: str) -> None:
        now = self.context.now()
        self.loop.stop(now)
        self._send_step()
        self.tier_client.stopped()
        for ticket in list(self._flushes):
            self._answer_flush(ticket, ok=False)
        self._inspect()
        self.journal.closed(STOPPED, self.loop.counters, len(self.loop.table), self.loop.memory.pages)
        if self.trace is not None:
            self.trace.flush()

    # ---- messages ----

    def _submit(self, message: Generate, now: float) -> None:
        self._newest = max(self._newest, message.request)
        info = RequestInfo(
            request=message.request,
            rid=message.rid,
            sampling=message.sampling,
            namespace=namespace_of(salt=message.namespace, weights=self.config.weights),
            submitted=now,
            passthrough=message.text_options,
        )
        timeout_s = self.default_timeout_s if message.timeout_s is None else message.timeout_s
        self.loop.requests.submit(info, message.tokens, message.priority, now + timeout_s, now)
        early = self._aborted_early.pop(message.request, None)
        # Requests come in the order of their numbers: one that was passed was refused on its way and never comes.
        for passed in [request for request in self._aborted_early if request < message.request]:
            del self._aborted_early[passed]
        if early is None and self._draining:
            early = (Cause.DRAINED, "the server stops")
        if early is not None:
            self.loop.requests.abort(message.request, early[0], now, early[1])

    def _abort(self, request: int, cause: Cause, message: str, now: float) -> None:
        if not self.loop.requests.abort(request, cause, now, message) and request > self._newest:
            self._aborted_early[request] = (cause, message)

    def _failed(self, step: int, reason: str, now: float) -> None:
        # Steps launched after the lost one are refused by the worker, one answer each: those are not news.
        if self.loop.in_flight and step == self.loop.in_flight[0].step:
            self._launched_at.clear()
            self.loop.failed(step, reason, now)
            next_step = self.loop.memory.ledger.resolved + 1
            self._send(self._names.worker, ResetWorker(next_step, self.tier_client.next_save), Lane.CONTROL)

    def _flush(self, message: FlushCache) -> None:
        self._flushes[message.ticket] = message
        if self.loop.idle or message.timeout_s <= 0:
            self._answer_flush(message.ticket, ok=self.loop.flush(self.context.now()))
        else:
            self.context.after(message.timeout_s, FlushExpired(message.ticket))

    def _answer_flush(self, ticket: int, *, ok: bool) -> None:
        message = self._flushes.pop(ticket, None)
        if message is None:
            return
        work = self.loop.queues
        live = {"waiting": work.num_waiting, "running": work.num_running, "in_flight": len(self.loop.in_flight)}
        text = "cache flushed" if ok else "not flushed: requests are live"
        self._send(message.reply_to, Reply(ticket, ok=ok, message=text, body=live))

    def _rest(self) -> None:
        """Nothing to do: answer who waits for that; if it stays so, look the whole memory over, once."""
        for ticket in list(self._flushes):
            self._answer_flush(ticket, ok=self.loop.flush(self.context.now()))
        if self._checked_at != self.loop.counters.received and not self._checking_self:
            self._checking_self = True
            self.context.after(SELF_CHECK_S, SelfCheck())

    def _self_check(self) -> None:
        self._checking_self = False
        if not self.loop.idle:
            return
        self._checked_at = self.loop.counters.received
        self._inspect()

    def _inspect(self) -> None:
        for broken in self.loop.monitor.inspect(self.loop):
            self.violated(broken)

    # ---- effects of the loop ----

    def opened(self, row: int, info: RequestInfo, tokens: Int32s) -> None:
        opened = Opened(row, info.request, info.passthrough, len(tokens), tokens, info.sampling.top_logprobs)
        self._send(self._names.detokenizer, opened)

    def launch(self, scheduled: ScheduledBatch) -> None:
        now = self.context.now()
        self._launched_at[scheduled.step] = now
        for row in scheduled.admitted:
            info = self.loop.table.info(row)
            if info.admitted is None:
                info.admitted = now
                timing = Timing(info.submitted, now)
                self._admitted.append(Admitted(row, info.num_cached, timing))
        self._send(self._names.worker, Execute(scheduled.batch))

    def output(self, rows: Int32s, tokens: Int32s, scheduled: ScheduledBatch, result: StepResult) -> None:
        self._tokens = (rows, tokens, scheduled, result)

    def ended(self, ending: Ending) -> None:
        info = ending.info
        usage = Usage(ending.num_prompt, ending.num_output, info.num_cached, info.num_retractions)
        timing = Timing(info.submitted, info.admitted, info.first_token, self.context.now())
        tell = log.debug if ending.state == State.FINISHED else log.info
        tell("request ended", rid=info.rid, cause=str(ending.cause), output_tokens=ending.num_output)
        self._ended.append(Ended(ending.row, info.request, ending.cause, usage, timing, ending.message, ending.matched))

    def violated(self, violation: MemoryViolation) -> None:
        name = name_of(violation)
        self.violations[name] = self.violations.get(name, 0) + 1
        log.error("a property does not hold", property=name, statement=violation.statement, facts=str(violation))

    def _send_step(self) -> None:
        """One message with all that the handled message gave."""
        if self._tokens is None and not self._ended:
            return
        rows, tokens, scheduled, result = self._tokens or (_NONE, _NONE, None, None)
        ended, self._ended, self._tokens = tuple(self._ended), [], None
        admitted, self._admitted = tuple(self._admitted), []
        if not len(rows) and not ended and (result is None or not result.prompt_logprobs):
            return
        logprobs, prompt_logprobs = None, ()
        if scheduled is not None and result is not None:
            logprobs, prompt_logprobs = self._scores(scheduled, result)
        self._send(self._names.detokenizer, StepTokens(rows, tokens, logprobs, prompt_logprobs, ended, admitted))

    def _scores(self, scheduled: ScheduledBatch, result: StepResult) -> tuple[Any, tuple[Any, ...]]:
        """Log-probabilities of the tokens that are still wanted."""
        fresh = self.loop.fresh_at_commit
        logprobs = result.logprobs
        if logprobs is not None and not (fresh.all() and result.counts is None):
            wanted = self.loop.wanted_tokens(scheduled)
            logprobs = type(logprobs)(*(array[wanted] for array in msgspec.structs.astuple(logprobs)))
        row_of_slot = dict(zip(scheduled.batch.slots[fresh].tolist(), scheduled.rows[fresh].tolist(), strict=True))
        prompt = tuple((row_of_slot[p.slot], p) for p in result.prompt_logprobs if p.slot in row_of_slot)
        return logprobs, prompt

    def _send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> None:
        self.context.send(to, message, lane)

    # ---- state ----

    def _beat(self, now: float) -> None:
        """Tell the watchdog that messages are handled here, and how long the worker has been at its step."""
        oldest = min(self._launched_at.values(), default=None)
        age_s = None if oldest is None else now - oldest
        self._send(self._names.watchdog, Heartbeat(age_s), Lane.CONTROL)
        self.context.after(HEARTBEAT_S, HeartbeatDue())

    def state(self, detail: bool) -> dict[str, Any]:
        """Counters and gauges; with `detail` every live request."""
        loop = self.loop
        states = np.bincount(loop.table.state[loop.table.live_rows()], minlength=len(State))
        body: dict[str, Any] = {
            "requests": {state.name.lower(): int(states[state]) for state in State if states[state]},
            "waiting": loop.queues.num_waiting,
            "running": loop.queues.num_running,
            "in_flight": len(loop.in_flight),
            "pages": loop.memory.pages.counters() | {"page_size": loop.memory.page_size},
            "slots": {"total": loop.memory.slots.total, "free": loop.memory.slots.free},
            "cache": loop.memory.cache.statistics()
            | {"evictable": loop.memory.cache.evictable, "held": loop.memory.cache.held},
            "trace_gaps": self.trace.num_lost_total if self.trace is not None else 0,
            "violations": dict(self.violations),
            "counters": msgspec.to_builtins(loop.counters),
            **self.tier_client.state(),
        }
        if detail:
            body["live"] = [self._describe(row) for row in loop.table.live_rows().tolist()]
            body["digest"] = f"{loop.memory.digest():016x}"
        return body

    def _describe(self, row: int) -> dict[str, Any]:
        table = self.loop.table
        info = table.info(row)
        return {
            "request": info.request,
            "rid": info.rid,
            "state": State(int(table.state[row])).name.lower(),
            "prompt_tokens": int(table.num_prompt[row]),
            "output_tokens": int(table.num_tokens[row] - table.num_prompt[row]),
            "cached_tokens": info.num_cached,
            "retractions": info.num_retractions,
        }


_NONE: Int32s = np.empty(0, np.int32)
