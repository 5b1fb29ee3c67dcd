"""What memory raises before it would break one of its own properties."""

from __future__ import annotations


class MemoryViolation(Exception):
    """A property of memory was about to be broken: a defect of Pawl, never of the workload.

    `statement`: what must hold, as a sentence; `facts`: what was found instead.
    """

    def __init__(self, statement: str, **facts: object) -> None:
        super().__init__(f"{statement}: " + ", ".join(f"{name}={value}" for name, value in facts.items()))
        self.statement = statement
        self.facts = facts
