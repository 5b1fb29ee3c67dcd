"""The backend `xgrammar` (Dong et al. 2024): masks are computed ahead where a grammar needs no context.

A string of a JSON Schema that may be longer than 128 characters needs some: each of its masks tries all tokens, 18 ms
for 49,152 of them, in a step that others wait for. Such grammars are given to llguidance, whose masks take 0.2 ms at
any length, as far as it takes them. So is a grammar of which this library says that it ignores a part of it
(`multipleOf` beside bounds, looking ahead, a repetition beyond its numbers). Which of the two a grammar is for shows in
its text alone, so an audit follows it in the same.
"""

from __future__ import annotations

import builtins
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from pawl.gpu.grammars import llguidance
from pawl.gpu.grammars.base import Compiled, GrammarRefused, Matcher, Words
from pawl.gpu.grammars.compiling import SECONDS, TriedOut
from pawl.gpu.grammars.json_schema import prepared, prepared_tag
from pawl.gpu.grammars.lowering import MAX_WHITESPACE, choice_to_ebnf
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.step import Int32s

_FAR = 128
"""Characters that the library counts by states, whose masks it has computed ahead."""


def counts_far(grammar: Grammar) -> bool:
    """Whether a schema has strings whose lengths have a bound beyond what is counted by states."""
    if grammar.kind not in (GrammarKind.JSON_SCHEMA, GrammarKind.STRUCTURAL_TAG):
        return False
    found: list[Any] = []

    def look(value: dict[str, Any]) -> None:
        found.extend(value[name] for name in ("minLength", "maxLength") if name in value)

    with suppress(ValueError, RecursionError):  # who compiles it says so
        json.loads(grammar.text, object_hook=look)
    return any(isinstance(bound, int | float) and bound > _FAR for bound in found)


class XGrammar(TriedOut):
    """`GrammarBackend`. Raises ImportError where the library is not installed."""

    name = "xgrammar"

    def __init__(self, words: Words, seconds: int = SECONDS) -> None:
        super().__init__(Library, words, seconds)


class Library:
    """The library with one vocabulary."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._module = _library()
        self._vocabulary = self._module.TokenizerInfo(
            list(words.entries), vocab_size=len(words.entries), stop_token_ids=list(words.end_ids)
        )
        self._compiler = self._module.GrammarCompiler(self._vocabulary, max_threads=1, cache_enabled=False)
        self.second = llguidance.Library(words)

    def compile(self, grammar: Grammar) -> Compiled:
        """See `GrammarBackend.compile`."""
        if counts_far(grammar):
            with suppress(GrammarRefused):
                return self.second.compile(grammar)
        return XCompiled(self._module, self._compiled(grammar), self._words)

    def _compiled(self, grammar: Grammar) -> Any:
        compiler, text = self._compiler, grammar.text
        try:
            match grammar.kind:
                case GrammarKind.JSON_SCHEMA:
                    return compiler.compile_json_schema(
                        prepared(text, merges=False), strict_mode=False, max_whitespace_cnt=MAX_WHITESPACE
                    )
                case GrammarKind.REGEX:
                    return compiler.compile_regex(text)
                case GrammarKind.EBNF:
                    return compiler.compile_grammar(text)
                case GrammarKind.CHOICE:
                    return compiler.compile_grammar(choice_to_ebnf(json.loads(text)))
                case GrammarKind.STRUCTURAL_TAG:
                    return compiler.compile_structural_tag(prepared_tag(json.loads(text), merges=False))
        except GrammarRefused:
            raise
        except (RuntimeError, ValueError, TypeError, RecursionError) as error:
            raise GrammarRefused(f"the {grammar.kind} is not valid: {_reason(error)}") from error


class XCompiled:
    """`Compiled`."""

    def __init__(self, library: Any, compiled: Any, words: Words) -> None:
        self._library = library
        self._compiled = compiled
        self._words = words

    @property
    def num_bytes(self) -> int:
        return int(self._compiled.memory_size_bytes)

    def matcher(self) -> Matcher:
        return XMatcher(self._library.GrammarMatcher(self._compiled), self._words)


class XMatcher:
    """`Matcher`."""

    def __init__(self, matcher: Any, words: Words) -> None:
        self._matcher = matcher
        self._words = words

    @property
    def terminated(self) -> bool:
        return bool(self._matcher.is_terminated())

    def fill(self, bits: Int32s) -> None:
        self._matcher.fill_next_token_bitmask(bits[None])

    def accept(self, token: int) -> bool:
        # Asked about a token that is no text, the library writes to the console.
        known = bool(self._words.entries[token]) or token in self._words.end_ids
        return known and bool(self._matcher.accept_token(token))

    def rollback(self, count: int) -> None:
        self._matcher.rollback(count)

    def fork(self) -> Matcher:
        return XMatcher(self._matcher.fork(), self._words)


def _reason(error: Exception) -> str:
    """The library's words without where in its source they come from."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = text.split(".cc:", 1)[-1].partition(": ")[2] if ".cc:" in text else text
    # The condition that did not hold is C++, and what follows it are words.
    check, _, words = text.partition(" is false: ")
    return (words if check.startswith("Check failed: ") and words else text)[:300]


def _library() -> Any:
    """The module. It imports transformers and torch, which takes seconds and hundreds of megabytes, for the names of a
    few classes and one type: where they are not loaded already, this thread gets empty modules in their place. Other
    threads may import the real ones meanwhile, as for an adapter that is loaded at the start."""
    with _IMPORTING:
        if "xgrammar" not in sys.modules:
            # What it stands on can do without torch, if that cannot be imported.
            with _absent():
                import tvm_ffi  # noqa: F401

                with _stood_in_for():
                    import xgrammar
    import xgrammar

    return xgrammar


_IMPORTING = threading.Lock()
_REPLACED = ("torch", "transformers")


@contextmanager
def _absent() -> Iterator[None]:
    """For this thread those that are not loaded cannot be imported."""
    finder = _Absent(threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Absent(MetaPathFinder):
    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in _REPLACED and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is not loaded for this", name=name)


@contextmanager
def _stood_in_for() -> Iterator[None]:
    """Statements of this thread that import one which is not loaded get an empty module. None is among those that are
    loaded, where other threads would find it."""
    plain, thread = builtins.__import__, threading.get_ident()

    def imported(name: str, *how: Any, **named: Any) -> ModuleType:
        own = threading.get_ident() == thread and name in _REPLACED and name not in sys.modules
        return _Names(name) if own else plain(name, *how, **named)

    builtins.__import__ = imported
    try:
        yield
    finally:
        builtins.__import__ = plain


class _Names(ModuleType):
    """A module that has a class of every name, to be made with anything."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *values, **named: None})
