"""The running hash of what a rank has applied: equal for ranks that have applied the same steps in the same order, and
have drawn the same from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pawl.lifecycle.step import StepResult

BYTES = 16


class Applied:
    """One rank's, from its start on."""

    def __init__(self) -> None:
        self.digest = bytes(BYTES)

    def step(self, frames: Iterable[bytes | bytearray | memoryview], result: StepResult) -> None:
        """A step was applied: the bytes in which it came, and what it gave."""
        found = hashlib.blake2b(self.digest, digest_size=BYTES)
        for frame in frames:
            found.update(frame)
        found.update(result.tokens.tobytes())
        if result.counts is not None:
            found.update(result.counts.tobytes())
        self.digest = found.digest()
