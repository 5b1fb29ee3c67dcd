"""Scheduler <-> worker: one `Execute` for each step, one answer. O(1) messages a step, never one a request.

    stager ── AwaitRunner ──► worker ── RunnerBack ──► stager      what computes was lost beside the steps
                                └───── RunnerGone ──► scheduler ── ResetWorker ──► worker

`RunnerGone` is an order (`pawl.loops.orders.runner`): what follows from it is recorded.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pawl.gpu.step_runner import RankState
from pawl.lifecycle.step import StepBatch, StepResult


class Execute(msgspec.Struct, frozen=True, tag=True, eq=False):
    """Run this step. Applied exactly once, in order of `batch.step`."""

    batch: StepBatch


class Executed(msgspec.Struct, frozen=True, tag=True, eq=False):
    """The step is done."""

    result: StepResult
    ranks: tuple[RankState, ...] = ()
    """Of the model, where it is shared out, afterwards."""


class ExecuteFailed(msgspec.Struct, frozen=True, tag=True):
    """The step did not complete; every later step launched before the `Reset` is refused the same way."""

    step: int
    reason: str
    blameless: bool = False
    """What computes was lost, and nothing in the step has a part in it."""


class ResetWorker(msgspec.Struct, frozen=True, tag=True):
    """Forget every slot and page (after a lost step). Steps numbered below `next_step` will never be answered again."""

    next_step: int
    next_save: int = 0
    """Pages of Saves numbered below are not to be read any more."""


class AwaitRunner(msgspec.Struct, frozen=True, tag=True):
    """stager -> worker: what computes was lost under something that is read. Answered once it is there again."""


class RunnerBack(msgspec.Struct, frozen=True, tag=True):
    """worker -> stager: what computes is there."""


ToWorker: TypeAlias = Execute | ResetWorker | AwaitRunner
