"""What a grammar backend is: it compiles a grammar once for a vocabulary, and makes a matcher for each request.

    compile(grammar) -> Compiled, immutable, shared by threads
    Compiled.matcher() -> Matcher, of one request and one thread: a fold over the request's output tokens

A mask is a row of bits, int32 [ceil(vocabulary / 32)]: bit t % 32 of word t // 32 says whether token t may come next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.step import Int32s


class GrammarRefused(ValueError):
    """A grammar cannot be used. The message says why, in words for the client."""


class NotCompiled(GrammarRefused):
    """It was not compiled this time, for a reason that is not its own: another try may go otherwise."""


class Words(NamedTuple):
    """A vocabulary as grammars see it."""

    entries: Sequence[bytes]
    """The bytes of each token; empty for those that are no text, which a grammar never allows."""
    end_ids: tuple[int, ...]
    """Tokens with which an output ends."""

    def fingerprint(self) -> str:
        """Tells vocabularies apart."""
        found = hashlib.sha256(repr(self.end_ids).encode())
        for entry in self.entries:
            found.update(len(entry).to_bytes(4, "little") + entry)
        return found.hexdigest()[:16]

    @property
    def mask_words(self) -> int:
        """int32 words of a mask."""
        return -(-len(self.entries) // 32)


def allow(bits: Int32s, tokens: Sequence[int] | Int32s) -> None:
    """Set the bits of `tokens` in a mask."""
    places, marks = _bits(tokens)
    np.bitwise_or.at(bits.view(np.uint32), places, marks)


def forbid(bits: Int32s, tokens: Sequence[int] | Int32s) -> None:
    """Clear the bits of `tokens` in a mask."""
    places, marks = _bits(tokens)
    np.bitwise_and.at(bits.view(np.uint32), places, ~marks)


def _bits(tokens: Sequence[int] | Int32s) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
    ids = np.asarray(tokens, np.intp)
    return ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32)


class Matcher(Protocol):
    """Where an output is in its grammar."""

    @property
    def terminated(self) -> bool:
        """An end token was accepted: nothing can follow."""

    def fill(self, bits: Int32s) -> None:
        """Write the mask of the next token, int32 [mask_words], contiguous. Not to be called once terminated."""

    def accept(self, token: int) -> bool:
        """The output goes on with this token. False, and nothing has changed, where the grammar refuses it."""

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens."""

    def fork(self) -> Matcher:
        """One that is where this one is, and goes its own way."""


def is_stuck(matcher: Matcher, words: Words) -> bool:
    """Whether nothing may come next, not even the end. Not to be asked once the matcher is terminated."""
    bits = np.full(words.mask_words, -1, np.int32)
    matcher.fill(bits)
    return not bits.any()


class Compiled(Protocol):
    """One grammar, ready for use."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, about."""

    def matcher(self) -> Matcher:
        """At the beginning of an output."""


class GrammarBackend(Protocol):
    """One library, or our own few lines, for one vocabulary."""

    name: str

    def compile(self, grammar: Grammar) -> Compiled:
        """Raises GrammarRefused."""
