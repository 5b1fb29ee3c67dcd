"""Requests that have names: nobody else has one while it is live, and an order to end it finds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pawl.actors.control.requests import AbortRequests
from pawl.actors.messages.control import Reply

if TYPE_CHECKING:
    from pawl.testing.clients import Client, FrontDesk
    from pawl.testing.workload import Control


def names(body: AbortRequests, client: Client) -> bool:
    """Whether the order is for this client's request by its name."""
    wanted = (body.rid,) if isinstance(body.rid, str) else body.rid or ()
    return not body.abort_all and bool(client.rid) and client.rid in wanted


def may_end(control: Control, client: Client) -> bool:
    """Whether an order that ends requests may be for this one: it names nobody, or this one."""
    body = control.body
    return not isinstance(body, AbortRequests) or bool(body.abort_all) or names(body, client)


def have_namesake(desk: FrontDesk, clients: Sequence[Client]) -> bool:
    """Whether somebody who was sent, and may not have ended, has the name of one of these, who are not sent yet."""
    live = {each.rid for each in desk.clients if each.request is not None and not each.num_ends}
    return any(client.rid and client.rid in live for client in clients)


def check_sent(desk: FrontDesk, clients: Sequence[Client]) -> None:
    """The requests of one call have been taken or refused: nobody else who waits has a name of theirs."""
    others = {each.rid for each in desk.clients if each.waits and each not in clients}
    for client in clients:
        if client.waits and client.rid and client.rid in others:
            desk.report("incarnation", f"another live request is named {client.rid!r} as well", client.request)


def check_aborted(desk: FrontDesk, waited: Sequence[Client], reply: Reply) -> None:
    """An order to end these by their names is answered: each has ended, or is said to be about to."""
    pending = reply.body.get("pending", ())
    for client in waited if reply.ok else ():
        if client.waits and client.rid not in pending:
            text = f"it is named {client.rid!r}, was to be aborted, and is live"
            desk.report("abort_is_total", text, client.request)
