"""An update of the weights: scheduler, stager, groups and worker.

    scheduler ── Stage ──► stager ── WeightsStaged, WeightsFailed ──► scheduler
    scheduler ── JoinGroup, ReceiveParts, KeepGroups ──► groups ── GroupMet, PartsReceived, GroupLost ──► scheduler
    scheduler ── Swap ──► worker ── WeightsSwapped, WeightsFailed ──► scheduler ── WeightsServed ──► gateway

The answers are orders (`pawl.loops.orders`): what follows from them is recorded. What is staged lies with the runner,
where the worker finds it, and what is received in `pawl.gpu.trainers.received`, where the stager does.
"""

from __future__ import annotations

import msgspec

from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.lifecycle.weight_source import Sent

UNREAD = "the server failed to read the weights"
UNEXCHANGED = "the worker failed to exchange the weights"


class Stage(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> stager: lay out the weights of `source` beside those that serve. Answered once."""

    ticket: int
    source: Sent
    last: bool = True
    """No further part of them is to come; see `pawl.gpu.step_runner.StepRunner.stage`."""


class JoinGroup(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> groups: be a member of this group. Answered by GroupMet or GroupLost."""

    number: int
    place: Place


class ReceiveParts(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> groups: receive these tensors, if the model has them, and keep them for the stager. Answered by
    PartsReceived or GroupLost."""

    number: int
    ticket: int
    specs: tuple[TensorSpec, ...]
    flat: bool
    """They come put together to one."""


class KeepGroups(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> groups: leave all groups but these."""

    numbers: tuple[int, ...]


class Swap(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> worker, while no step is in flight: compute with what is staged under this ticket. Answered once."""

    ticket: int


class WeightsServed(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> gateway: these weights are served from now on."""

    version: str
    source: str
    """Where they come from; "": what the engine started with."""
    fingerprint: str = ""
    replica: int = 0


AS_STARTED = WeightsServed("", "")
"""Those that the engine started with, under the name that they had then."""
