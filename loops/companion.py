"""What lives beside the loop: a feature that follows its steps and its requests, and may let requests wait.

    turning ─► planning ─► launching ─► (the step runs) ─► committed by the loop
                                          └─ lost: every step in flight is rolled back
    left: a request has ended, wherever it was     flushed: the prefix cache was emptied     stopped: the engine stops

A companion lets a request wait by moving it from QUEUED to a substate of it (`Queues.held_up`), and gives it back by
moving it to QUEUED. Nothing of the loop asks which companions there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pawl.lifecycle.records import TierTold
from pawl.lifecycle.snapshot import Plain
from pawl.memory.page_pool import Reservation
from pawl.memory.snapshot import NoSnapshot

if TYPE_CHECKING:
    from pawl.loops.batch import ScheduledBatch


class Companion:
    """One feature beside the loop. Subclass it; a hook that is not overridden does nothing."""

    def turning(self, now: float) -> None:
        """The loop turns, paused or not: nothing is planned yet. Requests that wait may be moved."""

    def planning(self, now: float) -> None:
        """A step is about to be planned; its transaction is not open yet. Requests that wait may be moved."""

    def launching(self, scheduled: ScheduledBatch) -> None:
        """A step is planned and is launched next."""

    def left(self, row: int) -> None:
        """The request of `row` is about to have its terminal event; its state is still the one it had."""

    def lost(self, now: float) -> None:
        """The worker is lost with all its pages. Every step in flight is rolled back; the cache is emptied next."""

    def written(self) -> Iterable[Reservation]:
        """Pages that somebody outside the steps may be writing for this companion. After a failure no others are
        believed to be in quarantine."""
        return ()

    def flushed(self) -> None:
        """The prefix cache was emptied on demand."""

    def emptied(self) -> None:
        """The prefix cache was emptied, and its memory is released next: nothing may begin that needs any."""

    def stopped(self) -> None:
        """The engine stops, and no request is live."""

    @property
    def writes_weights(self) -> bool:
        """Something of this companion is under way that is released with the weights."""
        return False

    def told(self, record: TierTold) -> None:
        """In a replay: a record of an input. One that this companion was given and recorded is given to it again."""

    def snapshot(self) -> Plain:
        """All that decides, for a checkpoint; no step is in flight. Raises NoSnapshot."""
        raise NoSnapshot(f"{type(self).__name__} beside the loop")

    def restore(self, plain: Plain) -> None:
        """Make a companion that is new that of the snapshot; the loop's table and memory are restored."""

    def check(self) -> None:
        """Look at everything that the companion keeps, O(size). Raises AssertionError."""
