"""Whether a session takes turns."""

from __future__ import annotations

from enum import StrEnum

from pawl.lifecycle.machines.base import Machine

MOST_USES = 1 << 32
"""Uses of one session: from the number of the order that opens it times this they are counted, so that what is to
happen after one of them does not happen to the next session of the same name."""


class SessionPhase(StrEnum):
    """Where a session is."""

    OPEN = "open"
    """It takes turns, each of which goes on from one that has finished."""
    CLOSING = "closing"
    """It takes none any more; those that are live go on to their ends."""
    CLOSED = "closed"
    """It is forgotten, and its name may be used again."""


class SessionEvent(StrEnum):
    """Orders, and the end of a session's last live turn."""

    CLOSE = "close"
    SETTLE = "settle"
    EXPIRE = "expire"


_OPEN, _CLOSING, _CLOSED = SessionPhase.OPEN, SessionPhase.CLOSING, SessionPhase.CLOSED

SESSION: Machine[SessionPhase, SessionEvent] = Machine(
    "session",
    "Whether a session takes turns. A turn that does not finish leaves its session as it was.",
    _OPEN,
    (
        (_OPEN, SessionEvent.CLOSE, _CLOSING, "somebody closes it"),
        (_CLOSING, SessionEvent.CLOSE, _CLOSING, "somebody closes it once more"),
        (_CLOSING, SessionEvent.SETTLE, _CLOSED, "no turn of it is live"),
        (_OPEN, SessionEvent.EXPIRE, _CLOSING, "nobody has used it for as long as its timeout says"),
    ),
)
