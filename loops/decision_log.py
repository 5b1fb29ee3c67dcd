"""The property that a replay decides: the scheduler's decisions follow from its inputs, and nothing else. And, as there
is a loop again while it is replayed, those that only a loop's state can show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Checkpoint, Contained, Record, StepCommitted
from pawl.loops.properties.state import name_of
from pawl.loops.replay import Diverged, Impossible, NotReplayable, Replay
from pawl.memory.violation import MemoryViolation

FULL_CHECK_INTERVAL = 256
"""Committed steps between two looks at the whole state of the replayed run."""


class OneDecisionLog(Property):
    """The recorded inputs, in a fresh scheduler, give the recorded decisions: every step the same, once, in order.

    So a record that was changed, and everything that a scheduler decided from something that is not recorded, shows.
    And the loop that decides again is looked at as a live one is: what its state shows is reported under the names of
    the properties that do not hold of it.

    A failure that the engine survived cannot be had again: from the checkpoint that follows it decisions are made anew.
    """

    name: ClassVar[str] = "one_decision_log"

    def __init__(self) -> None:
        self._run: Replay | None = None
        self._judging = True
        self._num_told = 0
        self._num_committed = 0

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        """The loop begins with the checkpoint itself."""
        return ()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        if not self._judging:
            return ()
        broken: Sequence[MemoryViolation] = ()
        try:
            if self._run is None:
                if not self.unjudged or isinstance(record, Checkpoint):
                    self._run, self._num_told, self.unjudged = Replay.begin(record), 0, ""
                return ()
            if isinstance(record, Contained):
                self._run = None
                self.unjudged = f"decisions after record {history.number}, where the engine survived a failure"
                return ()
            self._run.feed(record)
            if isinstance(record, StepCommitted):
                self._num_committed += 1
                if self._num_committed % FULL_CHECK_INTERVAL == 0:
                    broken = self._run.loop.checks.check_all(self._run.loop)
        except NotReplayable as error:
            self._judging, self.unjudged = False, f"no decision was made again: {error}"
            return ()
        except Diverged as difference:
            self._judging = False
            request = getattr(difference.made or record, "request", None)
            return [
                self.violation(history, f"recorded {record!s:.400}, decided again {difference.made!s:.400}", request)
            ]
        except MemoryViolation as violation:
            self._judging = False
            return self._named([violation], history)
        except Impossible as error:
            self._judging = False
            return [self.violation(history, f"what is recorded cannot be done: {error}")]
        if not broken and len(self._run.violations) == self._num_told:
            return ()
        told, self._num_told = self._run.violations[self._num_told :], len(self._run.violations)
        return self._named([*told, *broken], history)

    def finish(self, history: History) -> Sequence[Violation]:
        if not self._judging or self._run is None:
            return ()
        try:
            self._run.finish()
        except Diverged as difference:
            return [self.violation(history, f"nothing more is recorded, decided again {difference.made}")]
        return self._named(self._run.loop.checks.check_all(self._run.loop), history)

    def _named(self, broken: Sequence[MemoryViolation], history: History) -> Sequence[Violation]:
        return [Violation(name_of(each), str(each), history.number) for each in broken]
