"""Ending live requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pawl.actors.control_row import Answer, Row, Source, Who
from pawl.actors.messages.control import Reply
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort, Drain

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway

PATIENCE_S = 5.0
"""How long to wait to see the requests end."""


Rid = Annotated[str, msgspec.Meta(max_length=128)]
Rids = Annotated[list[Rid], msgspec.Meta(max_length=10_000)]
Note = Annotated[str, msgspec.Meta(max_length=1024)]


class AbortRequests(msgspec.Struct, frozen=True, kw_only=True, tag="abort_requests", forbid_unknown_fields=True):
    """End requests by their exact names, or all, and tell which have ended and which nobody knows."""

    rid: Annotated[Rid | Rids | None, msgspec.Meta(description="name of a request, or several")] = None
    abort_all: Annotated[bool | None, msgspec.Meta(description="all requests")] = None
    abort_message: Annotated[Note | None, msgspec.Meta(description="what their clients are told")] = None


class AbortReply(msgspec.Struct, frozen=True):
    """Of named requests the names; of all requests the numbers."""

    success: bool
    """Every name was known."""
    ended: list[str] | msgspec.UnsetType = msgspec.UNSET
    pending: list[str] | msgspec.UnsetType = msgspec.UNSET
    """They were told to end, and have not within the time."""
    unknown: list[str] | msgspec.UnsetType = msgspec.UNSET
    num_ended: int | msgspec.UnsetType = msgspec.UNSET
    num_pending: int | msgspec.UnsetType = msgspec.UNSET


def abort(gateway: Gateway, body: AbortRequests, answer: Answer) -> None:
    """Give the order, and answer when those it names have had their terminal reply, or after `PATIENCE_S`."""
    names = [body.rid] if isinstance(body.rid, str) else list(body.rid or ())
    if not names and not body.abort_all:
        answer(Reply(0, False, "send rid, or abort_all"))
        return
    found = {name: gateway.find(name) for name in names} if not body.abort_all else {"": gateway.live()}
    numbers = [number for group in found.values() for number in group]
    aborted = gateway.abort(numbers, message=body.abort_message or "")
    pending = set(aborted)

    def reply(ticket: int) -> Reply:
        if body.abort_all:
            facts: dict[str, Any] = {"num_ended": len(aborted) - len(pending), "num_pending": len(pending)}
            return Reply(ticket, True, body={"success": True} | facts)
        facts = {
            "success": all(found.values()),
            "ended": [name for name in names if found[name] and pending.isdisjoint(found[name])],
            "pending": [name for name in names if not pending.isdisjoint(found[name])],
            "unknown": [name for name in names if not found[name]],
        }
        return Reply(ticket, True, body=facts)

    ticket = gateway.asks.expect(PATIENCE_S, answer, reply)

    def ended(number: int) -> None:
        pending.discard(number)
        if not pending and gateway.asks.waits(ticket):
            gateway.asks.answer(reply(ticket))

    try:
        for number in aborted:
            gateway.when_ended(number, lambda number=number: ended(number))  # type: ignore[misc]
    except Exception:
        gateway.asks.withdraw(ticket)
        raise
    if not aborted:
        gateway.asks.answer(reply(ticket))


def _drawn(source: Source) -> AbortRequests | None:
    return AbortRequests(abort_all=True) if source.chance(0.05) else None


def _check(body: AbortRequests, reply: Reply) -> str | None:
    pending = reply.body.get("num_pending", 0)
    return f"{pending} requests were aborted and have not ended" if pending else None


ABORT = Row(
    name="abort",
    message=Abort,
    body=AbortRequests,
    at_gateway=abort,
    reply=AbortReply,
    who=Who.ADMIN,
    routes=("/abort_request",),
    draw=_drawn,
    check=_check,
    proves="abort_is_total",
    ends=frozenset({Cause.CLIENT}),
)

# The gateway's own: it refuses what arrives from then on. A signal to the server sends it.
DRAIN = Row(name="drain", message=Drain, ends=frozenset({Cause.DRAINED}))
