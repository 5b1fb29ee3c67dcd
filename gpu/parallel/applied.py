"""The running hashes of a rank: equal for ranks that have applied the same steps in the same order, and have drawn the
same from them. Those of stages before the last draw nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pawl.lifecycle.step import StepResult

BYTES = 16


class Applied:
    """One rank's, from its start on."""

    def __init__(self, *, draws: bool = True) -> None:
        self.digest = bytes(BYTES)
        """Of the bytes in which steps came."""
        self.drawn = bytes(BYTES) if draws else b""
        """Of what they gave; empty where that is nothing."""

    def step(self, frames: Iterable[bytes | bytearray | memoryview], result: StepResult) -> None:
        """A step was applied."""
        self.told(frames)
        if self.drawn:
            drawn = hashlib.blake2b(self.drawn, digest_size=BYTES)
            drawn.update(result.tokens.tobytes())
            if result.counts is not None:
                drawn.update(result.counts.tobytes())
            self.drawn = drawn.digest()

    def told(self, frames: Iterable[bytes | bytearray | memoryview]) -> None:
        """What came in these was done."""
        found = hashlib.blake2b(self.digest, digest_size=BYTES)
        for frame in frames:
            found.update(frame)
        self.digest = found.digest()
