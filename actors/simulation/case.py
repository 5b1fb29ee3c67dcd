"""What is explored: one scenario, set up and running, with the properties to check."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeAlias

from pawl.actors.simulation.choice import Choices, ChoiceSource
from pawl.actors.simulation.faults import InjectedCrash
from pawl.actors.simulation.system import ActorFailure


class Explored(Protocol):
    """What is run under many schedules: as a rule a `SimulatedSystem`."""

    choices: Choices
    """What was decided so far."""
    failures: list[ActorFailure]
    num_deliveries: int

    def step(self) -> bool:
        """Let one event happen, which the source chooses. False: nothing can."""

    def check_not_stuck(self) -> None:
        """At rest: raises Stuck if work is left all the same."""

    def dump(self) -> str:
        """The whole system in lines for a person."""

    def state(self) -> Hashable:
        """The abstract state: what tells runs apart for coverage."""


class Case:
    """A system that is set up and running, with the properties to check. Every check raises when it fails."""

    def __init__(self, system: Explored) -> None:
        self.system = system

    def stepped(self) -> None:
        """Check what must hold after every step."""

    def at_rest(self) -> None:
        """Check what must hold when nothing can happen any more, or when `done` has ended the run."""

    def too_long(self) -> None:
        """The run has not come to rest in all its steps: raise what is wrong, where that can be told."""

    def done(self) -> bool | None:
        """True ends the run here; False at rest is a failure (`Unfinished`). None: whenever it rests."""
        return None

    def tolerates(self, failure: ActorFailure) -> bool:
        """Whether an actor may fail like this. As a rule only if it was made to."""
        return isinstance(failure.error, InjectedCrash)

    def outcome(self) -> bytes:
        """What the run has come to, beyond its choices: two runs of the same choices must have the same."""
        return b""

    def state(self) -> Hashable:
        """The abstract state: what tells runs apart for coverage. As a rule, that of the system."""
        return self.system.state()


Scenario: TypeAlias = Callable[[ChoiceSource], Case]
"""Sets up a fresh case, whose system decides by the source. Must depend on nothing else."""
