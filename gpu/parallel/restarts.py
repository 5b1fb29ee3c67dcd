"""How often ranks are started again, and after how long."""

from __future__ import annotations

from collections import deque

MOST_IN_A_ROW = 5
"""Starts after which no step was answered."""
MOST, WITHIN_S = 60, 600.0
"""Starts at the most in any so many seconds."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0


class Restarts:
    """The starts of one group. Times are seconds of any clock."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._began: deque[float] = deque()

    @property
    def total(self) -> int:
        """Of those that still count."""
        return len(self._began)

    def served(self) -> None:
        """A step was answered."""
        self._in_a_row = 0

    def next_wait_s(self, now: float) -> float | None:
        """One start more: how long to wait before it. None: there were enough."""
        while self._began and self._began[0] <= now - WITHIN_S:
            self._began.popleft()
        if self._in_a_row >= MOST_IN_A_ROW or len(self._began) >= MOST:
            return None
        self._began.append(now)
        self._in_a_row += 1
        # The first is at once: most deaths are nobody's fault, and come alone.
        return 0.0 if self._in_a_row == 1 else min(FIRST_WAIT_S * 2 ** (self._in_a_row - 2), LONGEST_WAIT_S)
