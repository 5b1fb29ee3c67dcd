"""Property `observability_conservation`: what the engine says it did is what it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Closed, Counts, PageCounts, StepCommitted, Submitted, Transition
from pawl.lifecycle.states import Event


class ObservabilityConservation(Property):
    """received = finished + aborted + live; every total of `Closed` is the sum over the requests; and the changes of
    the cache, replayed from nothing, give the pages that are counted as cached."""

    name = "observability_conservation"

    def __init__(self) -> None:
        self._received = 0
        self._finished = 0
        self._aborted = 0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._retractions = 0

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        totals = beginning.totals
        self._received, self._finished, self._aborted = totals.received, totals.finished, totals.aborted
        self._prompt_tokens, self._retractions = totals.prompt_tokens, totals.retractions
        self._output_tokens = totals.generated_tokens - _of_live(history)
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        self._received += 1
        return ()

    @on(Event.SUBMIT, Event.SUBMIT_GRAMMAR)
    def _accepted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._prompt_tokens += int(history.num_prompt[record.row])
        return ()

    @on(Event.RETRACT)
    def _retracted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._retractions += 1
        return ()

    @on(Event.FINISH)
    def _finish(self, record: Transition, history: History) -> Sequence[Violation]:
        self._finished += 1
        return self._ended(record, history)

    @on(Event.ABORT)
    def _abort(self, record: Transition, history: History) -> Sequence[Violation]:
        self._aborted += 1
        return self._ended(record, history)

    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        counted = record.num_output
        self._output_tokens += int(history.num_output[record.row]) if counted is None else counted
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        return self._cached(record.pages, history)

    @on(Closed)
    def _closed(self, record: Closed, history: History) -> Sequence[Violation]:
        cached = self._cached(record.pages, history) if record.pages is not None else ()
        return (*cached, *self._summed(record.counts, history))

    def _cached(self, pages: PageCounts, history: History) -> Sequence[Violation]:
        if pages.cached == len(history.cache) or history.started is None:
            return ()
        text = f"{pages.cached} pages are counted as cached, {len(history.cache)} are by what was told of the cache"
        return (self.violation(history, text),)

    def _summed(self, counts: Counts, history: History) -> Iterator[Violation]:
        seen = Counts(
            received=self._received,
            finished=self._finished,
            aborted=self._aborted,
            live=len(history.open),
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens + _of_live(history),
            retractions=self._retractions,
        )
        for name in Counts.__struct_fields__:
            said, found = getattr(counts, name), getattr(seen, name)
            if said != found:
                yield self.violation(history, f"the engine counts {name} = {said}, its records show {found}")
        if counts.received != counts.finished + counts.aborted + counts.live:
            text = f"received {counts.received} is not finished {counts.finished} + aborted {counts.aborted}"
            yield self.violation(history, f"{text} + live {counts.live}")


def _of_live(history: History) -> int:
    """Output tokens of live requests."""
    return sum(int(history.num_output[row]) for row in history.open.values())
