"""Property `stream_positions`: every position of a request is computed once, in order, and no token is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.growing import fitted
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Bools, Int32s, StepCommitted, StepPlanned, StepRolledBack, Submitted, Transition
from pawl.lifecycle.states import Cause, Event

_ONE = np.array(1, np.int32)
"""numpy takes less than half as long with it than with a number of Python's."""


class StreamPositions(Property):
    """Segments of a request start where the last one ended (after an admission: where its cached prefix ends); they
    stay within the tokens that are known or in flight; a chunk that is not the last ends where a page does; a token is
    drawn from the last of the known tokens and from nowhere else; and the end of a request counts the tokens that were
    committed."""

    name = "stream_positions"
    whole_pages: ClassVar[bool] = True
    """A chunk that is not the last ends where a page does."""

    def __init__(self) -> None:
        self._next: Int32s = np.zeros(64, np.int32)
        """Where the request's next segment must start."""
        self._promised: Int32s = np.zeros(64, np.int32)
        """Tokens that are known or will be when every planned step is done."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        for row in beginning.working:
            self._next[row] = beginning.num_computed(row)
            self._promised[row] = beginning.num_known(row)
        return found

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        self._next = fitted(self._next, record.row + 1)
        self._promised = fitted(self._promised, record.row + 1)
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        row = record.row
        self._promised[row] = known = int(history.num_prompt[row] + history.num_output[row])
        self._next[row] = cached = record.num_cached or 0
        if 0 <= cached < max(known, 1):
            return ()
        text = f"{cached} of {known} known tokens are cached; the last one must be computed"
        return (self.violation(history, text, record.request),)

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        counted, committed = record.num_output, int(history.num_output[record.row])
        wanted = int(history.num_wanted[record.row])
        found: list[Violation] = []
        if counted is not None:
            cut = record.cause == Cause.STOP_STRING
            if counted > committed or (counted < committed and not cut):
                text = f"the request ends with {counted} output tokens, but {committed} were committed"
                found.append(self.violation(history, text, record.request))
        if record.event == Event.FINISH and record.cause == Cause.LENGTH and committed != wanted:
            text = f"the request ends for its length with {committed} output tokens of {wanted}"
            found.append(self.violation(history, text, record.request))
        return found

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        step = history.step
        rows, starts, ends, chained = step.rows, step.starts, step.ends, step.chained
        promised = self._promised[rows]
        # One pass over all rules; which one is broken matters only when one is.
        sound = (starts == self._next[rows]) & (starts < ends) & history.working[rows]
        # Nearly all segments reach the last of the known tokens; from the one drawn last that is a single position.
        last = (ends == promised) & (~chained | (step.lengths == _ONE))
        if 0 in (sound & last).tobytes():
            page_size = history.pages.page_size if self.whole_pages else 1
            chunk = ~chained & ~step.samples & (ends < promised) & (ends % page_size == 0)
            # A run begins with the token drawn last, and goes on with drafts of the tokens to come.
            run = chained & (starts + 1 == promised) & (step.lengths > 1)
            sound &= last | chunk | run
        found: list[Violation] = []
        if 0 in sound.tobytes():
            index = int((~sound).argmax())
            found.append(self.violation(history, self._fault(history, index), int(step.requests[index])))
        if len(rows) > 1 and len(set(rows.tolist())) != len(rows):  # many times quicker than np.unique
            values, counts = np.unique(rows, return_counts=True)
            request = int(history.request[values[counts > 1][0]])
            found.append(self.violation(history, f"step {step.step} has two segments of one request", request))
        self._next[rows] = ends
        self._promised[rows] = promised + step.samples
        return found

    def _fault(self, history: History, index: int) -> str:
        step = history.step
        row, start, end = int(step.rows[index]), int(step.starts[index]), int(step.ends[index])
        segment = f"step {step.step} computes positions {start} to {end - 1}"
        promised = int(self._promised[row])
        if not history.working[row]:
            return f"{segment} of a request that is not at work"
        if start != self._next[row]:
            return f"{segment}, but position {self._next[row]} is next"
        if start >= end:
            return f"{segment}: an empty segment"
        if end > promised:
            return f"{segment}, but only {promised} tokens are known or in flight"
        if step.samples[index] and end != promised:
            return f"{segment} and draws a token from the last of them, but {promised} tokens are known or in flight"
        if self.whole_pages and end < promised and end % history.pages.page_size:
            return f"{segment}, which is not the last chunk and ends within a page"
        return f"{segment} from the token that the worker drew last, which belongs to position {promised - 1}"

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        step, committed = history.step, history.committed
        live, drew, rows = committed.live, committed.drew, step.rows
        output = history.num_output[rows]
        known = history.num_prompt[rows] + output
        wrong = (known != committed.ends + _ONE) | (output > history.num_wanted[rows])
        if committed.counted:
            wrong |= committed.counts > np.where(step.chained, step.lengths, 1)
            runs = live & step.chained & (step.lengths > 1)
            self._next[rows[runs]] = committed.ends[runs]
            self._promised[rows[runs]] = known[runs]
        wrong = (wrong & drew) | (drew != (step.samples & live))
        return tuple(self._miscounted(history, wrong)) if 1 in wrong.tobytes() else ()

    def _miscounted(self, history: History, wrong: Bools) -> Iterator[Violation]:
        step, committed = history.step, history.committed
        index = int(wrong.argmax())
        row, request = int(step.rows[index]), int(step.requests[index])
        output, wanted = int(history.num_output[row]), int(history.num_wanted[row])
        if committed.drew[index] != (step.samples[index] and committed.live[index]):
            verb = "applies a token that it did not draw" if committed.drew[index] else "loses a token that it drew"
            yield self.violation(history, f"step {step.step} {verb} for a request at work", request)
        elif output > wanted:
            yield self.violation(history, f"output token {output} of a request that asked for {wanted}", request)
        else:
            known = int(history.num_prompt[row]) + output
            text = f"the token drawn after position {step.ends[index] - 1} becomes token {known} of the request"
            yield self.violation(history, text, request)

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        step = history.step
        stayed = history.departures[step.rows] == step.departures
        rows = step.rows[stayed]
        self._next[rows] = step.starts[stayed]
        self._promised[rows] -= step.samples[stayed]
        return ()
