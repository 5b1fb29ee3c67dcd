"""Properties of what the scheduler owes to its requests: `bounded_progress` and `fault_isolation`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from pawl.lifecycle.machines.weights import WeightEvent
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.limits import FollowedLimits
from pawl.lifecycle.properties.pausing import retracts
from pawl.lifecycle.properties.steps import runner_gone
from pawl.lifecycle.properties.turns import stages_of
from pawl.lifecycle.records import (
    Checkpoint,
    Contained,
    Delivered,
    Started,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
    WeightsMoved,
    int32s,
)
from pawl.lifecycle.states import Cause


class Pace(NamedTuple):
    """What the bound on steps depends on."""

    depth: int
    """Steps that may be in flight while another is planned."""
    chunk: int
    """Tokens of one prompt that a step computes at the most."""
    mixed: bool
    page_size: int
    bounded: bool = False
    """Steps are bounded by time: all that is sure is a page."""


def pace_of(started: Started | None) -> Pace | None:
    """As the configuration in the trace says; None when it does not."""
    if started is None:
        return None
    loop: Any = started.config.get("loop")
    try:
        settings = msgspec.convert(loop, _Settings)
    except msgspec.ValidationError:
        return None
    depth = 0 if settings.pacing == "lockstep" else stages_of(started)
    bounded = settings.mixed and settings.max_step_s is not None
    pace = Pace(depth, settings.page_size, settings.mixed, settings.page_size, bounded)
    return pace._replace(chunk=_chunk(settings.prefill_chunk, pace))


def _chunk(limit: int, pace: Pace) -> int:
    """In whole pages."""
    return pace.page_size if pace.bounded else max(limit - limit % pace.page_size, pace.page_size)


class _Settings(msgspec.Struct):
    """The settings of the loop that matter here."""

    page_size: int
    prefill_chunk: int
    pacing: str
    mixed: bool
    max_step_s: float | None = None


class BoundedProgress(Property):
    """With finite arrivals each request that fits ends within a stated number of steps, and each step that is launched
    changes a well-founded measure: it computes positions.

        steps <= (depth + 2) * sum over requests of (chunks + outputs + 1) * (1 + other requests' chunks)

    where the last factor is 1 for loops that mix prompts and decoding. A step that is lost, the loss of what computes,
    new weights, and a pause that retracts begin the count anew for everybody; a time at which there is nothing to do
    ends it.
    """

    name = "bounded_progress"

    def __init__(self) -> None:
        self._pace: Pace | None = None
        self._steps = 0
        self._weights = 0
        """Sum of chunks + outputs + 1."""
        self._chunks = 0
        self._own = 0
        """Sum of weight * chunks."""
        self._sizes: Counter[tuple[int, int]] = Counter()
        """(tokens, outputs) -> how many of that size arrived since the last rest, which may be long ago."""
        self._limits = FollowedLimits()
        self._losses = 0

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._limits.begin(beginning)
        return found

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        self._pace = pace_of(record)
        self._limits.start(record)
        return ()

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        self._losses += not history.in_flight
        return ()

    @on(WeightsMoved)
    def _exchanged(self, record: WeightsMoved, history: History) -> Sequence[Violation]:
        self._losses += record.event is WeightEvent.SWAPPED
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        self._losses += retracts(record) or (runner_gone(record) and not history.in_flight)
        self._limits.delivered(record)
        limits = self._limits.now
        if (
            self._pace is not None
            and limits is not None
            and _chunk(limits.prefill_chunk, self._pace) < self._pace.chunk
        ):
            # The smallest one since the last rest.
            self._pace = self._pace._replace(chunk=_chunk(limits.prefill_chunk, self._pace))
            self._weights = self._chunks = self._own = 0
            for (tokens, outputs), count in self._sizes.items():
                self._add(tokens, outputs, self._pace.chunk, count)
        return ()

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        if not history.open:
            self._steps = self._weights = self._chunks = self._own = self._losses = 0
            self._sizes.clear()
            if self._pace is not None and self._limits.now is not None:
                self._pace = self._pace._replace(chunk=_chunk(self._limits.now.prefill_chunk, self._pace))
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        if self._pace is None:
            return ()
        outputs = record.sampling.max_new_tokens
        tokens = len(int32s(record.tokens)) + outputs
        self._sizes[tokens, outputs] += 1
        self._add(tokens, outputs, self._pace.chunk)
        return ()

    def _add(self, tokens: int, outputs: int, chunk: int, count: int = 1) -> None:
        """What so many requests of this size add to the bound."""
        chunks = -(-tokens // chunk)
        weight = chunks + outputs + 1
        self._weights += weight * count
        self._chunks += chunks * count
        self._own += weight * chunks * count

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        self._steps += 1
        found: list[Violation] = []
        if 1 not in (history.step.ends > history.step.starts).tobytes():
            found.append(self.violation(history, f"step {record.step} computes nothing"))
        if self._pace is None:
            return found
        weight = self._weights if self._pace.mixed else self._weights * (1 + self._chunks) - self._own
        bound = (self._pace.depth + 2) * weight * (1 + self._losses)
        if self._steps > bound:
            text = f"{self._steps} steps since the last rest; {bound} are enough for all that arrived since"
            found.append(self.violation(history, text, min(history.open, default=None)))
        return found


class FaultIsolation(Property):
    """No single input changes another request's output or stops the loop: a lost step restarts those that run, ends
    those that were part of two lost steps, and nobody else. Steps that are lost with what computes count for nobody.
    After a failure that was survived nothing is planned before all that decides is written down, and whom it ended has
    ended by then."""

    name = "fault_isolation"
    max_strikes = 2

    def __init__(self) -> None:
        self._strikes: Counter[int] = Counter()
        """Lost steps that each live request was part of."""
        self._blamed: Contained | None = None
        """The failure survived last, if it was one request's fault: steps given up with it are nobody else's loss."""
        self._survived: list[Contained] = []
        """Failures since the last checkpoint."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        infos = [beginning.table.info(row) for row in beginning.rows]
        self._strikes.update({info.request: info.strikes for info in infos if info.strikes})
        return ()

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        contained = self._blamed is not None and self._blamed.failure == record.reason
        if not history.in_flight and not contained and not record.blameless:
            self._lost(history)
        return ()

    @on(Contained)
    def _contained(self, record: Contained, history: History) -> Sequence[Violation]:
        self._blamed = record if record.request else None
        self._survived.append(record)
        return ()

    @on(Checkpoint)
    def _written_down(self, record: Checkpoint, history: History) -> Sequence[Violation]:
        survived, self._survived = self._survived, []
        text = "a failure that was survived is said to have ended it, and it is live"
        return [self.violation(history, text, each.request) for each in survived if each.request in history.open]

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        # What failed in a plan may be tried again in the same turn.
        if self._survived and self._survived[0].time < record.time:
            at = self._survived.pop(0).time
            text = f"step {record.step} is planned, and of the failure survived at {at} no checkpoint was taken"
            return (self.violation(history, text),)
        for request, count in self._strikes.items():
            if count >= self.max_strikes:
                text = f"step {record.step} is planned and the request, part of {count} lost steps, is live"
                return (self.violation(history, text, request),)
        return ()

    def _lost(self, history: History) -> None:
        """The oldest step that was in flight has been rolled back: it is the one that failed."""
        step = history.step
        stayed = history.departures[step.rows] == step.departures
        restored = {admission.request for admission in history.restored}
        for request, was_live in zip(step.requests.tolist(), stayed.tolist(), strict=True):
            if was_live or request in restored:
                self._strikes[request] += 1

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        strikes = self._strikes.pop(record.request, 0)
        if record.cause != Cause.WORKER_LOST or strikes:
            return ()
        return (self.violation(history, "it ended with a lost step that it was no part of", record.request),)
