"""What memory raises before it would break one of its own properties."""

from __future__ import annotations


class MemoryViolation(Exception):
    """A property of memory was about to be broken. Carries the facts; a defect of Pawl, never of the workload."""

    def __init__(self, law: str, **facts: object) -> None:
        super().__init__(f"{law}: " + ", ".join(f"{name}={value}" for name, value in facts.items()))
        self.law = law
        self.facts = facts
