"""Property `observability_conservation`: what the engine says it did is what it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pawl.lifecycle.properties.base import ENDS, Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Closed, Counts, PageCounts, Record, StepCommitted, Submitted, Transition
from pawl.lifecycle.states import Event


class ObservabilityConservation(Property):
    """received = finished + aborted + live; every total of `Closed` is the sum over the requests; and the changes of
    the cache, replayed from nothing, give the pages that are counted as cached."""

    name = "observability_conservation"
    observes = (Submitted, StepCommitted, Closed, Event.SUBMIT, Event.SUBMIT_GRAMMAR, Event.RETRACT, *ENDS)

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

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Transition():
                self._moved(record, history)
            case Submitted():
                self._received += 1
            case StepCommitted():
                return self._cached(record.pages, history)
            case Closed():
                cached = self._cached(record.pages, history) if record.pages is not None else ()
                return (*cached, *self._closed(record.counts, history))
        return ()

    def _cached(self, pages: PageCounts, history: History) -> Sequence[Violation]:
        if pages.cached == len(history.cache) or history.started is None:
            return ()
        text = f"{pages.cached} pages are counted as cached, {len(history.cache)} are by what was told of the cache"
        return (self.violation(history, text),)

    def _moved(self, record: Transition, history: History) -> None:
        row = record.row
        match record.event:
            case Event.SUBMIT | Event.SUBMIT_GRAMMAR:
                self._prompt_tokens += int(history.num_prompt[row])
            case Event.FINISH | Event.ABORT:
                counted = record.num_output
                self._output_tokens += int(history.num_output[row]) if counted is None else counted
                if record.event == Event.FINISH:
                    self._finished += 1
                else:
                    self._aborted += 1
            case Event.RETRACT:
                self._retractions += 1

    def _closed(self, counts: Counts, history: History) -> Iterator[Violation]:
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
