"""Scheduler -> grammar actor. Answers are orders (`pawl.loops.orders.grammars`): what they change is recorded."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pawl.lifecycle.grammar import Grammar


class Compile(msgspec.Struct, frozen=True, tag=True):
    """The request waits for this grammar. Answered by one GrammarReady or GrammarFailed, unless released before."""

    request: int
    grammar: Grammar


class Release(msgspec.Struct, frozen=True, tag=True):
    """The request has ended, wherever it was: its grammar is not needed any more. Comes once after each Compile."""

    request: int


ToGrammar: TypeAlias = Compile | Release
