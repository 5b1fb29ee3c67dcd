"""Property `stream_positions`: every position of a request is computed once, in order, and no token is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.growing import fitted
from pawl.lifecycle.properties.history import Bools, History
from pawl.lifecycle.records import Int32s, Record, StepCommitted, StepPlanned, StepRolledBack, Submitted, Transition
from pawl.lifecycle.states import Cause, Event


class StreamPositions(Property):
    """Segments of a request start where the last one ended (after an admission: where its cached prefix ends); they
    stay within the tokens that are known or in flight; a chunk that is not the last ends where a page does; a token is
    drawn from the last of the known tokens and from nowhere else; and the end of a request counts the tokens that were
    committed."""

    name = "stream_positions"
    observes = (StepPlanned, StepCommitted, Submitted, StepRolledBack, Event.ADMIT, Event.RECEIVE, *ENDS)

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

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case StepPlanned():
                return self._planned(history)
            case StepCommitted():
                return self._committed(history)
            case Transition():
                return self._moved(record, history)
            case Submitted():
                self._next = fitted(self._next, record.row + 1)
                self._promised = fitted(self._promised, record.row + 1)
            case StepRolledBack():
                self._rolled_back(history)
        return ()

    def _moved(self, record: Transition, history: History) -> Sequence[Violation]:
        row = record.row
        known = int(history.num_prompt[row] + history.num_output[row])
        match record.event:
            case Event.ADMIT:
                self._promised[row] = known
                self._next[row] = cached = record.num_cached or 0
                if not 0 <= cached < max(known, 1):
                    text = f"{cached} of {known} known tokens are cached; the last one must be computed"
                    return (self.violation(history, text, record.request),)
            case Event.RECEIVE:
                self._promised[row] = known
                self._next[row] = known - 1
            case Event.FINISH | Event.ABORT:
                return tuple(self._ended(record, history))
        return ()

    def _ended(self, record: Transition, history: History) -> Iterator[Violation]:
        counted, committed = record.num_output, int(history.num_output[record.row])
        wanted = int(history.num_wanted[record.row])
        if counted is not None:
            cut = record.cause == Cause.STOP_STRING
            if counted > committed or (counted < committed and not cut):
                text = f"the request ends with {counted} output tokens, but {committed} were committed"
                yield self.violation(history, text, record.request)
        if record.event == Event.FINISH and record.cause == Cause.LENGTH and committed != wanted:
            text = f"the request ends for its length with {committed} output tokens of {wanted}"
            yield self.violation(history, text, record.request)

    def _planned(self, history: History) -> Sequence[Violation]:
        step = history.step
        rows, starts, ends, samples = step.rows, step.starts, step.ends, step.samples
        expected, promised = self._next[rows], self._promised[rows]
        reaches = ends == promised
        # One pass over all rules; which one is broken matters only when one is.
        size = history.pages.page_size
        sound = (starts == expected) & (starts < ends)
        sound &= reaches | ((ends < promised) & ~samples & (ends % size == 0))
        # A run begins with the token drawn last, and goes on with drafts of the tokens to come.
        run = step.chained & (starts + 1 == promised) & (starts < ends - 1)
        sound |= run & (starts == expected)
        sound &= history.working[rows] & (~step.chained | (reaches & (starts == ends - 1)) | run)
        found: list[Violation] = []
        if not sound.all():
            index = int((~sound).argmax())
            found.append(self.violation(history, self._fault(history, index), int(step.requests[index])))
        if len(rows) > 1 and len(set(rows.tolist())) != len(rows):  # many times quicker than np.unique
            values, counts = np.unique(rows, return_counts=True)
            request = int(history.request[values[counts > 1][0]])
            found.append(self.violation(history, f"step {step.step} has two segments of one request", request))
        self._next[rows] = ends
        self._promised[rows] = promised + samples
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
        if end < promised and end % history.pages.page_size:
            return f"{segment}, which is not the last chunk and ends within a page"
        return f"{segment} from the token that the worker drew last, which belongs to position {promised - 1}"

    def _committed(self, history: History) -> Sequence[Violation]:
        step, committed = history.step, history.committed
        live, drew, rows = committed.live, committed.drew, step.rows
        expected = step.samples & live
        known = history.num_prompt[rows] + history.num_output[rows]
        wrong = (drew != expected) | (drew & (known != committed.ends + 1))
        wrong |= drew & (committed.counts > np.where(step.chained, step.ends - step.starts, 1))
        wrong |= drew & (history.num_output[rows] > history.num_wanted[rows])
        runs = live & step.chained & (step.ends - step.starts > 1)
        if np.count_nonzero(runs):
            self._next[rows[runs]] = committed.ends[runs]
            self._promised[rows[runs]] = known[runs]
        return tuple(self._miscounted(history, wrong)) if np.count_nonzero(wrong) else ()

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

    def _rolled_back(self, history: History) -> None:
        step = history.step
        stayed = history.departures[step.rows] == step.departures
        rows = step.rows[stayed]
        self._next[rows] = step.starts[stayed]
        self._promised[rows] -= step.samples[stayed]
