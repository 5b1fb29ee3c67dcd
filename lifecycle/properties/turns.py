"""Property `fair_micro_batches`: which decoding requests a step takes where steps go through several stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.growing import fitted
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.steps import Int64s, Step
from pawl.lifecycle.records import Bools, Idled, Int32s, Started, StepCommitted, StepPlanned, Transition
from pawl.lifecycle.requests import Indices
from pawl.lifecycle.states import Event, State


class _Settings(msgspec.Struct):
    """The settings of the loop that matter here."""

    pacing: str
    stages: int = 1
    mixed: bool = False


def _settings_of(started: Started) -> _Settings:
    loop: Any = started.config.get("loop")
    try:
        return msgspec.convert(loop, _Settings)
    except msgspec.ValidationError:
        return _Settings("")


def stages_of(started: Started) -> int:
    """Stages that steps go through, each at its own, as the configuration in the trace says; else 1."""
    settings = _settings_of(started)
    return settings.stages if settings.pacing == "pipeline" else 1


class FairMicroBatches(Property):
    """Through S > 1 stages, a step takes no request that decodes and is in one of the S - 1 steps before it that are in
    flight; of the others no more than their share, had all micro-batches the same size, and no fewer where those that
    are left need no page: nor is there none while some could be in it; and of those none before one that has waited
    longer, unless that one needs a page. At most S + 1 steps are in flight."""

    name: ClassVar[str] = "fair_micro_batches"

    def __init__(self) -> None:
        self._stages = 1
        self._mixed = False
        """Prompts do not keep those that decode out of a step."""
        self._turn: Int64s = np.zeros(64, np.int64)
        """By row: the step that held it last."""
        self._end: Int32s = np.zeros(64, np.int32)
        """By row: positions that are computed or in flight."""
        self._page_size = 1
        self._draws: Bools = np.zeros(64, np.bool_)
        """By row: its next token is drawn or will be, so that it decodes."""
        self._gone = 0
        """Requests that lost their place since the step planned last."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._fit(history)
        for row in beginning.working:
            self._draws[row] = beginning.table.state[row] == State.DECODING
            self._end[row] = history.known(row) - 1
        return found

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        self._stages, self._mixed, self._page_size = stages_of(record), _settings_of(record).mixed, record.page_size
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._fit(history)
        self._draws[record.row] = False
        return ()

    @on(Event.RETRACT)
    def _retracted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._gone += 1
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        if history.committed.counted:
            live = history.committed.live
            self._end[history.step.rows[live]] = history.committed.ends[live]
        return ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        if self._stages == 1:
            return ()
        self._fit(history)
        found = tuple(self._judged(history))
        step = history.step
        self._turn[step.rows], self._end[step.rows], self._draws[step.rows] = step.step, step.ends, step.samples
        self._gone = 0
        return found

    @on(Idled)
    def _idled(self, record: Idled, history: History) -> Sequence[Violation]:
        if self._stages == 1:
            return ()
        self._fit(history)
        newest = list(history.in_flight.values())[1 - self._stages :]
        _, free = self._free(history, newest)
        if not len(free) or self._gone or (self._end[free] % self._page_size == 0).any():
            return ()
        text = f"nothing is planned beside {len(history.in_flight)} steps in flight, {len(free)} requests that decode"
        return (self.violation(history, f"{text} are in none of the last {self._stages - 1}, and none needs a page"),)

    def _judged(self, history: History) -> Iterator[Violation]:
        step, stages = history.step, self._stages
        *ahead, _ = history.in_flight.values()
        if len(ahead) > stages:
            yield self.violation(history, f"{len(ahead) + 1} steps are in flight through {stages} stages")
        newest, taken = ahead[1 - stages :], step.rows[step.chained]
        for other in newest:
            both = np.intersect1d(taken, other.rows)
            if len(both):
                text = f"step {step.step} takes it, which waits for what step {other.step} draws"
                yield self.violation(history, text, int(history.request[both[0]]))
                return
        if len(taken) or self._mixed:
            yield from self._shared(history, taken, newest)

    def _shared(self, history: History, taken: Indices, newest: Sequence[Step]) -> Iterator[Violation]:
        step, decoding = history.step.step, self._decoding(history)
        held, free = self._free(history, newest)
        if not len(free) and not len(taken):
            return
        to_come = self._stages - sum(map(np.any, held))
        # Those that gave way to this step had been shared out as well.
        shares = -(-(len(free) + self._gone) // to_come), -(-(len(decoding) + self._gone) // self._stages)
        if len(taken) > min(shares):
            text = f"step {step} takes {len(taken)} of {len(free)} requests that decode and could be in one of"
            yield self.violation(history, f"{text} {to_come} micro-batches; {len(decoding)} decode in all")
        left = np.setdiff1d(free, taken)
        in_need = self._end[left] % self._page_size == 0
        if len(taken) < min(shares):
            if not (in_need.any() or self._gone):
                text = f"step {step} takes {len(taken)} of {len(free)} requests that decode and could be in it"
                yield self.violation(history, f"{text}, and none of the others needs a page")
            return
        left = left[~in_need]
        for row in left[self._turn[left] < self._turn[taken].max()].tolist():
            text = f"step {step} leaves it out, whose last turn was step {self._turn[row]}, for one with a later one"
            yield self.violation(history, text, int(history.request[row]))
            return

    def _free(self, history: History, newest: Sequence[Step]) -> tuple[Sequence[Bools], Indices]:
        """Which of those that decode each of these steps has; and those that none has."""
        decoding = self._decoding(history)
        held = [np.isin(decoding, other.rows) for other in newest]
        return held, decoding[~np.logical_or.reduce(held)] if held else decoding

    def _decoding(self, history: History) -> Indices:
        """Rows that decode and have more tokens to come, before the step that is planned."""
        count = history.num_rows
        most = history.num_prompt[:count] + history.num_wanted[:count] - 1
        rows: Indices = np.flatnonzero(history.working[:count] & self._draws[:count] & (self._end[:count] < most))
        return rows

    def _fit(self, history: History) -> None:
        if len(self._turn) < history.num_rows:
            self._turn, self._end = fitted(self._turn, history.num_rows), fitted(self._end, history.num_rows)
            self._draws = fitted(self._draws, history.num_rows)
