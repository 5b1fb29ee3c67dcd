"""What a request asks of the loop: as it comes, as one that a lost replica had, and as a turn of a session."""

from __future__ import annotations

from pawl.actors.messages.generate import Generate
from pawl.lifecycle.request import SessionParameters
from pawl.lifecycle.requests import RequestInfo
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


def info_of(message: Generate, namespace: str, weights: str, now: float) -> RequestInfo:
    """Of a request that arrives at `now`, in `namespace`, where weights of this fingerprint serve."""
    info = RequestInfo(
        request=message.request,
        rid=message.rid,
        sampling=message.sampling,
        namespace=namespace,
        submitted=now,
        passthrough=message.text_options,
    )
    resumed = message.resumed
    if resumed is not None:
        info.submitted = now - message.age_s
        info.admitted = now - resumed.admitted_s
        info.first_token = None if resumed.first_token_s is None else now - resumed.first_token_s
        info.num_cached = resumed.cached_tokens
        info.num_retractions = info.num_resumed = resumed.num_retractions
        info.num_older = resumed.num_older if resumed.weights == weights else len(resumed.output)
    return info
