"""How a simulated run ends that should not end so."""

from __future__ import annotations


class Stuck(Exception):
    """Work is left, and nothing can happen any more."""

    def __init__(self, why: str, dump: str) -> None:
        super().__init__(f"{why}\n{dump}")


class Endless(Exception):
    """The run did not come to rest within a stated number of steps."""

    def __init__(self, num_steps: int, dump: str) -> None:
        super().__init__(f"not at rest after {num_steps} steps\n{dump}")
