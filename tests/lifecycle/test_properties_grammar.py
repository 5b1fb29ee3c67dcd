"""`grammar_is_a_fold` reports outputs that are not of their grammar, wherever a request ends, and says what it could
not follow."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.properties.grammar import Fold, GrammarIsAFold, NoFold
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import Record, Started, StepCommitted, Submitted, Transition, int32s
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.story import sound_run

GRAMMAR = Grammar(GrammarKind.REGEX, "never read here")
STORY = sound_run(answered=False)


END = -1


class Only:
    """A fold that accepts these tokens, in any order, and with `END` among them nothing more."""

    def __init__(self, allowed: Sequence[int]) -> None:
        self._allowed = set(allowed)

    def accept(self, token: int) -> bool:
        return token in self._allowed

    @property
    def stuck(self) -> bool:
        return END in self._allowed


def with_grammar(records: Sequence[Record], request: int = 1) -> list[Record]:
    return [
        msgspec.structs.replace(record, sampling=msgspec.structs.replace(record.sampling, grammar=GRAMMAR))
        if isinstance(record, Submitted) and record.request == request
        else record
        for record in records
    ]


def tokens_of(records: Sequence[Record]) -> set[int]:
    return {
        token for record in records if isinstance(record, StepCommitted) for token in int32s(record.tokens).tolist()
    }


def explanations(records: Sequence[Record], allowed: Sequence[int]) -> list[str]:
    def begin(started: Started, grammar: Grammar) -> Fold:
        assert grammar == GRAMMAR
        return Only(allowed)

    monitor = Monitor([GrammarIsAFold(begin)])
    for record in records:
        monitor.observe(record)
    return [each.explanation for each in monitor.violations]


def test_an_output_of_its_grammar_is_sound_and_one_without_a_grammar_is_not_looked_at() -> None:
    assert explanations(with_grammar(STORY.records), sorted(tokens_of(STORY.records))) == []
    assert explanations(STORY.records, []) == []


def test_the_first_token_that_a_grammar_refuses_is_named() -> None:
    records = with_grammar(STORY.records)
    (text,) = explanations(records, [])
    assert "of which the grammar refuses the last token" in text


def test_a_refused_token_that_a_worker_drew_is_reported() -> None:
    ends = [
        index
        for index, record in enumerate(STORY.records)
        if isinstance(record, Transition) and record.event is Event.FINISH and record.request == 1
    ]
    records = with_grammar(STORY.records)
    (index,) = ends
    end = records[index]
    assert isinstance(end, Transition)
    records[index] = msgspec.structs.replace(end, event=Event.ABORT, target=State.ABORTED, cause=Cause.GRAMMAR)
    allowed = sorted(tokens_of(STORY.records))
    (text,) = explanations(records[: index + 1], allowed)
    assert text == "its worker drew a token that its grammar refuses"
    assert explanations(records[: index + 1], [*allowed, END]) == []  # nobody could have drawn another


def test_what_cannot_be_followed_is_said_and_judged_no_further() -> None:
    def begin(started: Started, grammar: Grammar) -> Fold:
        raise NoFold("there is no vocabulary")

    found = GrammarIsAFold(begin)
    monitor = Monitor([found])
    for record in with_grammar(STORY.records):
        monitor.observe(record)
    assert monitor.violations == []
    assert found.unjudged == "outputs of 1 requests with grammars were not followed: there is no vocabulary"


@pytest.mark.parametrize("request_number", [2, 3])
def test_every_end_is_judged(request_number: int) -> None:
    records = with_grammar(STORY.records, request_number)
    outputs = {record.request: record.num_output for record in records if isinstance(record, Transition)}
    assert len(explanations(records, [])) == (1 if outputs[request_number] else 0)
    assert explanations(records, sorted(tokens_of(records))) == []
