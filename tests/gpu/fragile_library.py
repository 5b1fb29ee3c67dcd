"""A library of grammars that ends its process at some."""

from __future__ import annotations

import re
import signal

from pawl.gpu.grammars.base import Compiled, Words
from pawl.gpu.grammars.plain import Plain
from pawl.lifecycle.grammar import Grammar

DEEP = 100_000


class Library:
    """`Plain`, but that `crash` and `recurse` are too much for it."""

    second = None

    def __init__(self, words: Words) -> None:
        self._plain = Plain(words)

    def compile(self, grammar: Grammar) -> Compiled:
        """See `Library` of compiling.py."""
        if grammar.text == "crash":
            signal.raise_signal(signal.SIGSEGV)  # to this thread: one to the process comes some time later
        if grammar.text == "recurse":
            re.compile("(" * DEEP + ")" * DEEP)  # a RecursionError, which no library should raise
        return self._plain.compile(grammar)
