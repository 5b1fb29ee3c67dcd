"""The codec of the engine's messages."""

from __future__ import annotations

from typing import Any

from pawl.actors.messages.hand_over import HandedPages
from pawl.actors.recorder import Records
from pawl.actors.runtime.codec import Codec
from pawl.lifecycle.records import ENCODER


def make_codec(accepts: Any) -> Codec:
    """For what one actor accepts. Records are what they are in a trace: columns of theirs are bytes by then. Pages that
    are handed over have a checksum each, which goes from host memory to host memory."""
    return Codec(accepts, {Records: ENCODER}, sealed=(HandedPages,))
