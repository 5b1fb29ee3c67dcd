"""The backend `plain`: regular expressions over ASCII and choices, in our own lines. Needs no library, and no PyTorch.

It serves simulated runs, whose vocabulary has a token for each byte. An automaton without back-tracking (Thompson 1968)
is made of the pattern; sets of its states, as outputs reach them, are numbered and remember their masks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pawl.gpu.grammars.base import Compiled, GrammarRefused, Matcher, Words, allow
from pawl.gpu.grammars.regex import Automaton, automaton_of, choice_automaton
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.step import Int32s

_DEAD = 0
_STATE_BYTES = 1 << 10
"""About what one state takes, its sets included."""


class Plain:
    """`GrammarBackend`."""

    name = "plain"

    def __init__(self, words: Words) -> None:
        self._words = words

    def compile(self, grammar: Grammar) -> Compiled:
        """See `GrammarBackend.compile`."""
        match grammar.kind:
            case GrammarKind.REGEX:
                return PlainCompiled(automaton_of(grammar.text), self._words)
            case GrammarKind.CHOICE:
                return PlainCompiled(choice_automaton(json.loads(grammar.text)), self._words)
        raise GrammarRefused(f"{grammar.kind} is not supported by the grammar backend plain")


class _State(NamedTuple):
    """A set of the automaton's states that outputs have reached together."""

    mask: Int32s
    targets: dict[int, int]
    """token -> number of the state after it, for tokens that are text and allowed."""
    complete: bool
    """The output may end here."""


class PlainCompiled:
    """`Compiled`. Threads may find the same state twice; what they find is equal."""

    def __init__(self, automaton: Automaton, words: Words) -> None:
        self._automaton = automaton
        self._words = words
        self._numbers: dict[frozenset[int], int] = {}
        self._sets: list[frozenset[int]] = []
        self._states: dict[int, _State] = {}
        self.first = self._number(automaton.closure((automaton.start,)))

    @property
    def num_bytes(self) -> int:
        return self._automaton.size * _STATE_BYTES

    def matcher(self) -> Matcher:
        return PlainMatcher(self, [self.first])

    def state(self, number: int) -> _State:
        """The state of this number."""
        found = self._states.get(number)
        if found is None:
            found = self._states[number] = self._found(self._sets[number])
        return found

    def _number(self, states: frozenset[int]) -> int:
        number = self._numbers.get(states)
        if number is None:
            number = self._numbers[states] = len(self._sets)
            self._sets.append(states)
        return number

    def _found(self, states: frozenset[int]) -> _State:
        targets: dict[int, int] = {}
        for token, entry in enumerate(self._words.entries):
            reached = states
            for byte in entry:
                reached = self._automaton.after(reached, byte)
                if not reached:
                    break
            if entry and reached:
                targets[token] = self._number(reached)
        complete = self._automaton.accept in states
        allowed = [*targets, *(self._words.end_ids if complete else ())]
        mask = np.zeros(self._words.mask_words, np.int32)
        allow(mask, allowed)
        return _State(mask, targets, complete)


class PlainMatcher:
    """`Matcher`: the states after each token, newest last; None after an end token."""

    def __init__(self, compiled: PlainCompiled, path: Sequence[int | None]) -> None:
        self._compiled = compiled
        self._path = list(path)

    @property
    def terminated(self) -> bool:
        return self._path[-1] is None

    def fill(self, bits: Int32s) -> None:
        bits[:] = self._here().mask

    def accept(self, token: int) -> bool:
        if self._path[-1] is None:
            return False
        here = self._here()
        if here.complete and token in self._compiled._words.end_ids:
            self._path.append(None)
        elif token in here.targets:
            self._path.append(here.targets[token])
        else:
            return False
        return True

    def rollback(self, count: int) -> None:
        del self._path[len(self._path) - count :]

    def fork(self) -> Matcher:
        return PlainMatcher(self._compiled, self._path)

    def _here(self) -> _State:
        number = self._path[-1]
        if number is None:
            raise ValueError("the output has ended")
        return self._compiled.state(number)
