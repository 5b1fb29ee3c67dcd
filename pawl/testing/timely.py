"""The scheduler of a simulated engine: the real one, that tells at once what it finds wrong with itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pawl.actors.runtime.actor import places_of
from pawl.actors.scheduler import Scheduler
from pawl.lifecycle.requests import RequestInfo
from pawl.loops.intake import Outcome
from pawl.loops.orders.requests import Abort, CheckDeadlines
from pawl.loops.properties.state import name_of
from pawl.memory.arrays import Int32s
from pawl.memory.violation import MemoryViolation, raised_behind
from pawl.testing.reuse import left_in_row


class TimelyScheduler(Scheduler):
    """A scheduler that must have ended every request whose deadline has passed, each time it looks at deadlines, and
    every one that it is told to end, when it has been told; and must have no step in flight when it tells what is to be
    told after them. What its loop breaks fails the run."""

    report: Callable[[str, str, int | None], None]

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
        super().receive(message)
        if isinstance(message, Abort):
            self._check_ended(message)
        if isinstance(message, CheckDeadlines):
            table = self.loop.table
            live = table.live_rows()
            late = live[table.deadline[live] <= self.context.now()]
            if len(late):
                request = table.info(int(late[0])).request
                self.report("bounded_progress", "its deadline has passed, and it is live", request)

    def answered(self, number: int, outcome: Outcome) -> None:
        super().answered(number, outcome)
        if outcome.after_steps and self.loop.in_flight and number not in self._askers:
            self.report("quiescent_flush", f"told with a step in flight: {outcome.message}", None)

    def _check_ended(self, abort: Abort) -> None:
        for request in abort.requests:
            if request in self.loop.table.row_of:
                why = f"the scheduler was told to end it (cause {abort.cause}), and has not"
                self.report("abort_is_total", why, request)


def timely(scheduler: type[Scheduler]) -> type[TimelyScheduler]:
    """The same scheduler, that is a TimelyScheduler as well."""
    if scheduler is Scheduler:
        return TimelyScheduler
    return type(scheduler.__name__, (TimelyScheduler, scheduler), {})
