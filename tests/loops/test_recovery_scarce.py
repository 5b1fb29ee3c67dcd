"""A plan that has taken somebody's memory away and then fails, at whatever is called behind that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import Closed, Transition
from pawl.lifecycle.states import Event
from pawl.loops import snapshot
from pawl.loops.pacing import PACINGS
from pawl.loops.recovery import recover
from pawl.memory.violation import MemoryViolation
from tests.loops.driver import Driver, first_record
from tests.loops.failures import every_function

PROMPTS = ([1, 2, 3], [4, 5, 6, 7, 8], [9, 1])
NUM_WANTED = 9


class Planted(Exception):
    """What fails."""


class Scarce(Driver):
    """Three requests that grow, and pages for two; the youngest gives way to the others."""

    def __init__(self, pacing: str) -> None:
        self.told: list[MemoryViolation] = []
        super().__init__(pacing=pacing, num_pages=11, page_size=2, max_running=3, lookahead=0, max_context=32)
        self.loop.journal._started = first_record(self.config)
        self.records.append(first_record(self.config))
        for prompt in PROMPTS:
            self.submit(prompt, NUM_WANTED)
        turn = self.intake.turn
        self.intake.turn = lambda now: None if self.loop.journal.checkpoint_due else turn(now)  # type: ignore[method-assign]

    def violated(self, violation: MemoryViolation) -> None:
        self.told.append(violation)

    @property
    def has_taken(self) -> bool:
        """Whether a plan is under way that has taken somebody's memory away."""
        planning = self.loop.planning
        return planning is not None and bool(planning.retracted)

    def step(self) -> bool:
        if self.loop.journal.checkpoint_due and not self.loop.in_flight:
            snapshot.checkpoint(self.intake, self.now)
        return super().step()

    def survive(self) -> None:
        """What a scheduler does after a failure that nobody below has caught."""
        recover(self.loop, "Planted at planner.py", self.now)
        self.launched.clear()
        self.ghost.reset()


class Outcome(NamedTuple):
    calls: frozenset[str]
    """Functions that were called behind a retraction."""
    driver: Scarce


def run(pacing: str, failing: str = "") -> Outcome:
    """All three requests to their ends; the first call of one of these functions behind a retraction fails."""
    driver, calls, left = Scarce(pacing), set[str](), 1

    def watched(name: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if driver.has_taken:
                calls.add(name)
                if name == failing and left:
                    left -= 1
                    raise Planted
            return does(*arguments, **named)

        return called

    with pytest.MonkeyPatch.context() as patched:
        for name, (kind, method) in every_function().items():
            patched.setattr(kind, method, watched(name, vars(kind)[method]))
        for _ in range(200):
            try:
                driver.step()
            except Planted:
                driver.survive()
    driver.loop.check_all()
    driver.loop.journal.closed("stopped", driver.loop.counters, len(driver.loop.table), driver.loop.memory.pages)
    return Outcome(frozenset(calls), driver)


@pytest.mark.parametrize("pacing", PACINGS)
def test_whoever_gave_way_in_a_plan_that_fails_is_recorded_to_have_and_gets_its_tokens(pacing: str) -> None:
    names = sorted(run(pacing).calls)
    assert len(names) > 15
    for name in names:
        _, driver = run(pacing, name)
        outputs = [driver.output_of[number] for number in (1, 2, 3)]
        assert outputs == [expected(prompt, NUM_WANTED) for prompt in PROMPTS], name
        monitor = Monitor([make() for make in PROPERTIES])
        for record in driver.records:
            monitor.observe(record)  # type: ignore[arg-type]
        assert monitor.violations == [], name
        (counts,) = [record.counts for record in driver.records if isinstance(record, Closed)]
        moves = [record.event for record in driver.records if isinstance(record, Transition)]
        assert moves.count(Event.RETRACT) == counts.retractions, name
