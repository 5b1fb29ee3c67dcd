"""The worker actor: one for each device rank. Applies the scheduler's steps exactly once, in order."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from pawl.actors.control import Ask, row_of
from pawl.actors.expert_moves import switched
from pawl.actors.expert_recorder import ExpertRecorder
from pawl.actors.messages.control import Reply
from pawl.actors.messages.execution import (
    AwaitRunner,
    Execute,
    Executed,
    ExecuteFailed,
    ResetWorker,
    RunnerBack,
    ToWorker,
)
from pawl.actors.messages.experts import BalanceExperts, SwitchExperts
from pawl.actors.messages.hand_over import EndOfPages
from pawl.actors.messages.memory import UNMOVED, MoveMemory
from pawl.actors.messages.transfer import Fence, Fill, PagesToWorker, Save
from pawl.actors.messages.weights import UNEXCHANGED, Swap
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.tiers.page_copier import PageCopier
from pawl.gpu.profiler import Profiler, ProfileRefused
from pawl.gpu.step_runner import MemoryRefused, RunnerLost, StepRunner
from pawl.gpu.tracers import torch_tracer
from pawl.lifecycle.machines.memory import ResidencyEvent, in_order
from pawl.lifecycle.machines.profiling import Profiling
from pawl.lifecycle.step import StepBatch
from pawl.loops.intake import Outcome
from pawl.loops.orders.memory import MoveEnded
from pawl.loops.orders.runner import RunnerGone
from pawl.loops.orders.weights import WeightsFailed, WeightsSwapped
from pawl.loops.recovery import FAILED_ORDER

log = structlog.get_logger("pawl.worker")


class Worker(Actor):
    """Runs steps on one runner. As many as its depth says are launched before the oldest is waited for."""

    accepts = ToWorker | PagesToWorker | Swap | MoveMemory | SwitchExperts | Ask

    def __init__(self, runner: StepRunner[Any], names: Names = NAMES, profiler: Profiler | None = None) -> None:
        """Without a `profiler`, profiles go to the folder in which the process runs."""
        self._names = names
        self.runner = runner
        self.experts = ExpertRecorder(runner.experts)
        self.profiler = profiler or Profiler(torch_tracer, Path())
        self._mover = PageCopier(self, runner, names)
        self._launched: deque[tuple[int, Any]] = deque()
        self._lost_since: int | None = None
        self._next_step = 0
        self._swapped = 0
        """The update whose weights were exchanged last."""
        self._awaited = False
        """The stager waits until what computes is there again."""

    def receive(self, message: Any) -> None:
        match message:
            case Execute(batch):
                self._execute(batch)
            case Save():
                self._mover.save(message, lost=self._lost_since is not None)
            case Fill():
                self._mover.fill(message)
            case Fence():
                self._mover.fence(message)
            case EndOfPages():
                self.context.send(self._names.storage, message)
            case Swap(ticket):
                self._swap(ticket)
            case MoveMemory():
                self._move(message)
            case SwitchExperts(planned):
                self._collect(0)
                self._tell(message, switched(self.runner.placing, planned))
            case Ask():
                self._asked(message)
            case ResetWorker(next_step, next_save):
                self._next_step = next_step
                self._launched.clear()
                self._lost_since = None
                self.runner.reset()
                self._mover.reset(next_save)
                self._tell_stager()
            case AwaitRunner():
                self._awaited = True
                self._collect(0)
                if self._lost_since is None and self.runner.lost:  # no step tells
                    self.context.send(self._names.scheduler, RunnerGone(), Lane.CONTROL)
                elif self._lost_since is None:
                    self._tell_stager()

    def settled(self) -> bool:
        self._collect(max(len(self._launched) - 1, 0))
        return bool(self._launched)

    def spares(self, message: Any, error: Exception) -> bool:
        """Steps that are not answered are lost. Answering one twice does no harm: the scheduler takes the first."""
        self.told_of(error)
        match message:
            # Each can be done again, whatever was done of it.
            case ResetWorker() | AwaitRunner() | Swap() | MoveMemory() | SwitchExperts() | EndOfPages():
                self.receive(message)
                return True
            case Save() | Fill() | Fence():
                self._mover.failed(message)
                return True
            case Ask(ticket, _, reply_to):
                self.context.send(reply_to, Reply(ticket, False, FAILED_ORDER), Lane.CONTROL)
                return True
        steps = [step for step, _ in self._launched]
        if message is not None and message.batch.step >= self._next_step and message.batch.step not in steps:
            steps.append(message.batch.step)
        self._launched.clear()
        for step in steps:
            self._lose(step, error)
        return True

    def stopped(self, reason: str) -> None:
        if self.profiler.phase is not Profiling.IDLE:
            with suppress(ProfileRefused):  # which is logged
                self.profiler.stop()

    def _asked(self, ask: Ask) -> None:
        self._collect(0)
        by_worker = row_of(ask.message).by_worker
        assert by_worker is not None, "the gateway knows whom to ask"
        outcome = by_worker(self, ask.message)
        self.context.send(ask.reply_to, Reply(ask.ticket, outcome.ok, outcome.message, outcome.facts), Lane.CONTROL)

    def _tell_stager(self) -> None:
        if self._awaited:
            self._awaited = False
            self.context.send(self._names.stager, RunnerBack())

    def _tell(self, switch: SwitchExperts, outcome: Outcome) -> None:
        if switch.asker:
            reply = Reply(switch.ticket, outcome.ok, outcome.message, outcome.facts)
            self.context.send(switch.asker, reply, Lane.CONTROL)

    def _swap(self, ticket: int) -> None:
        self._collect(0)
        try:
            if ticket != self._swapped:
                self.runner.swap(ticket)
                self._swapped = ticket
        except Exception as error:
            log.exception("the weights could not be exchanged")
            answer: WeightsFailed | WeightsSwapped = WeightsFailed(ticket, f"{UNEXCHANGED}: {error}")
        else:
            answer = WeightsSwapped(ticket)
        self.context.send(self._names.scheduler, answer, Lane.CONTROL)

    def _move(self, message: MoveMemory) -> None:
        self._collect(0)
        failure = ""
        try:
            if message.event is ResidencyEvent.RELEASE:
                self.runner.release(message.tags)
            else:
                self.runner.resume(message.tags)
        except MemoryRefused as refused:
            failure = str(refused)
        except Exception as error:
            log.exception("memory could not be released or resumed")
            failure = f"{UNMOVED}: {type(error).__name__}: {error!s:.300}"
        ended = MoveEnded(message.ticket, in_order(self.runner.released), failure)
        self.context.send(self._names.scheduler, ended, Lane.CONTROL)

    def _execute(self, batch: StepBatch) -> None:
        if batch.step < self._next_step:
            return
        if self._lost_since is not None:
            self._fail(batch.step, f"step {self._lost_since} was lost")
            return
        try:
            with self.profiler.step(batch):
                launched = self.runner.launch(batch)
            self.experts.computed(batch)
            self._launched.append((batch.step, launched))
        except Exception as error:
            log.exception("step failed", step=batch.step)
            self.experts.failed()
            self._collect(0)
            self._lose(batch.step, error)
            return
        self._collect(self.runner.depth)

    def _collect(self, leave: int) -> None:
        """Answer launched steps, oldest first, until `leave` are left."""
        while len(self._launched) > leave:
            self._answer(*self._launched[0])
            self._launched.popleft()

    def _answer(self, step: int, launched: Any) -> None:
        if self._lost_since is not None:
            self._fail(step, f"step {self._lost_since} was lost")
            return
        try:
            result = self.runner.collect(launched)
        except Exception as error:
            log.exception("step failed", step=step)
            self.experts.failed()
            self._lose(step, error)
            return
        self.context.send(self._names.scheduler, Executed(result, self.runner.ranks), Lane.CONTROL)
        if self.runner.placing is not None and self.runner.placing.due():
            self.context.send(self._names.stager, BalanceExperts())

    def _lose(self, step: int, error: Exception) -> None:
        self._lost_since = step
        # Clients are told the reason, and an exception's own words may quote another one's prompt.
        if isinstance(error, RunnerLost):
            self._fail(step, f"{type(error).__name__}: {error}", error.blameless)
        else:
            self._fail(step, type(error).__name__)

    def _fail(self, step: int, reason: str, blameless: bool = False) -> None:
        self.context.send(self._names.scheduler, ExecuteFailed(step, reason, blameless), Lane.CONTROL)
