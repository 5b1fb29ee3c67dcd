"""An update of the weights: scheduler, stager and worker.

    scheduler ── Stage ──► stager ── WeightsStaged, WeightsFailed ──► scheduler
    scheduler ── Swap ──► worker ── WeightsSwapped, WeightsFailed ──► scheduler ── WeightsServed ──► gateway

The answers are orders (`pawl.loops.orders.weights`): what follows from them is recorded. What is staged lies with the
runner, where the worker finds it.
"""

from __future__ import annotations

import msgspec

from pawl.lifecycle.weight_source import Sent

UNREAD = "the server failed to read the weights"
UNEXCHANGED = "the worker failed to exchange the weights"


class Stage(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> stager: lay out the weights of `source` beside those that serve. Answered once."""

    ticket: int
    source: Sent
    last: bool = True
    """No further part of them is to come; see `pawl.gpu.step_runner.StepRunner.stage`."""


class Swap(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> worker, while no step is in flight: compute with what is staged under this ticket. Answered once."""

    ticket: int


class WeightsServed(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> gateway: these weights are served from now on."""

    version: str
    source: str
    """Where they come from; "": what the engine started with."""
