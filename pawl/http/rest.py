"""Memory that is free but still the process's own goes back to the system once there is nothing to do.

The allocator keeps what a burst of work has freed: a server of 80 MB stays at 400 MB after one large grammar. Giving it
back takes some ten milliseconds for each 100 MB, so it is done at rest, and once for each rest.
"""

from __future__ import annotations

LOOKS = 3
"""Looks in a row that find nothing open, after which the server is at rest."""


class Rest:
    """Tells when a server comes to rest, from looks at regular times."""

    def __init__(self) -> None:
        self._num_idle = 0
        self._num_seen = 0

    def begins(self, num_open: int, num_submitted: int) -> bool:
        """Whether rest begins with this look: nothing is open, for some looks already, but there was since the last
        rest. `num_submitted` counts all requests since the start."""
        self._num_idle = 0 if num_open or num_submitted == self._num_seen else self._num_idle + 1
        if self._num_idle < LOOKS:
            return False
        self._num_idle, self._num_seen = 0, num_submitted
        return True
