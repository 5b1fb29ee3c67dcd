"""The property that a replay decides: the scheduler's decisions follow from its inputs, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lifecycle.properties.base import Property, Violation
from lifecycle.properties.history import History
from lifecycle.records import Record, Started, StepCommitted
from loops.replay import Diverged, NotReplayable, Replay
from memory.pages import MemoryViolation

FULL_CHECK_INTERVAL = 256
"""Committed steps between two looks at the whole memory of the replayed run."""


class OneDecisionLog(Property):
    """The recorded inputs, in a fresh scheduler, give the recorded decisions; and all laws of memory hold on the way.

    So a record that was changed, and everything that a scheduler decided from something that is not recorded, shows.
    """

    name: ClassVar[str] = "one_decision_log"

    def __init__(self) -> None:
        self._run: Replay | None = None
        self._judging = True
        self._num_told = 0
        self.reason = ""
        """Why the run was not replayed to its end, if so."""

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        if not self._judging:
            return ()
        try:
            if self._run is None:
                self._begin(record)
                return ()
            self._run.feed(record)
            if isinstance(record, StepCommitted) and record.step % FULL_CHECK_INTERVAL == 0:
                self._run.loop.check()
        except NotReplayable as error:
            return self._stop(str(error))
        except Diverged as difference:
            self._stop("it differs")
            request = getattr(difference.made or record, "request", None)
            return [self.violation(history, f"recorded {record}, decided again {difference.made}", request)]
        except MemoryViolation as violation:
            self._stop("it breaks a law")
            return [self.violation(history, f"a law of memory does not hold: {violation}")]
        except Exception as error:  # What is recorded may be anything: the loop was never meant to survive it.
            self._stop("it cannot be")
            return [self.violation(history, f"what is recorded cannot be done: {type(error).__name__}: {error}")]
        told, self._num_told = self._num_told, len(self._run.violations)
        return [self.violation(history, f"a law of memory does not hold: {law}") for law in self._run.violations[told:]]

    def finish(self, history: History) -> Sequence[Violation]:
        if not self._judging or self._run is None:
            return ()
        try:
            self._run.finish()
            self._run.loop.check()
        except Diverged as difference:
            return [self.violation(history, f"nothing more is recorded, decided again {difference.made}")]
        except (MemoryViolation, AssertionError) as violation:
            return [self.violation(history, f"a law of memory does not hold at the end: {violation}")]
        return ()

    def _begin(self, record: Record) -> None:
        if not isinstance(record, Started):
            raise NotReplayable("the beginning of the run is not in the trace")
        self._run = Replay(record)
        self._run.number = 1

    def _stop(self, reason: str) -> Sequence[Violation]:
        self._judging = False
        self.reason = reason
        return ()
