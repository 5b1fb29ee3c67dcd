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


def raised_behind(violation: MemoryViolation) -> Exception | None:
    """What was raised, perhaps in a part of the user's own, where that is what broke the property."""
    raised: BaseException = violation
    while raised.__cause__ is not None:
        raised = raised.__cause__
    return raised if isinstance(raised, Exception) and raised is not violation else None
