"""Memory that is free but still the process's own goes back to the system when there is much of it.

The allocator keeps what a burst of work has freed: a server of 80 MB stays at 400 MB after one large grammar. Giving it
back takes some ten milliseconds for each 100 MB, so it is done at rest, and seldom by a server that never rests.
"""

from __future__ import annotations

LOOKS = 3
"""Looks in a row that find nothing open, after which the server is at rest."""
BUSY_LOOKS = 60
"""Looks after which a server that has not rested gives back as well."""
WORTH, BUSY_WORTH = 8 << 20, 64 << 20
"""Bytes by which the process has to have grown, at rest and busy."""


class Freed:
    """Tells when to give back what was freed, from looks at regular times."""

    def __init__(self) -> None:
        self._num_idle = self._num_busy = 0
        self._least: int | None = None
        """Bytes of the process when they were fewest since memory was given back last."""

    def is_due(self, num_open: int, resident: int | None) -> bool:
        """Whether to give back now: so many requests are open, and the process has so many bytes (None: nobody knows,
        and nothing is ever due)."""
        if resident is None:
            return False
        if self._least is None or resident < self._least:
            self._least = resident
        self._num_idle = 0 if num_open else self._num_idle + 1
        rests = self._num_idle >= LOOKS
        self._num_busy = 0 if rests else self._num_busy + 1
        grown = resident - self._least
        if not (grown >= WORTH if rests else self._num_busy >= BUSY_LOOKS and grown >= BUSY_WORTH):
            return False
        self._num_idle, self._num_busy, self._least = 0, 0, None
        return True
