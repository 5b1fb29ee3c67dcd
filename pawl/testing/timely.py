"""The scheduler of a simulated engine: the real one, that tells at once what it finds wrong with itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from pawl.actors.control import Ask
from pawl.actors.messages.execution import Executed
from pawl.actors.runtime.actor import places_of
from pawl.actors.scheduler import Scheduler
from pawl.lifecycle.limits import Limits, refusals
from pawl.lifecycle.machines.session import SessionPhase
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.intake import Order, Outcome, WaitEnds
from pawl.loops.loop import Loop
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.limits import SetState, SlowDown
from pawl.loops.orders.requests import Abort, CheckDeadlines, EndAll, Finish
from pawl.loops.orders.sessions import ExpireSession
from pawl.loops.orders.weights import RenameWeights, WeightsSwapped
from pawl.loops.properties.state import name_of
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.weights import Update
from pawl.memory.arrays import Int32s
from pawl.memory.violation import MemoryViolation, raised_behind
from pawl.testing.garbled import Unanswered, num_offered, unanswered, wrong_after
from pawl.testing.own_scheduler import OwnScheduler
from pawl.testing.reuse import left_in_row
from pawl.testing.windows import WindowsInFlight


class TimelyScheduler(Scheduler):
    """A scheduler that must have ended every request whose deadline has passed, each time it looks at deadlines, and
    every one that it is told to end, or all, when it has been told; and must have no step in flight when it tells what
    is to be told after them; and whose limits change as they are set, and not otherwise; and that is reminded of all
    that ends by time: a drain, a session that is not used, an order that waits; and that moves no more pages at once to
    or from memory below the device than may be; and takes no window page that a step in flight may read. What its loop
    breaks fails the run."""

    report: Callable[[str, str, int | None], None]
    refused = False
    """What became of the order that was answered last."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._told_after: dict[int, int] = {}
        """Who is told once a step has come back -> the step."""
        self._unanswered: Unanswered | None = None
        """Whom the result leaves without an answer that is being handled."""
        self._reminders: set[Order] = set()
        """All that were ever ordered for later."""
        self._windows = WindowsInFlight()

    def violated(self, violation: MemoryViolation) -> None:
        super().violated(violation)
        raised = raised_behind(violation)
        where = "" if raised is None else f"{type(raised).__name__}: {raised}, at {', '.join(places_of(raised))}"
        self.report(name_of(violation), f"{violation}{where}", None)

    def opened(self, row: int, info: RequestInfo, tokens: Int32s) -> None:
        super().opened(row, info, tokens)
        for name in left_in_row(self.loop.table, row, tokens):
            text = f"row {row} keeps {name} of the request before"
            self.report("batch_independence", text, info.request)

    def receive(self, message: Any) -> None:
        before = msgspec.structs.replace(self.loop.limits.now)
        self._unanswered = unanswered(self.loop, message.result) if isinstance(message, Executed) else None
        update = self.intake.weights.update
        super().receive(message)
        for text, request in () if self._unanswered is None else wrong_after(self.loop, self._unanswered):
            self.report("fault_isolation", text, request)
        self._check_limits(message.message if isinstance(message, Ask) else message, before)
        if isinstance(message, Abort):
            self._check_ended(message)
        if isinstance(message, Finish) and message.request in self.loop.table.row_of:
            why = f"a stop string ended it within {message.num_output} tokens, and the scheduler, told so, has not"
            self.report("stop_semantics", why, message.request)
        why = self._why_all_end(message, update)
        if why and self.loop.table.row_of:
            self.report("abort_is_total", f"{why}, and it is live", next(iter(self.loop.table.row_of)))
        if isinstance(message, CheckDeadlines):
            table = self.loop.table
            live = table.live_rows()
            late = live[table.deadline[live] <= self.context.now()]
            if len(late):
                request = table.info(int(late[0])).request
                self.report("bounded_progress", "its deadline has passed, and it is live", request)

    def launch(self, scheduled: ScheduledBatch) -> None:
        super().launch(scheduled)
        if wrong := self._windows.launched(self.loop, scheduled):
            self.report("no_reuse_before_fence", wrong, None)

    def ended(self, ending: Ending) -> None:
        super().ended(ending)
        before, request = self._unanswered, ending.info.request
        if before is None or request not in before.requests or ending.cause is not Cause.INTERNAL:
            return
        if num_offered(self.loop) != before.offered:
            text = "the worker had no token for it, and others are offered what it has computed"
            self.report("read_after_commit", text, request)

    def answered(self, number: int, outcome: Outcome) -> None:
        super().answered(number, outcome)
        self.refused = not outcome.ok
        if outcome.after_steps and self.loop.in_flight:
            self._told_after[number] = self.loop.in_flight[-1].step
            self._check_told()

    def remind(self, delay_s: float, order: Order) -> None:
        super().remind(delay_s, order)
        self._reminders.add(order)

    def settled(self) -> None:
        super().settled()
        self._check_told()
        self._check_reminded()
        for text in beyond_the_tiers(self.loop):
            self.report("limits_hold", text, None)

    def spares(self, message: Any, error: Exception) -> bool:
        survived = super().spares(message, error)
        for number in self.intake.waiting if survived else ():
            if number not in self._askers:
                self.report("quiescent_flush", f"order {number} waits for rest, and who gave it waits no longer", None)
        return survived

    def _check_reminded(self) -> None:
        if self.num_contained:
            return  # what failed in between may have been that
        intake = self.intake
        for number in intake.waiting:
            if WaitEnds(number) not in self._reminders:
                self.report("quiescent_flush", f"order {number} waits for rest, and nothing will end that", None)
        if intake.draining and EndAll() not in self._reminders:
            self.report("bounded_progress", "the engine drains, and nothing ends what is left after its grace", None)
        for session in self.loop.requests.sessions.by_name.values():
            waits = session.phase is SessionPhase.OPEN and session.timeout_s and not session.live
            if waits and ExpireSession(session.name, session.num_uses) not in self._reminders:
                text = f"session {session.name!r} is to end when it was not used for a while, and nothing ends it"
                self.report("session_atomicity", text, None)

    def _check_told(self) -> None:
        told = [number for number in self._told_after if number not in self._askers]
        for step in map(self._told_after.pop, told):
            if self.loop.in_flight and self.loop.in_flight[0].step <= step:
                self.report("quiescent_flush", f"an order was answered with step {step} in flight", None)

    def _check_limits(self, message: Any, limits: Limits) -> None:
        """`limits`: before the message."""
        if isinstance(message, SlowDown):
            limits.step_delay_s = message.forward_sleep_time or 0.0
        elif isinstance(message, SetState) and not self.refused:
            limits = msgspec.structs.replace(limits, **message.given())
        elif isinstance(message, SetState) and not any(
            refusals(message.given(), self.config.limits, self.config.page_size)
        ):
            self.report("limits_hold", f"{message} was refused, which leads to no more than at the start", None)
        if self.loop.limits.now != limits:
            self.report("limits_hold", f"{self.loop.limits.now} after {message}, which leads to {limits}", None)

    def _why_all_end(self, message: Any, update: Update | None) -> str:
        """Why nobody may be live behind this message, if so; the update of the weights that was under way before it."""
        match message:
            case EndAll(cause):
                return f"the scheduler was told to end all (cause {cause})"
            case WeightsSwapped() if update is not None and update.abort and self.intake.weights.update is None:
                return "the weights were exchanged, which was to end all"
            case Ask(message=RenameWeights(abort_all_requests=True)) if not self.refused:
                return "the weights were renamed, which was to end all"
        return ""

    def _check_ended(self, abort: Abort) -> None:
        for request in abort.requests:
            if request in self.loop.table.row_of:
                why = f"the scheduler was told to end it (cause {abort.cause}), and has not"
                self.report("abort_is_total", why, request)


def beyond_the_tiers(loop: Loop) -> Iterator[str]:
    """What is under way to or from memory below the device, and is more than may be, in words."""
    for companion in loop.companions:
        match companion:
            case LowerTiers(config=config, saving=saving, fetching=fetching):
                if saving.num_under_way > config.max_saving_pages:
                    yield f"{saving.num_under_way} pages are being saved, and {config.max_saving_pages} may be"
                most = max((len(fetch.keys) for fetch in fetching._fetches.values()), default=0)
                if most > config.max_fetch_pages:
                    yield f"{most} pages are fetched at once, and {config.max_fetch_pages} may be"
            case RemotePrefill(config=config, num_pages=num_pages) if num_pages > config.max_pages:
                yield f"{num_pages} pages come from prefill replicas, and there is room for {config.max_pages}"


def timely(scheduler: type[Scheduler], name: str = "") -> type[TimelyScheduler]:
    """The same scheduler, that is a TimelyScheduler as well; a user's own has a name, and its calls are limited."""
    if scheduler is Scheduler:
        return TimelyScheduler
    return type(
        scheduler.__name__, (OwnScheduler, TimelyScheduler, scheduler), {"own_class": scheduler, "own_name": name}
    )
