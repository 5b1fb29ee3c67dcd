"""Orders about the weights: one asks for others, the rest tell how far that has come."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pawl.lifecycle.weight_source import FromBytes, FromDisk, FromSharedMemory
from pawl.loops.intake import LATER, Intake, Order, Outcome
from pawl.loops.orders.requests import Abort
from pawl.loops.versions import VersionName
from pawl.loops.weights import BUSY

RENAMED, EXCHANGED = "the weights were renamed", "the weights were exchanged"
"""What a request is told that an order about weights ends."""


class UpdateWeights(Order, frozen=True, kw_only=True, tag="update_weights"):
    """Serve other weights of the same model, from a folder of safetensors or a GGUF file. They are read and verified
    beside the old ones while requests are served, and exchanged between two steps; a failure leaves the old ones. Who
    runs then starts again from its tokens so far, and the prefix cache is emptied."""

    model_path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, description="what `pawl serve` takes")]
    load_format: Annotated[
        Literal["auto", "safetensors", "gguf"] | None,
        msgspec.Meta(description="refuse weights that are stored otherwise"),
    ] = None
    abort_all_requests: Annotated[
        bool, msgspec.Meta(description="end what is live at the exchange, rather than start it again")
    ] = False
    weight_version: Annotated[
        VersionName | None, msgspec.Meta(description="what replies call the new weights; left out: as before")
    ] = None
    flush_cache: Annotated[
        bool, msgspec.Meta(description="either way the cache is emptied: what it has is of the old weights")
    ] = True

    def apply(self, intake: Intake, now: float) -> Outcome:
        update = intake.weights.begin(self.model_path, self.weight_version, self.abort_all_requests, intake.number, now)
        if update is None:
            return Outcome(False, BUSY)
        intake.stage(update.ticket, FromDisk(self.model_path, self.load_format or "auto"), True)
        return LATER


class PutWeights(Order, frozen=True, kw_only=True, tag="put_weights"):
    """Serve other values for some of the weights. They are verified and laid out beside those that serve, in one part
    or in several, and exchanged between two steps when the last one has come; all that was not sent stays as it is. A
    failure of any part leaves the old weights."""

    source: FromBytes | FromSharedMemory
    """A trace has no bytes: the fingerprint of what they make is recorded when they are staged."""
    last: bool = True
    weight_version: VersionName | None = None
    abort_all_requests: bool = False

    def recorded(self) -> Order:
        return msgspec.structs.replace(self, source=FromBytes(b"")) if isinstance(self.source, FromBytes) else self

    def apply(self, intake: Intake, now: float) -> Outcome:
        weights, version, abort = intake.weights, self.weight_version, self.abort_all_requests
        update = weights.begin(weights.served.source, version, abort, intake.number, now, last=self.last, parts=True)
        if update is None:
            return Outcome(False, BUSY)
        intake.stage(update.ticket, self.source, self.last)
        return LATER


class RenameWeights(Order, frozen=True, tag="rename_weights"):
    """Have replies call the weights that serve by another name."""

    new_version: Annotated[VersionName, msgspec.Meta(description="the name")]
    abort_all_requests: Annotated[
        bool, msgspec.Meta(description="end what is live, so that no reply bears both names")
    ] = True

    def apply(self, intake: Intake, now: float) -> Outcome:
        intake.weights.rename(self.new_version, now)
        live = tuple(intake.loop.table.row_of)
        if self.abort_all_requests and live:
            intake.deliver(Abort(live, message=RENAMED), now)
        return Outcome(True, f"Weight version updated to {self.new_version}", {"new_version": self.new_version})


class WeightsStaged(Order, frozen=True, tag="weights_staged"):
    """The new weights fit, and lie beside the old ones."""

    ticket: int
    fingerprint: str

    def apply(self, intake: Intake, now: float) -> None:
        intake.weights.staged(self.ticket, self.fingerprint, now)


class WeightsSwapped(Order, frozen=True, tag="weights_swapped"):
    """The worker computes with the new weights from its next step on."""

    ticket: int

    def apply(self, intake: Intake, now: float) -> None:
        update = intake.weights.swapped(self.ticket, now)
        live = tuple(intake.loop.table.row_of)
        if update is not None and update.abort and live:
            intake.deliver(Abort(live, message=EXCHANGED), now)


class WeightsFailed(Order, frozen=True, tag="weights_failed"):
    """The new weights cannot be had; the old ones serve on."""

    ticket: int
    message: str

    def apply(self, intake: Intake, now: float) -> None:
        intake.weights.failed(self.ticket, self.message, now)
