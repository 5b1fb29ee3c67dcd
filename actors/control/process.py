"""The process that serves: its garbage, and calls of other messages by name."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pawl.actors.control_row import Answer, Row, Who
from pawl.actors.fields import convert
from pawl.actors.messages.control import Reply
from pawl.actors.text.invalid import InvalidRequest
from pawl.loops.intake import Outcome

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway
    from pawl.actors.scheduler import Scheduler

Fields = Annotated[dict[str, Any], msgspec.Meta(max_length=64)]
FROZEN = "Garbage collection frozen."


class FreezeGc(msgspec.Struct, frozen=True, tag="freeze_gc", forbid_unknown_fields=True):
    """Collect garbage, and never look at what is left again: what lives as long as the server then costs no pauses."""


class Call(msgspec.Struct, frozen=True, tag="call", forbid_unknown_fields=True):
    """Send the control message of this name, as `pawl ctl` does; the reply is its own."""

    method: Annotated[str, msgspec.Meta(max_length=128, description="name of the message")]
    parameters: Annotated[Fields | None, msgspec.Meta(description="its fields")] = None


def freeze_gc(scheduler: Scheduler, question: FreezeGc) -> Outcome:
    """All actors share the process."""
    gc.collect()
    gc.freeze()
    return Outcome(True, FROZEN, {"frozen_objects": gc.get_freeze_count()})


def call(gateway: Gateway, body: Call, answer: Answer) -> None:
    """The rows are the list of what may be called; their fields have types and bounds."""
    from pawl.actors.control import ROWS

    rows = {row.name: row for row in ROWS if row.routes and row.command}
    row = rows.get(body.method)
    if row is None:
        answer(Reply(0, False, f"there is no method {body.method!r}; there are {', '.join(sorted(rows))}"))
        return
    try:
        message = convert(body.parameters or {}, row.taken)
    except InvalidRequest as error:
        answer(Reply(0, False, f"{body.method}: {error.message}"))
        return
    row.put(gateway, message, answer)


FREEZE_GC = Row(
    name="freeze-gc",
    message=FreezeGc,
    look=freeze_gc,
    who=Who.ADMIN,
    routes=("/freeze_gc",),
    patience_s=60.0,
)

CALL = Row(name="call", message=Call, at_gateway=call, who=Who.ADMIN, routes=("/rpc",), command=False, patience_s=60.0)
