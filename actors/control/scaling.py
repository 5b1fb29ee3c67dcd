"""How many replicas take requests, set while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pawl.actors.control_row import Row, Source, Who
from pawl.actors.messages.control import Reply
from pawl.loops.intake import Outcome

if TYPE_CHECKING:
    from pawl.actors.scheduler import Scheduler

ALONE = "there is one replica, in the process of the server: --max-dp makes room for more"
MAX_REPLICAS = 1024
DRAWN_GRACES_S = (30.0, 0.0, 0.05)


class ScaleReplicas(msgspec.Struct, frozen=True, tag="scale_replicas", forbid_unknown_fields=True):
    """Have so many replicas take requests. More are started, and told what lasts, before they take any; those that are
    too many get no new ones, and leave once theirs have ended, or go on in others after a while. Answered at once."""

    replicas: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=MAX_REPLICAS)], msgspec.Meta(description="how many: from --dp to --max-dp")
    ]
    grace_s: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=86400)],
        msgspec.Meta(description="how long requests may take to end in a replica that leaves; then others have them"),
    ] = 30.0
    on_load: Annotated[
        bool | None, msgspec.Meta(description="whether the load changes the number from now on; otherwise as before")
    ] = None


def _alone(scheduler: Scheduler, question: ScaleReplicas) -> Outcome:
    """Where there is a router, it answers."""
    return Outcome(False, ALONE)


def _drawn(source: Source) -> ScaleReplicas | None:
    if not source.chance(0.2):
        return None
    on_load = source.pick((None, None, True, False))
    return ScaleReplicas(source.pick((1, 2, 3, 4)), source.pick(DRAWN_GRACES_S), on_load)


def _check(body: ScaleReplicas, reply: Reply) -> str | None:
    told: dict[str, Any] = reply.body
    if reply.ok and told["wanted"] != body.replicas:
        return f"{body.replicas} were ordered, and {told['wanted']} are wanted"
    if reply.ok and not told["serving"] <= told["wanted"] <= told["serving"] + told["starting"]:
        return f"{told['wanted']} are wanted, and these are not so many: {told}"
    return None


SCALE = Row(
    name="scale-replicas",
    message=ScaleReplicas,
    look=_alone,
    at_router=True,
    who=Who.ADMIN,
    routes=("/scale_replicas",),
    draw=_drawn,
    check=_check,
    proves="scaling",
)
