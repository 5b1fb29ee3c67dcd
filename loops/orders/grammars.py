"""Orders from the grammar actor: what has become of a grammar that a request waits for."""

from __future__ import annotations

from pawl.lifecycle.states import Cause
from pawl.loops.intake import Intake, Order


class GrammarReady(Order, frozen=True, tag="grammar_ready"):
    """The request's grammar is compiled: it waits for room like any other."""

    request: int

    def apply(self, intake: Intake, now: float) -> None:
        intake.loop.requests.grammar_ready(self.request, now)


class GrammarFailed(Order, frozen=True, tag="grammar_failed"):
    """The request's grammar cannot be used: it ends, and its client is told why."""

    request: int
    message: str

    def apply(self, intake: Intake, now: float) -> None:
        intake.loop.requests.abort(self.request, Cause.GRAMMAR, now, self.message)
