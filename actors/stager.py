"""The stager reads and verifies new weights, and lays them out beside those that serve.

    scheduler ──Stage──► stager ──WeightsStaged, WeightsFailed──► scheduler
    gateway ──Ask──► stager ──Reply──► gateway

It answers questions about the weights as well. It runs beside the worker, whose steps go on; what it has laid out lies
with the runner that both know.
"""

from __future__ import annotations

from typing import Any

import structlog

from pawl.actors.control import Ask
from pawl.actors.messages.control import Reply
from pawl.actors.messages.weights import UNREAD, Stage
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.weight_questions import WeightQuestions
from pawl.gpu.step_runner import StepRunner, WeightsRefused
from pawl.loops.intake import Outcome
from pawl.loops.orders.weights import WeightsFailed, WeightsStaged

LONGEST_REASON = 400
"""Characters: a reason may quote what the sender wrote."""

log = structlog.get_logger("pawl.stager")


class Stager(Actor):
    """One update, or question, at a time, in order of arrival."""

    accepts = Stage | Ask

    def __init__(self, runner: StepRunner[Any], names: Names = NAMES) -> None:
        self._names = names
        self._runner = runner
        self._questions = WeightQuestions(runner)

    def receive(self, message: Stage | Ask) -> None:
        if isinstance(message, Ask):
            self._reply(message, self._questions.answer(message.message))
            return
        try:
            fingerprint = self._runner.stage(message.ticket, message.source, last=message.last)
        except WeightsRefused as refused:
            self._refuse(message.ticket, str(refused))
        except Exception as error:
            log.exception("new weights could not be read")
            self._refuse(message.ticket, f"{UNREAD}: {type(error).__name__}")
        else:
            self.context.send(self._names.scheduler, WeightsStaged(message.ticket, fingerprint), Lane.CONTROL)

    def spares(self, message: Any, error: Exception) -> bool:
        """Nothing that serves has been touched, and the answer is the last thing that is done."""
        self.told_of(error)
        text = f"{UNREAD}: {type(error).__name__}"
        if isinstance(message, Ask):
            self._reply(message, Outcome(False, text))
        else:
            self._refuse(message.ticket, text)
        return True

    def _reply(self, ask: Ask, outcome: Outcome) -> None:
        reply = Reply(ask.ticket, outcome.ok, outcome.message, outcome.facts)
        self.context.send(ask.reply_to, reply, Lane.CONTROL)

    def _refuse(self, ticket: int, reason: str) -> None:
        reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
        log.warning("new weights were refused", reason=reason)
        self.context.send(self._names.scheduler, WeightsFailed(ticket, reason), Lane.CONTROL)
