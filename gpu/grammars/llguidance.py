"""The backend `llguidance` (guidance-ai): nothing is computed ahead, and almost all it does has limits of its own."""

from __future__ import annotations

import json
from typing import Any

import llguidance

from pawl.gpu.grammars.base import Compiled, GrammarRefused, Matcher, Words, allow
from pawl.gpu.grammars.compiling import SECONDS, TriedOut
from pawl.gpu.grammars.json_schema import prepared, prepared_tag
from pawl.gpu.grammars.lowering import MAX_WHITESPACE, choice_to_lark, ebnf_to_lark, tag_to_lark
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.step import Int32s

_BASE_BYTES = 1 << 16
"""About what a matcher takes before it has followed any output."""
_JSON: Any = {
    "coerce_one_of": True,
    "whitespace_flexible": True,
    "whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{MAX_WHITESPACE}}}",
}
_NOT_TEXT = b"\xff"
"""No text begins so; the library takes such tokens for special ones."""


class LLGuidance(TriedOut):
    """`GrammarBackend`."""

    name = "llguidance"

    def __init__(self, words: Words, seconds: int = SECONDS) -> None:
        super().__init__(Library, words, seconds)


class Library:
    """The library with one vocabulary."""

    second: None = None

    def __init__(self, words: Words) -> None:
        self._words = words
        wrapper: Any = llguidance.TokenizerWrapper(_Tokens(words))
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=len(words.entries), eos_token=list(words.end_ids))
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def compile(self, grammar: Grammar) -> Compiled:
        """See `GrammarBackend.compile`."""
        try:
            lowered = _lowered(grammar)
        except GrammarRefused:
            raise
        except ValueError as error:
            raise GrammarRefused(f"the {grammar.kind} is not valid: {error!s:.300}") from error
        first = llguidance.LLMatcher(self._tokenizer, lowered, log_level=0, limits=self._limits)
        if first.is_error():
            reason = first.get_error().strip().splitlines()[0]
            raise GrammarRefused(f"the {grammar.kind} is not valid: {reason[:300]}")
        return LLCompiled(first, len(lowered), self._words)


class LLCompiled:
    """`Compiled`: a matcher that stays at the beginning."""

    def __init__(self, first: llguidance.LLMatcher, length: int, words: Words) -> None:
        self._first = first
        self._words = words
        self.num_bytes = _BASE_BYTES + 100 * length

    def matcher(self) -> Matcher:
        return LLMatcher(self._first.deep_copy(), self._words, ended=False)


class LLMatcher:
    """`Matcher`."""

    def __init__(self, matcher: llguidance.LLMatcher, words: Words, *, ended: bool) -> None:
        self._matcher = matcher
        self._words = words
        self._ended = ended

    @property
    def terminated(self) -> bool:
        return self._ended

    def fill(self, bits: Int32s) -> None:
        if not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        # Where nothing fits the library has stopped just now, and says that the end would.
        if self._matcher.is_stopped():
            bits[:] = 0
            if self._matcher.is_accepting():
                allow(bits, self._words.end_ids)

    def accept(self, token: int) -> bool:
        if self._ended:
            return False
        if token in self._words.end_ids:
            # At its end the library has stopped and takes no token any more.
            self._ended = self._matcher.is_accepting()
            return self._ended
        # A token that is refused would leave the library's matcher in an error for good.
        return self._matcher.validate_tokens([token]) == 1 and self._matcher.consume_token(token)

    def rollback(self, count: int) -> None:
        text = count - 1 if self._ended and count else count
        self._ended = False if count else self._ended
        self._matcher.rollback(text)

    def fork(self) -> Matcher:
        return LLMatcher(self._matcher.deep_copy(), self._words, ended=self._ended)


def _lowered(grammar: Grammar) -> str:
    """The grammar in the library's own form. Raises ValueError."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return llguidance.LLMatcher.grammar_from_json_schema(prepared(grammar.text, merges=True), overrides=_JSON)
        case GrammarKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.EBNF:
            return llguidance.LLMatcher.grammar_from_lark(ebnf_to_lark(grammar.text))
        case GrammarKind.CHOICE:
            return llguidance.LLMatcher.grammar_from_lark(choice_to_lark(json.loads(grammar.text)))
        case GrammarKind.STRUCTURAL_TAG:
            return llguidance.LLMatcher.grammar_from_lark(
                tag_to_lark(prepared_tag(json.loads(grammar.text), merges=True))
            )


class _Tokens:
    """The vocabulary as the library asks for it."""

    bos_token_id = None

    def __init__(self, words: Words) -> None:
        self.eos_token_id = words.end_ids[0]
        self.special_token_ids = [token for token, entry in enumerate(words.entries) if not entry]
        self.tokens = [entry or _NOT_TEXT + b"<%d>" % token for token, entry in enumerate(words.entries)]
        self._ids = {entry: token for token, entry in enumerate(words.entries) if entry}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """Longest tokens first: any way to cut a text that must come will do."""
        found, at = [], 0
        while at < len(text):
            longest = min(self._longest, len(text) - at)
            length = next((n for n in range(longest, 0, -1) if text[at : at + n] in self._ids), 0)
            if not length:
                break
            found.append(self._ids[text[at : at + length]])
            at += length
        return found
