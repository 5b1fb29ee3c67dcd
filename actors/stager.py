"""The stager reads and verifies new weights and adapters, and lays them out beside what serves.

    scheduler ──Stage──► stager ──WeightsStaged, WeightsFailed──► scheduler
    gateway ──Ask──► stager ──Reply──► gateway
    scheduler ──ReadAdapter──► stager ──AdapterLoaded, AdapterFailed──► scheduler

It answers questions about the weights as well. It runs beside the worker, whose steps go on; what it has laid out lies
with the runner that both know. Where that is lost under a reading, the reading waits, and what comes behind it, until
the worker has it again.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import structlog

from pawl.actors.control import Ask
from pawl.actors.control.experts import RebalanceExperts
from pawl.actors.expert_moves import laid_out
from pawl.actors.messages.adapters import UNREAD as ADAPTER_UNREAD
from pawl.actors.messages.adapters import EmptyAdapterSlot, ReadAdapter
from pawl.actors.messages.control import Reply
from pawl.actors.messages.execution import AwaitRunner, RunnerBack
from pawl.actors.messages.experts import BalanceExperts, SwitchExperts
from pawl.actors.messages.weights import UNREAD as WEIGHTS_UNREAD
from pawl.actors.messages.weights import Stage
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.weight_questions import WeightQuestions
from pawl.gpu.step_runner import AdapterRefused, PlannedMove, RunnerLost, StepRunner, WeightsRefused
from pawl.gpu.trainers.received import Received
from pawl.lifecycle.weight_source import FromTrainer, WeightSource
from pawl.loops.intake import Outcome
from pawl.loops.orders.adapters import AdapterFailed, AdapterLoaded
from pawl.loops.orders.weights import WeightsFailed, WeightsStaged

LONGEST_REASON = 400
"""Characters: a reason may quote what the sender wrote."""

log = structlog.get_logger("pawl.stager")


ForScheduler: TypeAlias = Stage | ReadAdapter | EmptyAdapterSlot
ToStager: TypeAlias = ForScheduler | BalanceExperts | RunnerBack
Answer: TypeAlias = WeightsStaged | WeightsFailed | AdapterLoaded | AdapterFailed


class Stager(Actor):
    """One thing, or question, at a time, in order of arrival."""

    accepts = ToStager | Ask

    def __init__(self, runner: StepRunner[Any], received: Received | None = None, names: Names = NAMES) -> None:
        """`received`: where the weights are that trainers have broadcast."""
        self._names = names
        self._runner = runner
        self._questions = WeightQuestions(runner)
        self._received = received or Received()
        self._waiting: deque[ForScheduler] = deque()
        """What is to be done, in order, when the runner is there again."""
        self._done: ForScheduler | None = None
        """What was done last, and answered."""

    def receive(self, message: ToStager | Ask) -> None:
        match message:
            case BalanceExperts():
                self._balance(None)
            case Ask(message=RebalanceExperts()):
                self._balance(message)
            case Ask():
                self._reply(message, self._questions.answer(message.message))
            case RunnerBack():
                self._go_on()
            case _:
                self._take(message)

    def _take(self, message: ForScheduler) -> None:
        """One thing more to be done, behind those that wait."""
        self._waiting.append(message)
        if len(self._waiting) == 1:
            self._go_on()

    def _go_on(self) -> None:
        """Do what waits, one after the other, until the runner is lost under it."""
        while self._waiting:
            try:
                answer = self._read(self._waiting[0])
            except RunnerLost:
                log.warning("what computes was lost under a reading, which waits", what=type(self._waiting[0]).__name__)
                self.context.send(self._names.worker, AwaitRunner(), Lane.CONTROL)
                return
            self._end(answer)

    def _end(self, answer: Answer | None) -> None:
        """What waits first is done."""
        # In one line: what has its answer waits for none, wherever something fails.
        _, self._done = self._tell(answer), self._waiting.popleft()

    def _tell(self, answer: Answer | None) -> bool:
        return answer is not None and self.context.send(self._names.scheduler, answer, Lane.CONTROL)

    def _read(self, message: ForScheduler) -> Answer | None:
        """For the scheduler: its answer. Raises RunnerLost where it can be done again."""
        try:
            match message:
                case Stage(ticket, last=last):
                    return WeightsStaged(ticket, self._runner.stage(ticket, self._source(message), last=last))
                case ReadAdapter(ticket, slot, source):
                    return AdapterLoaded(ticket, self._runner.load_adapter(slot, source))
                case EmptyAdapterSlot(slot):
                    self._runner.unload_adapter(slot)
                    return None
        except RunnerLost as lost:
            if not isinstance(message, Stage) or not isinstance(message.source, FromTrainer):
                raise
            return self._refusal(message, str(lost))  # what was received is used up
        except (WeightsRefused, AdapterRefused) as refused:
            return self._refusal(message, str(refused))
        except Exception as error:
            log.exception("it could not be read")
            return self._failed(message, error)

    def spares(self, message: Any, error: Exception) -> bool:
        """Nothing that serves has been touched. Whoever waits for an answer gets one, and what is behind is gone on
        with."""
        self.told_of(error)
        if isinstance(message, Ask):
            self._reply(message, Outcome(False, f"{WEIGHTS_UNREAD}: {type(error).__name__}"))
        elif self._waiting and (self._waiting[0] is message or isinstance(message, RunnerBack)):
            self._end(self._failed(self._waiting[0], error))
        elif all(each is not message for each in (self._done, *self._waiting)):
            self._tell(self._failed(message, error))
        self._go_on()
        return True

    def _balance(self, ask: Ask | None) -> None:
        """All ranks have what they get before the worker is told to switch, and answers whoever has asked."""
        found = laid_out(self._runner.placing)
        if isinstance(found, PlannedMove):
            switch = SwitchExperts(found) if ask is None else SwitchExperts(found, ask.reply_to, ask.ticket)
            self.context.send(self._names.worker, switch, Lane.CONTROL)
        elif ask is not None:
            self._reply(ask, found)

    def _reply(self, ask: Ask, outcome: Outcome) -> None:
        reply = Reply(ask.ticket, outcome.ok, outcome.message, outcome.facts)
        self.context.send(ask.reply_to, reply, Lane.CONTROL)

    def _source(self, message: Stage) -> WeightSource:
        return self._received.take(message.ticket) if isinstance(message.source, FromTrainer) else message.source

    def _failed(self, message: ToStager, error: Exception) -> Answer | None:
        what = WEIGHTS_UNREAD if isinstance(message, Stage) else ADAPTER_UNREAD
        return self._refusal(message, f"{what}: {type(error).__name__}")

    def _refusal(self, message: ToStager, reason: str) -> Answer | None:
        if isinstance(message, EmptyAdapterSlot | BalanceExperts | RunnerBack):  # what computes is as it was
            return None
        reason = shortened(reason)
        log.warning("refused", what=type(message).__name__, reason=reason)
        failed = WeightsFailed if isinstance(message, Stage) else AdapterFailed
        return failed(message.ticket, reason)


def shortened(reason: str) -> str:
    """Not longer than anybody should have to read."""
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
