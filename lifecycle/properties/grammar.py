"""`grammar_is_a_fold`: what a request with a grammar has said is derived from its grammar, from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeAlias

from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.machine import WORKING
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Started, Transition
from pawl.lifecycle.states import Cause


class Fold(Protocol):
    """A matcher at the beginning of an output."""

    def accept(self, token: int) -> bool:
        """Whether the output may go on with this token; nothing follows an end token."""

    @property
    def stuck(self) -> bool:
        """Whether it may go on with none, and may not end either."""


class NoFold(Exception):
    """Outputs cannot be followed here. The message says why."""


Begin: TypeAlias = Callable[[Started, Grammar], Fold]
"""A fresh matcher, with the vocabulary and the backend of a run. Raises NoFold."""


class GrammarIsAFold(Property):
    """The output of a request with a grammar is accepted, token by token, by a fresh matcher of that grammar, however
    often the request was retracted or its steps were lost; and no worker draws a token that it refuses, unless it
    refuses all."""

    name: ClassVar[str] = "grammar_is_a_fold"

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._num_unjudged = 0

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        submitted = history.submissions.get(record.row)
        if submitted is None or submitted.request != record.request or submitted.sampling.grammar is None:
            return ()
        unanswered = record.cause is Cause.GRAMMAR and record.source in WORKING
        tokens = history.output(record.row, record.num_output).tolist()
        if (not tokens and not unanswered) or history.started is None:
            return ()
        try:
            fold = self._begin(history.started, submitted.sampling.grammar)
        except NoFold as error:
            self._num_unjudged += 1
            self.unjudged = f"outputs of {self._num_unjudged} requests with grammars were not followed: {error}"
            return ()
        for index, token in enumerate(tokens):
            if not fold.accept(token):
                text = f"its output is {tokens[: index + 1]}, of which the grammar refuses the last token"
                return (self.violation(history, text, record.request),)
        if unanswered and not fold.stuck:
            return (self.violation(history, "its worker drew a token that its grammar refuses", record.request),)
        return ()
