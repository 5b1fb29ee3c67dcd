"""The simulated runtime: the conformance suite under several sources of choices, and what only it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from actors.runtime.choice import ChoiceSource
from actors.runtime.local import OnFailure
from actors.runtime.simulated import SimulatedSystem
from actors.runtime.strategies.simple import Fair, RandomWalk
from actors.runtime.supervision import DeadLetter
from tests.actors.conformance import RuntimeConformance


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
