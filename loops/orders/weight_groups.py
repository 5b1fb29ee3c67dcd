"""Orders about groups in which a trainer broadcasts weights."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from pawl.lifecycle.weight_group import WIDTHS, CollectiveBackend, Place, TensorSpec
from pawl.lifecycle.weight_source import FromTrainer
from pawl.loops.intake import LATER, Intake, Order, Outcome
from pawl.loops.versions import VersionName
from pawl.loops.weight_groups import ENDED, LEFT, UNKNOWN
from pawl.loops.weights import BUSY

MOST_PARTS = 65_536
GroupName = Annotated[str, Meta(min_length=1, max_length=128)]
DEFAULT_GROUP = "weight_update_group"
Port = Annotated[int, Meta(ge=1, le=65535)]
PortText = Annotated[str, Meta(pattern=r"^[0-9]{1,5}$")]
Rank = Annotated[int, Meta(ge=1, le=65535)]
TensorName = Annotated[str, Meta(min_length=1, max_length=512)]
Dimensions = Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=8)]


class JoinWeightGroup(Order, frozen=True, kw_only=True, tag="join_weight_group"):
    """Meet a trainer in a torch.distributed group of its own, in which it is rank 0 and broadcasts weights."""

    master_address: Annotated[
        Annotated[str, Meta(min_length=1, max_length=255)],
        Meta(description="host of the trainer's TCP store, one of --trainer-hosts"),
    ]
    master_port: Annotated[Port | PortText, Meta(description="port of that store")]
    rank_offset: Annotated[Rank, Meta(description="rank of this engine")]
    world_size: Annotated[Rank, Meta(description="members of the group, the trainer included")]
    group_name: Annotated[GroupName, Meta(description="name of the group, the same as the trainer's")] = DEFAULT_GROUP
    backend: Annotated[CollectiveBackend, Meta(description="the same as the trainer's")] = "nccl"

    def apply(self, intake: Intake, now: float) -> Outcome:
        port, rank, size = int(self.master_port), self.rank_offset, self.world_size
        if not 0 < port < 65536:
            return Outcome(False, f"master_port must be from 1 to 65535, not {port}")
        if rank >= size:
            return Outcome(False, f"a group of {size} has ranks up to {size - 1}, and not {rank}")
        place = Place(
            group=self.group_name,
            address=self.master_address,
            port=port,
            rank=rank,
            world_size=size,
            backend=self.backend,
        )
        refusal = intake.groups.join(place, intake.number, now)
        return Outcome(False, refusal) if refusal else LATER


class ReceiveWeights(Order, frozen=True, kw_only=True, tag="receive_weights"):
    """Take weights that the trainer of a group broadcasts from now on, in this order, and serve them. They are checked
    against the model first, received beside the old ones while requests are served, and exchanged between two steps; a
    failure leaves the old ones, and ends the group."""

    names: Annotated[tuple[TensorName, ...], Meta(max_length=MOST_PARTS, description="of tensors, as in a checkpoint")]
    dtypes: Annotated[
        tuple[TensorName, ...], Meta(max_length=MOST_PARTS, description="PyTorch's name of the type of each")
    ]
    shapes: Annotated[tuple[Dimensions, ...], Meta(max_length=MOST_PARTS, description="of each")]
    group_name: Annotated[GroupName, Meta(description="the group in which they come")] = DEFAULT_GROUP
    load_format: Annotated[
        Literal["flattened_bucket"] | None,
        Meta(description="flattened_bucket: they come flat and put together, in one broadcast"),
    ] = None
    last: Annotated[
        bool, Meta(description="false: others of the same weight_version are to come, exchange nothing yet")
    ] = True
    abort_all_requests: Annotated[
        bool, Meta(description="end what is live at the exchange, rather than start it again")
    ] = False
    weight_version: Annotated[
        VersionName | None, Meta(description="what replies call the new weights; left out: as before")
    ] = None
    flush_cache: Annotated[
        bool, Meta(description="either way the cache is emptied: what it has is of the old weights")
    ] = True
    torch_empty_cache: Annotated[bool, Meta(description="either way memory of the weights before is given back")] = (
        False
    )

    def apply(self, intake: Intake, now: float) -> Outcome:
        groups, weights, version, abort = intake.groups, intake.weights, self.weight_version, self.abort_all_requests
        refusal, update = self._refusal() or groups.unready(self.group_name), None
        if not refusal:
            source, asker = weights.served.source, intake.number
            update = weights.begin(source, version, abort, asker, now, last=self.last, parts=True)
        if update is None:
            ended = groups.unheard(self.group_name, now)
            return Outcome(False, f"{refusal or BUSY}{ENDED if ended else ''}")
        specs = tuple(map(TensorSpec, self.names, map(_plain, self.dtypes), self.shapes))
        groups.receive(self.group_name, update.ticket, specs, self.load_format is not None, now)
        return LATER

    def _refusal(self) -> str:
        """What is wrong with it, whatever the model is."""
        if not self.names:
            return "no tensors are named"
        if not len(self.names) == len(self.dtypes) == len(self.shapes):
            return f"{len(self.names)} names have {len(self.dtypes)} dtypes and {len(self.shapes)} shapes"
        if len(set(self.names)) < len(self.names):
            return "a tensor is named twice"
        unknown = next((dtype for dtype in map(_plain, self.dtypes) if dtype not in WIDTHS), None)
        return "" if unknown is None else f"{unknown[:40]!r} is none of the types {', '.join(WIDTHS)}"


class LeaveWeightGroup(Order, frozen=True, tag="leave_weight_group"):
    """Leave a trainer's group; what it is at fails, and leaves the old weights."""

    group_name: Annotated[GroupName, Meta(description="the group")] = DEFAULT_GROUP

    def apply(self, intake: Intake, now: float) -> Outcome:
        return Outcome(True, LEFT) if intake.groups.leave(self.group_name, now) else Outcome(False, UNKNOWN)


class GroupMet(Order, frozen=True, tag="group_met"):
    """A group that was to be joined is complete."""

    number: int

    def apply(self, intake: Intake, now: float) -> None:
        intake.groups.met(self.number, now)


class PartsReceived(Order, frozen=True, tag="parts_received"):
    """What was expected in this group has come, and can be staged."""

    number: int

    def apply(self, intake: Intake, now: float) -> None:
        update = intake.weights.update
        if intake.groups.received(self.number, now) and update is not None:
            intake.stage(update.ticket, FromTrainer(), update.last)


class GroupLost(Order, frozen=True, tag="group_lost"):
    """The engine is in this group no more."""

    number: int
    reason: str

    def apply(self, intake: Intake, now: float) -> None:
        intake.groups.lost(self.number, self.reason, now)


def _plain(dtype: str) -> str:
    return dtype.removeprefix("torch.")
