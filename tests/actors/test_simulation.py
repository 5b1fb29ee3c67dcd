"""The simulated runtime: the conformance suite under several sources of choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from pawl.actors.runtime.dead_letters import DeadLetter
from pawl.actors.runtime.local import OUTSIDE, OnFailure
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.pct import PCT
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.conformance import RuntimeConformance


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Actors fail on purpose here, some thousand times; what they log is dropped."""
    with silence():
        yield


class TestFair(RuntimeConformance):
    """Every choice is the fair one."""

    options: ClassVar[dict[str, Any]] = {}
    simulated: list[SimulatedSystem]

    def source(self) -> ChoiceSource:
        return Fair()

    def setup_method(self) -> None:
        super().setup_method()
        self.simulated = []

    def make_system(
        self,
        *,
        seed: int = 0,
        on_failure: OnFailure | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> SimulatedSystem:
        system = SimulatedSystem(
            self.source(), seed, on_failure=on_failure, on_dead_letter=on_dead_letter, **self.options
        )
        self.simulated.append(system)
        return system

    def run_until(self, condition: Callable[[], bool]) -> None:
        assert self.simulated[-1].run(condition), self.journal.entries[-20:]


class TestHandlersWhole(TestFair):
    """No handler is interrupted."""

    options: ClassVar[dict[str, Any]] = {"preempt": False}


class TestAnyOrder(TestFair):
    """Every choice is a coin's."""

    def source(self) -> ChoiceSource:
        return RandomWalk(1)


class TestFewPreemptions(TestFair):
    """Priorities decide: some actors starve for as long as others have work."""

    def source(self) -> ChoiceSource:
        strategy = PCT(2, length=50)
        strategy.begin()
        return strategy


class TestBetweenProcesses(TestFair):
    """Every actor in a process of its own; what is sent from outside is there at once."""

    options: ClassVar[dict[str, Any]] = {"is_wire": lambda sender, receiver: sender != OUTSIDE}

    def source(self) -> ChoiceSource:
        return RandomWalk(3)
