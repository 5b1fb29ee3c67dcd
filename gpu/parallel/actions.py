"""What a rank does of what it is told, and what it answers. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from pawl.gpu.parallel.applied import Applied
from pawl.gpu.parallel.link import Frame
from pawl.gpu.parallel.wire import (
    Answer,
    CopyIn,
    CopyOut,
    CountExperts,
    DropAdapter,
    ExpectWeights,
    ForgetSlots,
    MoveTags,
    RunStep,
    ShowWeight,
    StageExperts,
    StageWeights,
    SwapWeights,
    SwitchExperts,
    TakeAdapter,
    Uint8s,
    Usage,
)
from pawl.gpu.step_runner import REFUSALS, CountsExperts, StepRunner

if TYPE_CHECKING:
    from pawl.gpu.parallel.held import HoldsExperts

log = structlog.get_logger("pawl.gpu.parallel")
LONGEST = 400
"""Characters of what is told of an error."""


def as_it_is(blocks: Uint8s) -> Uint8s:
    """Bytes of pages that need no cutting."""
    return blocks


def shows_none(name: str) -> dict[str, Any]:
    """Of a rank whose weights nobody sees."""
    return {}


class Used(NamedTuple):
    """Of one rank's process."""

    waiting_s: float = 0.0
    """Seconds that its steps have waited for other ranks."""
    resident_bytes: int = 0
    device_bytes: int = 0


class RankActions:
    """One rank's runner. One thread calls `step`, another `beside`."""

    def __init__(
        self,
        runner: StepRunner[Any],
        *,
        tells: bool,
        draws: bool = True,
        cut_out: Callable[[Uint8s], Uint8s] = as_it_is,
        cut_in: Callable[[Uint8s], Uint8s] = as_it_is,
        show: Callable[[str], dict[str, Any]] = shows_none,
        used: Callable[[], Used] = Used,
        clock: Callable[[], float] = float,
        counts: bool = True,
        experts: HoldsExperts | None = None,
    ) -> None:
        """Of all ranks one `tells` what steps give; one of a stage before the last `draws` nothing. The rank's part of
        pages is what `cut_out` makes of those that its runner reads, and what it writes is what `cut_in` makes of whole
        ones. `show` has the fields of an answer that hold a weight. `used` is asked after each step, whose seconds are
        those of `clock`. With a step it says its `counts` of experts while they are counted; those that it has are
        moved by `experts`."""
        self.runner = runner
        self.applied = Applied(draws=draws)
        self._tells, self._cut_out, self._cut_in, self._show = tells, cut_out, cut_in, show
        self._used, self._clock = used, clock
        self._steps, self._step_s = 0, 0.0
        self._counts, self._counting = counts, False
        self._experts = experts

    def step(self, message: Any, frames: Sequence[Frame]) -> Answer:
        """The answer to a message of `ToRank`, which came in these frames."""
        return self._answer(self._step, message, frames)

    def beside(self, message: Any, frames: Sequence[Frame]) -> Answer:
        """The answer to a message of `Beside`."""
        return self._answer(self._aside, message, frames)

    def _answer(
        self, do: Callable[[Any, Sequence[Frame]], dict[str, Any]], message: Any, frames: Sequence[Frame]
    ) -> Answer:
        try:
            told = do(message, frames)
        except Exception as error:
            if not isinstance(error, REFUSALS):  # of these whoever asked is told, and it is no failure
                log.exception("a rank could not do it", message=type(message).__name__)
            told = {"kind": type(error).__name__, "refusal": " ".join(str(error).split())[:LONGEST]}
        applied, released = self.applied, tuple(sorted(self.runner.released))
        return Answer(applied=applied.digest, drawn=applied.drawn, released=released, **told)

    def _step(self, message: Any, frames: Sequence[Frame]) -> dict[str, Any]:
        runner = self.runner
        match message:
            case RunStep(batch):
                began = self._clock()
                result = runner.collect(runner.launch(batch))
                self.applied.step(frames, result)
                self._steps, self._step_s = self._steps + 1, self._step_s + self._clock() - began
                usage = Usage(self._steps, self._step_s, *self._used())
                # Of the others the hash tells it.
                return {"usage": usage, "result": result if self._tells else None, "counts": self._counted()}
            case ForgetSlots():
                runner.reset()
            case SwapWeights(ticket):
                runner.swap(ticket)
            case MoveTags(release, tags):
                (runner.release if release else runner.resume)(tags)
            case CopyOut(pages):
                return {"data": self._cut_out(runner.read_pages(pages))}
            case CopyIn(pages, blocks):
                runner.write_pages(pages, self._cut_in(blocks))
            case CountExperts(start):
                self._counting = start
                experts = self._counted_experts
                (experts.start if start else experts.stop)()
            case SwitchExperts(ticket):
                self._held.switch(ticket)
                # By which map a step is computed is part of what was applied.
                self.applied.told(frames)
        return {}

    @property
    def _counted_experts(self) -> CountsExperts:
        experts = self.runner.experts
        assert experts is not None, "they are counted for a model that has some"
        return experts

    @property
    def _held(self) -> HoldsExperts:
        assert self._experts is not None, "they are moved where they are shared out"
        return self._experts

    def _counted(self) -> NDArray[np.int64] | None:
        if not self._counting:
            return None
        counts = self._counted_experts.take()
        return counts if self._counts else None

    def _aside(self, message: Any, _: Sequence[Frame]) -> dict[str, Any]:
        runner = self.runner
        match message:
            case StageWeights(ticket, source, last):
                return {"text": runner.stage(ticket, source, last=last)}
            case ExpectWeights(specs):
                runner.expect(specs)
            case TakeAdapter(slot, source):
                return {"text": runner.load_adapter(slot, source)}
            case DropAdapter(slot):
                runner.unload_adapter(slot)
            case StageExperts(ticket, placement, source):
                self._held.stage(ticket, placement, source)
            case ShowWeight(name):
                return self._show(name)
        return {}
