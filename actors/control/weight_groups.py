"""Weights that a trainer broadcasts."""

from __future__ import annotations

from pawl.actors.control.weights import BROADCAST, PATIENCE_S
from pawl.actors.control_row import Row, Source, Who
from pawl.actors.messages.control import LATE, Reply
from pawl.lifecycle.states import Cause
from pawl.loops.orders.weight_groups import JoinWeightGroup, LeaveWeightGroup, ReceiveWeights

SIMULATED = "simulated"
"""The group of simulated clients. Its trainer sends the weights of BROADCAST."""
FIRST, SECOND = "ghost.first", "ghost.second"
"""Tensors of a ghost."""
ELSEWHERE = "elsewhere"
"""No host that may be a trainer."""


def _joins(source: Source) -> JoinWeightGroup | None:
    if not source.chance(0.3):
        return None
    address = ELSEWHERE if source.chance(0.1) else "localhost"
    size = 1 if source.chance(0.1) else 2
    return JoinWeightGroup(
        master_address=address,
        master_port=29500,
        rank_offset=1,
        world_size=size,
        group_name=SIMULATED,
        backend="gloo",
    )


def _receives(source: Source) -> ReceiveWeights | None:
    """Two tensors, one that is not the last, or one that no model has beside another."""
    if not source.chance(0.25):
        return None
    whole, part, misfit = ((FIRST, SECOND), True), ((SECOND,), False), ((FIRST, "ghost.third"), True)
    names, last = source.pick((whole, whole, whole, part, misfit))
    return ReceiveWeights(
        names=names,
        dtypes=("uint64",) * len(names),
        shapes=((1,),) * len(names),
        group_name=SIMULATED,
        load_format=source.pick((None, "flattened_bucket")),
        abort_all_requests=source.chance(0.2),
        weight_version=next(iter(BROADCAST)),
        last=last,
    )


def _leaves(source: Source) -> LeaveWeightGroup | None:
    return LeaveWeightGroup(SIMULATED) if source.chance(0.1) else None


def _joined_rightly(body: JoinWeightGroup, reply: Reply) -> str | None:
    if reply.ok and (body.master_address == ELSEWHERE or body.rank_offset >= int(body.world_size)):
        return "a group was joined that may not be"
    return _told(reply)


def _received_rightly(body: ReceiveWeights, reply: Reply) -> str | None:
    if reply.ok and not set(body.names) <= {FIRST, SECOND}:
        return "weights were served that the model does not have"
    return _told(reply)


def _told(reply: Reply) -> str | None:
    return "nobody said what became of it" if not reply.message or LATE in reply.message else None


JOIN_GROUP = Row(
    name="join-weight-group",
    message=JoinWeightGroup,
    who=Who.ADMIN,
    routes=("/init_weights_update_group",),
    patience_s=PATIENCE_S,
    draw=_joins,
    check=_joined_rightly,
    proves="weight_groups",
    undone_by=LeaveWeightGroup(SIMULATED),
)
RECEIVE_WEIGHTS = Row(
    name="receive-weights",
    message=ReceiveWeights,
    who=Who.ADMIN,
    routes=("/update_weights_from_distributed",),
    patience_s=PATIENCE_S,
    draw=_receives,
    draws=3,
    check=_received_rightly,
    proves="weight_groups",
    ends=frozenset({Cause.CLIENT}),
)
LEAVE_GROUP = Row(
    name="leave-weight-group",
    message=LeaveWeightGroup,
    who=Who.ADMIN,
    routes=("/destroy_weights_update_group",),
    draw=_leaves,
    proves="weight_groups",
)
