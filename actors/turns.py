"""What a request that is a turn of a session asks of the loop."""

from __future__ import annotations

from pawl.actors.messages.generate import Generate
from pawl.lifecycle.request import SessionParameters
from pawl.loops.orders.sessions import BeginTurn


def turn_of(message: Generate, session: SessionParameters) -> BeginTurn:
    """The order that says of which session the request is a turn."""
    return BeginTurn(
        request=message.request,
        rid=message.rid,
        session=session.id,
        tokens=tuple(message.tokens.tolist()),
        max_new_tokens=message.sampling.max_new_tokens,
        scored_from=message.scored_from,
        parent=session.rid,
        offset=session.offset or 0,
        replace=bool(session.replace),
        drop_previous_output=bool(session.drop_previous_output),
    )
