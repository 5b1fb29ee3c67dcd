"""The backend `xgrammar` (Dong et al. 2024): masks are computed ahead where a grammar needs no context."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

from pawl.gpu.grammars.base import Compiled, GrammarRefused, Matcher, Words
from pawl.gpu.grammars.lowering import MAX_WHITESPACE, choice_to_ebnf
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.step import Int32s


class XGrammar:
    """`GrammarBackend`. Raises ImportError where the library is not installed."""

    name = "xgrammar"

    def __init__(self, words: Words) -> None:
        self._library = _library()
        self._words = words
        self._vocabulary = self._library.TokenizerInfo(
            list(words.entries), vocab_size=len(words.entries), stop_token_ids=list(words.end_ids)
        )
        self._compiler = self._library.GrammarCompiler(self._vocabulary, max_threads=1, cache_enabled=False)

    def compile(self, grammar: Grammar) -> Compiled:
        """See `GrammarBackend.compile`."""
        compiler, text = self._compiler, grammar.text
        try:
            match grammar.kind:
                case GrammarKind.JSON_SCHEMA:
                    made = compiler.compile_json_schema(text, strict_mode=False, max_whitespace_cnt=MAX_WHITESPACE)
                case GrammarKind.REGEX:
                    made = compiler.compile_regex(text)
                case GrammarKind.EBNF:
                    made = compiler.compile_grammar(text)
                case GrammarKind.CHOICE:
                    made = compiler.compile_grammar(choice_to_ebnf(json.loads(text)))
                case GrammarKind.STRUCTURAL_TAG:
                    made = compiler.compile_structural_tag(text)
        except (RuntimeError, ValueError, TypeError) as error:
            raise GrammarRefused(f"the {grammar.kind} is not valid: {_reason(error)}") from error
        return XCompiled(self._library, made, self._words)


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
    return text.split(".cc:", 1)[-1].partition(": ")[2][:300] if ".cc:" in text else text[:300]


def _library() -> Any:
    """The module. It imports transformers for the names of a few classes, which takes seconds: unless that is loaded
    already, an empty module stands in its place meanwhile."""
    if "xgrammar" in sys.modules or "transformers" in sys.modules:
        import xgrammar

        return xgrammar
    sys.modules["transformers"] = _Names("transformers")
    try:
        import xgrammar
    finally:
        del sys.modules["transformers"]
    return xgrammar


class _Names(ModuleType):
    """A module that has a class of every name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
