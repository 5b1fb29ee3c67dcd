"""Ranks that apply the same steps, each once, in order; what is wrong with one is found, and all are started again.

    launch ──► the same bytes ──► rank 0, rank 1, …
    collect ◄── one answer each: all with the same hash of what was applied and drawn, or none of them is believed

Needs no PyTorch.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import msgspec
import structlog

from pawl.gpu.parallel.ranks import IN_VAIN, HostGone, Line, Ranks, RanksDiverged, StartRanks, StartRefused
from pawl.gpu.parallel.restarts import Restarts
from pawl.gpu.parallel.wire import Answer, Beside, ForgetSlots, Ready, RunStep, ToRank, Usage
from pawl.gpu.step_runner import REFUSALS, RankState, RunnerLost
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import StepBatch, StepResult

log = structlog.get_logger("pawl.gpu.parallel")

_REFUSALS = {each.__name__: each for each in REFUSALS}
LOST = "ranks were lost, and are started again with the next step"
LONG_S = 1800.0
"""For reading weights, and all else that is no step."""


class RankRefused(Exception):
    """Every rank has refused a step, or has failed in it, in the same way. `kind` is the class of what it raised."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind = kind


class StepOrder:
    """The steps of a group, and the life of its ranks."""

    def __init__(
        self,
        start: StartRanks,
        model: str,
        step_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Starts the ranks for the model at `model`. A step that takes longer than `step_limit_s` is lost. Raises
        RankLost or StartRefused."""
        self._start, self._step_limit_s = start, step_limit_s
        self.model = model
        """Where a start finds the weights that compute; empty: nowhere."""
        self._clock, self._sleep = clock, sleep
        self._restarts = Restarts()
        self._beside = Lock()
        """Held by whoever uses the second line, and while ranks are started."""
        self.version = 0
        """Changes with the weights that compute, and with the ranks that have them."""
        self.released: frozenset[MemoryTag] = frozenset()
        self._launched: deque[int] = deque()
        """Steps that are not collected."""
        self._unread = 0
        """Of these, the last so many are not answered."""
        self._results: deque[StepResult | Exception] = deque()
        self._lost: Exception = StartRefused("")
        self._ranks: Ranks | None = start(model)
        self._ended: Ranks | None = None
        """Those that were ended beside the steps, which have not found it yet."""
        self.ready: Sequence[Ready] = self._ranks.ready
        self._usage: Sequence[Usage | None] = [None] * len(self.ready)

    def launch(self, batch: StepBatch) -> int:
        """See `StepRunner.launch`; a batch that is refused is so when it is collected. Raises RunnerLost."""
        try:
            self._tell(RunStep(batch))
        except RunnerLost as error:
            # Nobody has computed it yet: it has no part in that. A step in flight may have, and hears of it next.
            raise RunnerLost(str(error), blameless=True) from error
        self._launched.append(batch.step)
        self._unread += 1
        return batch.step

    def collect(self, launched: int) -> StepResult:
        """See `StepRunner.collect`. Raises RunnerLost, or RankRefused."""
        assert self._launched, "steps are collected in the order they were launched, and none across a reset"
        assert launched == self._launched[0], "steps are collected in the order they were launched"
        if not self._results:
            self._read_step()
        self._launched.popleft()
        result = self._results.popleft()
        if isinstance(result, Exception):
            raise result
        self._restarts.served()
        return result

    def _read_step(self) -> None:
        answers = self._answers(self._step_limit_s)
        self._unread -= 1
        self._usage = [answer.usage for answer in answers]
        self.stepped(answers)
        try:
            result = next((answer.result for answer in agreed(answers) if answer.result is not None), None)
        except RankRefused as error:
            self._results.append(error)
            return
        assert result is not None, "a step gives one"
        self._results.append(result)

    def ask(self, message: ToRank) -> Sequence[Answer]:
        """Told behind all steps in flight, whose results wait for whoever collects them. Raises what ranks refuse with,
        and RunnerLost."""
        while self._unread:
            self._read_step()
        self._tell(message)
        answers = self._answers(LONG_S)
        self.released = frozenset(answers[0].released)
        return agreed(answers)

    @property
    def ranks(self) -> tuple[RankState, ...]:
        """See `StepRunner.ranks`."""
        told = zip(self.ready, self._usage, strict=True)
        return tuple(_state(ready, usage, self._restarts.total) for ready, usage in told)

    @property
    def lost(self) -> bool:
        """See `StepRunner.lost`."""
        ranks = self._ranks
        return ranks is None or ranks is self._ended

    def _tell(self, message: ToRank) -> None:
        if self._ranks is None:
            raise RunnerLost(str(self._lost), blameless=True)
        try:
            self._ranks.steps.tell(message)
        except RunnerLost as error:
            self._lose(error)
            raise

    def _answers(self, limit_s: float) -> Sequence[Answer]:
        if self._ranks is None:
            raise RunnerLost(str(self._lost), blameless=getattr(self._lost, "blameless", True))
        try:
            answers = self._ranks.steps.answers(limit_s)
            _check_met(answers)
            # One that has failed has not applied the step, and differs for that.
            _check_alike(answers)
            if differ(answers):
                raise RanksDiverged([answer.applied + answer.drawn for answer in answers])
        except RunnerLost as error:
            self._lose(error)
            raise
        return answers

    # ---- loss, and starting again ----

    def _lose(self, error: Exception) -> None:
        log.error("ranks are lost", reason=str(error))
        self._lost = error
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            ranks.end()
        self._results.clear()
        self._unread = 0

    def reset(self) -> None:
        """See `StepRunner.reset`: of ranks that are there, or by starting all again. Raises RunnerLost when that
        was done often enough."""
        if self._ranks is not None:
            try:
                while self._unread:
                    self._read_step()
                self._launched.clear()
                self._results.clear()
                self.ask(ForgetSlots())
                return
            except RunnerLost:
                pass  # which is logged, and what follows is for it
        self._launched.clear()
        with self._beside:
            while self._ranks is None:
                self._try_to_start()

    def _try_to_start(self) -> None:
        wait_s = self._restarts.next_wait_s(self._clock())
        if wait_s is None:
            raise RunnerLost(f"{self._lost}; {self._restarts.total} starts were enough", blameless=True)
        if not self.model:
            raise RunnerLost(f"{self._lost}; the weights that ranks were sent are lost with them", blameless=True)
        self._sleep(wait_s)
        log.info("ranks are started again", reason=str(self._lost), start=self._restarts.total)
        ranks: Ranks | None = None
        try:
            ranks = self._start(self.model)
            self.restore(ranks)
        except HostGone:
            raise
        except Exception as error:  # whatever stood in the way of this start: how many there are is bounded
            log.error("ranks have not started", reason=repr(error))
            self._lost = error
            if ranks is not None:
                ranks.end()
            return
        self._ranks, self.ready = ranks, ranks.ready
        self._usage = [None] * len(self.ready)
        self.version += 1

    @abstractmethod
    def stepped(self, answers: Sequence[Answer]) -> None:
        """A step was answered, by all alike."""

    @abstractmethod
    def restore(self, ranks: Ranks) -> None:
        """Give ranks that were just started what they had beside the model. Raises StartRefused where it is not the
        same."""

    def close(self) -> None:
        """End the ranks. It serves no more."""
        self._lost, self.model = StartRefused("the ranks were ended"), ""
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            ranks.end()

    def ask_beside(self, message: Beside) -> Sequence[Answer]:
        """Another thread may call it while steps are launched. Raises what ranks refuse with, and RunnerLost."""
        with self._beside:
            ranks = self._ranks
            if ranks is None:
                raise RunnerLost(LOST, blameless=True)
            try:
                return agreed(asked(ranks.beside, message))
            except RunnerLost as error:
                # An answer that comes after all would be taken for that of the next question. The next step finds them
                # ended, and starts all again.
                self._ended = ranks
                ranks.end()
                raise RunnerLost(f"{error}; {LOST}", blameless=error.blameless) from error


def _state(ready: Ready, usage: Usage | None, restarts: int) -> RankState:
    done: dict[str, Any] = {} if usage is None else msgspec.structs.asdict(usage)
    same = ("rank", "stage", "tensor", "pid", "host", "device", "max_tokens", "kv_bytes", "shard")
    return RankState(**{name: getattr(ready, name) for name in same}, restarts=restarts, **done)


def differ(answers: Sequence[Answer]) -> bool:
    """Whether ranks have applied different steps, or have drawn different tokens."""
    drawn = {answer.drawn for answer in answers if answer.drawn}
    return len({answer.applied for answer in answers}) > 1 or len(drawn) > 1


def asked(line: Line, message: ToRank | Beside) -> Sequence[Answer]:
    line.tell(message)
    return line.answers(LONG_S)


def _check_met(answers: Sequence[Answer]) -> None:
    """Raises RunnerLost where ranks have waited for each other in vain, and nothing else is wrong with any."""
    told = [answer for answer in answers if answer.kind]
    if told and all(answer.kind == IN_VAIN for answer in told):
        raise RunnerLost(told[0].refusal, blameless=True)


def _check_alike(answers: Sequence[Answer]) -> None:
    """Raises RunnerLost where some ranks have done what others have refused: they are not the same any more."""
    for rank, answer in enumerate(answers):
        if answer.kind != answers[0].kind:
            told = next(each for each in answers if each.kind)
            who = answers.index(told)
            raise RunnerLost(
                f"rank {who} alone has failed: {told.kind}: {told.refusal} (not rank {rank})", blameless=False
            )


def agreed(answers: Sequence[Answer]) -> Sequence[Answer]:
    """The answers, where nobody has refused."""
    for answer in answers:
        if answer.kind in _REFUSALS:
            raise _REFUSALS[answer.kind](answer.refusal)
        if answer.kind:
            raise RankRefused(answer.kind, answer.refusal)
    return answers
