"""What the scheduler plans within, set while it runs."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pawl.actors.control_row import Answer, Facts, Row, Shown, Source, Who, plain
from pawl.actors.fields import convert
from pawl.actors.messages.control import Reply
from pawl.actors.text.invalid import InvalidRequest
from pawl.lifecycle.states import Cause
from pawl.loops.orders.limits import SetState, SlowDown

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway

PATIENCE_S = 5.0
BY_SGLANG = {
    "max_running_requests": "max_running",
    "pp_max_micro_batch_size": "max_running",
    "chunked_prefill_size": "prefill_chunk",
    "max_queued_requests": "max_queued",
}
"""SGLang's names of what may be set. Of its micro batches there is one."""


class SetInternalState(msgspec.Struct, frozen=True, tag="set_internal_state", forbid_unknown_fields=True):
    """Set limits of the scheduler while it runs, by Pawl's names or SGLang's: all of them, or, where one may not be so,
    none."""

    server_args: Annotated[
        Annotated[dict[str, Any], msgspec.Meta(max_length=64)],
        msgspec.Meta(description="max_running, prefill_chunk, max_queued: at most what the server started with"),
    ]


def set_state(gateway: Gateway, body: SetInternalState, answer: Answer) -> None:
    """Give the order, if all names and types are right."""
    names = [BY_SGLANG.get(name, name) for name in body.server_args]
    twice = [name for name, count in Counter(names).items() if count > 1]
    try:
        if twice:
            raise InvalidRequest(f"{twice[0]} is set twice")
        order = convert(dict(zip(names, body.server_args.values(), strict=True)), SetState, "server_args")
    except InvalidRequest as error:
        answer(Reply(0, False, error.message, {"updated": False}))
        return
    gateway.ask(order, answer, PATIENCE_S)


def _show_updated(reply: Reply, facts: Facts) -> Shown:
    # As SGLang has it: one entry for each scheduler.
    return (HTTPStatus.OK, [True]) if reply.ok else plain(reply, facts)


def _drawn_limits(source: Source) -> SetInternalState | None:
    if not source.chance(0.2):
        return None
    drawn = {
        "max_running_requests": source.pick((1, 1, 2, 9)),
        "chunked_prefill_size": source.pick((4, 2, 99)),
        "max_queued": source.pick((16, 1)),
    }
    return SetInternalState({name: value for name, value in drawn.items() if source.chance(0.5)})


def _check_limits(body: SetInternalState, reply: Reply) -> str | None:
    given = {BY_SGLANG.get(name, name): value for name, value in body.server_args.items()}
    told = reply.body.get("server_args", {})
    if reply.ok and given.items() - told.items():
        return f"{given} was set, and {told} is in force"
    return None


SET_STATE = Row(
    name="set-state",
    message=SetState,
    body=SetInternalState,
    at_gateway=set_state,
    reply=list[bool],
    show=_show_updated,
    who=Who.ADMIN,
    routes=("/set_internal_state",),
    patience_s=PATIENCE_S,
    draw=_drawn_limits,
    check=_check_limits,
    proves="limits_hold",
    ends=frozenset({Cause.OVERLOADED}),
)

SLOW_DOWN = Row(
    name="slow-down",
    message=SlowDown,
    who=Who.ADMIN,
    routes=("/slow_down",),
    patience_s=PATIENCE_S,
    draw=lambda source: SlowDown(source.pick((0.01, 0.001, None))) if source.chance(0.15) else None,
    proves="limits_hold",
    undone_by=SlowDown(None),
)
