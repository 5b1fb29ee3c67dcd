"""The runtime for several processes: the conformance suite over real sockets, with actors in three systems."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pawl.actors.runtime.dead_letters import DeadLetter
from pawl.actors.runtime.local import OnFailure
from tests.actors.conformance import RuntimeConformance
from tests.actors.linked_systems import LinkedSystems
from tests.actors.runtime_doing import GENEROUS_S


class TestThreeLinkedSystems(RuntimeConformance):
    """A front and two replicas, each linked with the others; what is sent from outside crosses a socket."""

    def make_system(
        self,
        *,
        seed: int = 0,
        on_failure: OnFailure | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> LinkedSystems:
        return LinkedSystems(Path(self.folder.name), seed, on_failure=on_failure, on_dead_letter=on_dead_letter)

    def setup_method(self) -> None:
        super().setup_method()
        self.folder = tempfile.TemporaryDirectory()

    def teardown_method(self) -> None:
        super().teardown_method()
        self.folder.cleanup()

    def run_until(self, condition: Callable[[], bool]) -> None:
        with self.journal.changed:
            assert self.journal.changed.wait_for(condition, GENEROUS_S), self.journal.entries[-20:]
