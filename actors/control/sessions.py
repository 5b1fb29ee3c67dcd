"""Sessions: earlier turns from which later ones go on."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

import msgspec

from pawl.actors.control_row import Answer, Facts, Row, Shown, Source, plain
from pawl.actors.messages.control import Reply
from pawl.loops.orders.sessions import MAX_CAPACITY, MAX_TIMEOUT_S, CloseSession, Name, OpenSession

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway

SIMULATED = "session"
"""The name of the one session of simulated clients."""


class OpenSessionByName(
    msgspec.Struct,
    frozen=True,
    tag="open_session_by_name",
    forbid_unknown_fields=True,
    rename={"capacity": "capacity_of_str_len", "expires_s": "timeout"},
):
    """Open a session; the reply is its name. `session_params` of `/generate` makes a request a turn of it."""

    capacity: Annotated[
        int, msgspec.Meta(ge=0, le=MAX_CAPACITY, description="tokens that all its turns may hold; 0: any number")
    ] = 0
    session_id: Annotated[Name | None, msgspec.Meta(description="its name; without one it gets a new one")] = None
    streaming: Annotated[bool | None, msgspec.Meta(description="each turn goes on from the one before")] = None
    expires_s: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=MAX_TIMEOUT_S)] | None,
        msgspec.Meta(description="seconds without a turn after which it is closed"),
    ] = None


def open_session(gateway: Gateway, body: OpenSessionByName, answer: Answer) -> None:
    """With a name, which a replay must have."""
    name = body.session_id or gateway.new_rid()
    order = OpenSession(name, body.capacity, body.expires_s or 0.0, bool(body.streaming))
    gateway.ask(order, answer, OPEN_SESSION.patience_s)


def _show_name(reply: Reply, facts: Facts) -> Shown:
    return (HTTPStatus.OK, reply.body["session_id"]) if reply.ok else plain(reply, facts)


def _show_closed(reply: Reply, facts: Facts) -> Shown:
    status, body = plain(reply, facts)
    return (status if reply.ok else HTTPStatus.NOT_FOUND), body


def drawn_session(source: Source) -> OpenSessionByName:
    """The session of simulated clients."""
    return OpenSessionByName(source.pick((0, 60, 12)), SIMULATED, source.chance(0.2), source.pick((None, 0.2)))


OPEN_SESSION = Row(
    name="open-session",
    message=OpenSession,
    body=OpenSessionByName,
    at_gateway=open_session,
    session_of=lambda order: order.session,
    reply=str,
    show=_show_name,
    routes=("/open_session",),
    draw=lambda source: drawn_session(source) if source.chance(0.03) else None,
    check=lambda body, reply: None if reply.ok or "open already" in reply.message else f"not opened: {reply.message}",
    proves="session_atomicity",
    undone_by=CloseSession(SIMULATED),
)

CLOSE_SESSION = Row(
    name="close-session",
    message=CloseSession,
    session_of=lambda order: order.session,
    show=_show_closed,
    routes=("/close_session",),
    draw=lambda source: CloseSession(SIMULATED) if source.chance(0.03) else None,
    proves="session_atomicity",
)
