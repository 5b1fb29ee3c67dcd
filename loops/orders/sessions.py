"""Orders about sessions and their turns."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from pawl.lifecycle.machines.session import MOST_USES
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Intake, Order, Outcome
from pawl.loops.orders.requests import Abort
from pawl.loops.sessions import Session, Wish

TAKES_ITS_PLACE = "takes its place"
"""So ends what a request is told that another turn ends."""
MAX_CAPACITY = 2**31 - 1
MAX_TIMEOUT_S = 7 * 24 * 3600.0
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class OpenSession(Order, frozen=True, tag="open_session"):
    """Keep the tokens of turns under a name, for later turns to go on from."""

    session: Name
    capacity: Annotated[int, msgspec.Meta(ge=0, le=MAX_CAPACITY)]
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_TIMEOUT_S)] = 0.0
    streaming: bool = False

    def apply(self, intake: Intake, now: float) -> Outcome:
        sessions = intake.loop.requests.sessions
        sessions.expire_in = lambda session: intake.remind(
            session.timeout_s, ExpireSession(session.name, session.num_uses)
        )
        session = Session(
            self.session, self.capacity, self.timeout_s, self.streaming, num_uses=intake.number * MOST_USES
        )
        why_not = sessions.open(session)
        return Outcome(not why_not, why_not, {"session_id": self.session})


class CloseSession(Order, frozen=True, tag="close_session", rename={"session": "session_id"}):
    """Take no more turns of a session, and forget it when those that are live have ended."""

    session: Annotated[Name, msgspec.Meta(description="name of the session")]

    def apply(self, intake: Intake, now: float) -> Outcome:
        found = intake.loop.requests.sessions.close(self.session)
        return Outcome(found, "" if found else f"there is no session {self.session!r}")


class ExpireSession(Order, frozen=True, tag="expire_session"):
    """Timer: close the session if it has not been used since."""

    session: str
    num_uses: int

    def apply(self, intake: Intake, now: float) -> None:
        intake.loop.requests.sessions.expire(self.session, self.num_uses)


class BeginTurn(Order, frozen=True, tag="begin_turn"):
    """The request with this number, which comes next, is a turn of a session: its prompt is made here."""

    request: int
    rid: str
    session: str
    tokens: tuple[int, ...]
    max_new_tokens: int
    scored_from: int = 0
    parent: str | None = None
    offset: int = 0
    replace: bool = False
    drop_previous_output: bool = False

    def apply(self, intake: Intake, now: float) -> None:
        loop = intake.loop
        wish = Wish(
            self.request,
            self.rid,
            self.session,
            self.parent,
            self.offset,
            self.replace,
            self.drop_previous_output,
            np.array(self.tokens, np.int32),
            self.max_new_tokens,
            self.scored_from,
        )
        table = loop.table
        begun = loop.requests.sessions.begin(wish, lambda request: table.known(table.row_of[request]))
        intake.begun = begun
        if begun.ends:
            intake.deliver(Abort(begun.ends, Cause.CLIENT, f"turn {self.rid!r} {TAKES_ITS_PLACE}"), now)
