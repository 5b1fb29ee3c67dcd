"""The record of a failure that the scheduler survived."""

from __future__ import annotations

import msgspec


class Contained(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """The scheduler failed in the middle of something, and went on. What it then gave up is recorded after this; a
    replay cannot fail in the same place, so it ends here."""

    request: int
    """The request for whose sake it failed, which ends; 0: nobody's."""
    failure: str
    """The class of the exception and where it was raised; not its words, which may quote a client."""
    time: float
