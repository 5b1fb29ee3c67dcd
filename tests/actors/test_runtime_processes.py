"""The runtime for several processes: the conformance suite over a real socket, with actors on either side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pawl.actors.runtime.dead_letters import DeadLetter
from pawl.actors.runtime.local import OnFailure
from tests.actors.conformance import RuntimeConformance
from tests.actors.runtime_doing import GENEROUS_S
from tests.actors.two_systems import TwoSystems


class TestBothSidesOfASocket(RuntimeConformance):
    """Each second actor in the other system; what is sent from outside crosses the socket."""

    def make_system(
        self,
        *,
        seed: int = 0,
        on_failure: OnFailure | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> TwoSystems:
        return TwoSystems(Path(self.folder.name), seed, on_failure=on_failure, on_dead_letter=on_dead_letter)

    def setup_method(self) -> None:
        super().setup_method()
        self.folder = tempfile.TemporaryDirectory()

    def teardown_method(self) -> None:
        super().teardown_method()
        self.folder.cleanup()

    def run_until(self, condition: Callable[[], bool]) -> None:
        with self.journal.changed:
            assert self.journal.changed.wait_for(condition, GENEROUS_S), self.journal.entries[-20:]
