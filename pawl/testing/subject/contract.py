"""What any scheduler must keep, as a class of tests to subclass.

    class TestMine(SubjectContract):
        subject = MyScheduler

Needs the pytest plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from pawl.actors.simulation.strategies.exhaustive import NotDeterministic
from pawl.testing.subject.exploring import explore_subject, shrunk
from pawl.testing.subject.port import Subject
from pawl.testing.subject.registry import know_subject
from pawl.testing.subject.search import CONFIRMED_EVERY, STRATEGIES
from pawl.testing.subject.workload import Workload

if TYPE_CHECKING:
    from pawl.pytest_plugin import Explorer


class SubjectContract:
    """Subclass it, name the class `Test…`, and state what is yours. `pawl replay` finds your class again if it stands
    at the top of a module."""

    subject: ClassVar[type[Subject]]
    num_workloads: ClassVar[int] = 10
    """For each strategy."""
    max_requests: ClassVar[int] = 5

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_every_property_holds(self, strategy: str, explore: Explorer) -> None:
        name = know_subject(self.subject)
        for seed in range(explore.seed, explore.seed + self.num_workloads):
            workload = Workload.random(seed, self.subject.offers, max_requests=self.max_requests)
            try:
                _, found = explore_subject(
                    self.subject,
                    workload,
                    strategy,
                    explore.schedules,
                    name=name,
                    seed=seed,
                    confirm_every=CONFIRMED_EVERY,
                )
            except NotDeterministic as error:
                pytest.fail(f"the same calls had other results: {error}", pytrace=False)
            if found is not None:
                explore.fail(shrunk(found))
