"""The scheduler actor: one for each replica. Turns messages into loop calls and the loop's effects into messages.

It handles everything that has arrived, then lets the loop turn (`settled`), so a step sees all requests that wait.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import structlog

from pawl.actors.adapter_client import AdapterClient
from pawl.actors.askers import Askers
from pawl.actors.control import Ask, row_of
from pawl.actors.memory_client import MemoryClient
from pawl.actors.messages.control import Heartbeat
from pawl.actors.messages.execution import Execute, Executed, ExecuteFailed, ResetWorker
from pawl.actors.messages.generate import Generate, Opened, Refused
from pawl.actors.messages.grammar import Compile, Release
from pawl.actors.messages.transfer import Dropped
from pawl.actors.names import NAMES, Names
from pawl.actors.recorder import TraceSink
from pawl.actors.runtime.actor import Actor, Lane, Timer, places_of
from pawl.actors.step_measures import StepMeasures
from pawl.actors.step_report import StepReport
from pawl.actors.tiers.hand_over_client import tier_client_for
from pawl.actors.tiers.tier_client import TierMessage
from pawl.actors.turn_timer import HeartbeatDue, SelfCheck, TurnDue, TurnTimer
from pawl.actors.turns import info_of, turn_of
from pawl.actors.weight_client import WeightClient
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.records import STOPPED, Started
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause, State
from pawl.lifecycle.step import StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.intake import Intake, Order, Outcome
from pawl.loops.loop import Loop
from pawl.loops.orders import AnyOrder
from pawl.loops.orders.grammars import GrammarFailed, GrammarReady
from pawl.loops.orders.requests import Abort, CheckDeadlines, EndAll, Finish
from pawl.loops.orders.runner import RunnerGone
from pawl.loops.orders.weights import WeightsSwapped
from pawl.loops.properties.state import name_of
from pawl.loops.recovery import FAILED, FAILED_ORDER, contained, recover
from pawl.loops.requests import NO_OUTPUT
from pawl.loops.select import LoopConfig, make_loop
from pawl.loops.snapshot import checkpoint
from pawl.memory.arrays import Indices, Int32s
from pawl.memory.prefix.namespace import namespace_of
from pawl.memory.violation import MemoryViolation, raised_behind

log = structlog.get_logger("pawl.scheduler")

DEADLINE_CHECK_S = 0.25
"""How often deadlines are looked at while requests live."""
HEARTBEAT_S = 0.25
"""How often the watchdog is told that messages are handled."""
SELF_CHECK_S = 1.0
"""How long the engine must be idle before it looks its whole memory over."""


ToScheduler: Any = (
    Generate | Executed | ExecuteFailed | Ask | AnyOrder | HeartbeatDue | SelfCheck | TurnDue | TierMessage
)
SAID_ONCE = (HeartbeatDue, SelfCheck, TurnDue, CheckDeadlines, Dropped)
"""Nobody says it again: what fails at one of these has it come once more."""


class Scheduler(Actor):
    """Owns table, memory and loop of one replica."""

    accepts = ToScheduler
    roams = True

    def __init__(
        self, config: LoopConfig, default_timeout_s: float, started: Started | None = None, names: Names = NAMES
    ) -> None:
        """With `started`, the first record of the run, everything is traced to the recorder."""
        self._names = names
        self.config = config
        self.default_timeout_s = default_timeout_s
        self.trace = TraceSink(self, names) if started is not None else None
        self.journal = Journal(self.trace.emit if self.trace is not None else None, started, config.checkpoint_bytes)
        self.tier_client = tier_client_for(self, config, names)
        self.loop: Loop = make_loop(config, self, self.journal, self.tier_client.effects)
        self.tier_client.attach(self.loop)
        self.weight_client = self.members = WeightClient(self, names)
        self.stage, self.exchanged = self.weight_client.stage, self.weight_client.exchanged
        self.adapter_effects, self.memory_client = AdapterClient(self, names), MemoryClient(self, names)
        self.intake = Intake(self.loop, self, config.served)
        self.measures, self._report = StepMeasures(), StepReport(names.replica)
        self._launched_at: dict[int, float] = {}
        # In the lane of what it tells of itself, which a reply may not overtake.
        self._askers = Askers(partial(self._send, lane=Lane.CONTROL))
        self._checking_deadlines = self._checking_self = False
        self._turn_timer = TurnTimer(self)
        self._next_beat: Timer | None = None
        self._checked_at = 0
        """Requests received when the memory was last looked over."""
        self.violations: dict[str, int] = {}
        """Property -> how often it was found not to hold."""

    # ---- actor ----

    def started(self) -> None:
        self._beat(self.context.now())

    def receive(self, message: Any) -> None:
        now = self.context.now()
        match message:
            case Executed(result, ranks):
                self.measures.ranks = ranks
                self._executed(result, now)
            case Generate():
                self._submit(message, now)
            case Order():
                if isinstance(message, CheckDeadlines):
                    self._checking_deadlines = False
                self.intake.deliver(message, now)
                if isinstance(message, WeightsSwapped | RunnerGone) and not self.loop.in_flight:
                    self._reset_worker()
            case Ask():
                self._asked(message, now)
            case ExecuteFailed():
                self._failed(message, now)
            case HeartbeatDue():
                self._beat(now)
            case SelfCheck():
                self._self_check()
            case TurnDue():
                self._turn_timer.fired()
            case _:
                self.tier_client.receive(message, now)
        self._send_step()
        if not isinstance(message, Executed):
            self.measures.receive_s += self.context.now() - now

    def spares(self, message: Any, error: Exception) -> bool:
        if super().spares(message, error):
            return True
        asked = message.message if isinstance(message, Ask) else message
        only_looks = asked is not message and not isinstance(asked, Order)
        # Nothing is half done of requests that are still to come. Of one that has just ended something may be.
        again = isinstance(asked, Abort) and not self.loop.requests.touched_others
        if not (only_looks or again or self.survives()):
            return False
        self.told_of(error, message=type(asked).__name__)
        if again:
            self.intake.deliver(asked, self.context.now())
        elif not only_looks:
            self._recover(self.context.now())
        if isinstance(message, SAID_ONCE):
            self._send(self._names.scheduler, message, Lane.CONTROL)
        self._askers.failed(message if isinstance(message, Ask) else None, self.intake.owed, FAILED_ORDER)
        self._send_step()
        return True

    def requests_of(self, message: Any) -> tuple[int, ...]:
        match message:
            case Generate():
                return (message.request,)
            case Finish() | Abort() | GrammarReady() | GrammarFailed():
                asked = message.requests if isinstance(message, Abort) else (message.request,)
                return tuple(request for request in asked if request in self.loop.table.row_of)
        return ()

    def end_request(self, request: int) -> None:
        now, requests = self.context.now(), self.loop.requests
        if requests.touched_others:
            self._recover(now, request)
        else:  # nothing that others have a part in was touched
            requests.interrupted()
            contained(self.loop, request, self._failure(), now)
            self.intake.forget(request)
            if request in self.loop.table.row_of:
                self.intake.deliver(Abort((request,), Cause.INTERNAL, FAILED), now)
            elif requests.opened != request:  # it never had a row, so nobody behind this actor knows it
                self._send(self._names.gateway, Refused(request, Cause.INTERNAL, FAILED, 500), Lane.CONTROL)
        self._send_step()

    def _recover(self, now: float, request: int = 0) -> None:
        self._launched_at.clear()
        self._report.withdraw([step for step in self.loop.in_flight if step is not self.loop.committed])
        recover(self.loop, self._failure(), now, request)
        self.weight_client.recovered(self.intake, now)
        self.intake.recovered(now)
        self.memory_client.recovered()
        self._reset_worker()

    def _failure(self) -> str:
        """The failure that is being survived, without its words."""
        error = self.contained
        return "" if error is None else f"{type(error).__name__} at {', '.join(places_of(error)[-1:])}"

    def settled(self) -> None:
        now = self.context.now()
        if self.journal.checkpoint_due and not self.loop.in_flight:
            checkpoint(self.intake, now)
        if not self.journal.checkpoint_due:
            launching = self.measures.launch_s
            self.intake.turn(now)
            self.measures.planned(self.context.now() - now, launching)
            self._turn_timer.settled(self.loop, now)
        self.weight_client.swap_if_due(self.intake)
        self.memory_client.settled(self.intake)
        # Else what is in flight comes back first: a checkpoint is of a moment without a step in flight.
        self._send_step()
        self._askers.settled(self.loop.in_flight[0].step if self.loop.in_flight else None)
        if len(self.loop.table) and not self._checking_deadlines:
            self._checking_deadlines = True
            self.context.after(DEADLINE_CHECK_S, CheckDeadlines())
        if self.loop.idle and self._checked_at != self.loop.counters.received and not self._checking_self:
            # If it stays so, look the whole memory over, once.
            self._checking_self = True
            self.context.after(SELF_CHECK_S, SelfCheck())
        if self.trace is not None:
            self.trace.flush()

    def stopped(self, reason: str) -> None:
        if self.failure is None:
            self._end_loop()
        # After a failure table and memory may be half changed: they are left as they are, the trace has no end, and the
        # gateway, which learns of it next, answers for this actor.
        self.tier_client.stopped()
        if self.failure is None:
            self._askers.stopped(f"the engine stopped: {reason}")
        if self.trace is not None:
            self.trace.flush()

    def _end_loop(self) -> None:
        now = self.context.now()
        self.intake.deliver(EndAll(), now)
        self.loop.stop(now)
        self._send_step()
        self._inspect()
        self.journal.closed(STOPPED, self.loop.counters, len(self.loop.table), self.loop.memory.pages)

    # ---- messages ----

    def _submit(self, message: Generate, now: float) -> None:
        info = info_of(message, self._namespace(message), self.intake.weights.served.fingerprint, now)
        if message.session is not None:
            self.intake.deliver(turn_of(message, message.session), now)
            self._send_step()  # whoever it has ended leaves before anybody has the same row
        timeout_s = self.default_timeout_s if message.timeout_s is None else message.timeout_s
        output = NO_OUTPUT if message.resumed is None else message.resumed.output
        self.intake.submit(info, message.tokens, message.priority, now - message.age_s + timeout_s, now, output)

    def _namespace(self, message: Generate) -> str:
        adapters, weights = self.intake.adapters, self.intake.weights.served.fingerprint
        adapter = "" if adapters is None else adapters.part(message.adapter)
        return namespace_of(adapter=adapter, salt=message.namespace, weights=weights)

    def _asked(self, ask: Ask, now: float) -> None:
        """An order is answered when it is done, anything else at once."""
        number = self._askers.open(ask)
        if isinstance(ask.message, Order):
            self.intake.deliver(ask.message, now, number)
        else:
            self.answered(number, row_of(ask.message).look(self, ask.message))

    def answered(self, number: int, outcome: Outcome) -> None:
        self.memory_client.tell(self.intake)
        self._askers.answer(number, outcome, self.loop.in_flight[-1].step if self.loop.in_flight else None)

    def remind(self, delay_s: float, order: Order) -> None:
        self.context.after(delay_s, order)

    def _failed(self, message: ExecuteFailed, now: float) -> None:
        # Steps launched after the lost one are refused by the worker, one answer each: those are not news.
        if self.loop.in_flight and message.step == self.loop.in_flight[0].step:
            self._launched_at.clear()
            self.loop.failed(message.step, message.reason, now, message.blameless)
            self._reset_worker()

    def _executed(self, result: StepResult, now: float) -> None:
        launched_at = self._launched_at.pop(result.step, None)
        if result.step > self.loop.memory.ledger.resolved:  # else it was given up before its answer came
            self.loop.executed(result, now)
            self.progressed()
            duration = None if launched_at is None else now - launched_at
            self.measures.committed(self.loop.committed, self.context.now() - now, duration)

    def _reset_worker(self) -> None:
        """The worker forgets what it has computed, and refuses steps from before."""
        next_step = self.loop.memory.ledger.resolved + 1
        self._send(self._names.worker, ResetWorker(next_step, self.tier_client.next_save), Lane.CONTROL)

    def _self_check(self) -> None:
        self._checking_self = False
        if self.loop.idle:
            self._checked_at = self.loop.counters.received
            self._inspect()

    def _inspect(self) -> None:
        for broken in self.loop.checks.check_all(self.loop):
            self.violated(broken)

    # ---- effects of the loop ----

    def opened(self, row: int, info: RequestInfo, tokens: Int32s) -> None:
        rivals, scored = info.sampling.num_rivals, info.sampling.prompt_logprobs
        opened = Opened(row, info.request, info.passthrough, len(tokens), tokens, rivals, self._names.replica, scored)
        self._send(self._names.detokenizer, opened)
        if info.sampling.grammar is not None:
            self._send(self._names.grammar, Compile(info.request, info.sampling.grammar))

    def launch(self, scheduled: ScheduledBatch) -> None:
        now = self.context.now()
        self._launched_at[scheduled.step] = now
        self._report.launched(scheduled, self.loop.table, now)
        self._send(self._names.worker, Execute(scheduled.batch))
        self.measures.launch_s += self.context.now() - now

    def output(self, rows: Indices, tokens: Int32s, scheduled: ScheduledBatch, result: StepResult) -> None:
        self._report.output(rows, tokens, scheduled, result)

    def ended(self, ending: Ending) -> None:
        tell = log.debug if ending.state == State.FINISHED else log.info
        tell("request ended", rid=ending.info.rid, cause=str(ending.cause), output_tokens=ending.num_output)
        self._report.ended(ending, self.context.now())
        if ending.info.sampling.grammar is not None:
            self._send(self._names.grammar, Release(ending.info.request))

    def violated(self, violation: MemoryViolation) -> None:
        name = name_of(violation)
        self.violations[name] = self.violations.get(name, 0) + 1
        raised = raised_behind(violation)
        # Its place and not its words, which may quote a prompt.
        where = {} if raised is None else {"error": type(raised).__name__, "at": places_of(raised)}
        facts = {"statement": violation.statement, "facts": str(violation), **where}
        log.error("a property does not hold", property=name, **facts)

    def _send_step(self) -> None:
        self._report.send(self.loop, self.intake.weights.served, partial(self._send, self._names.detokenizer))

    def _send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> None:
        self.context.send(to, message, lane)

    def _beat(self, now: float) -> None:
        """Tell the watchdog that messages are handled here, and how long the worker has been at its step."""
        age_s = now - min(self._launched_at.values()) if self._launched_at else None
        self._send(self._names.watchdog, Heartbeat(age_s), Lane.CONTROL)
        if self._next_beat is not None:  # where it failed behind this line
            self._next_beat.cancel()
        self._next_beat = self.context.after(HEARTBEAT_S, HeartbeatDue())
