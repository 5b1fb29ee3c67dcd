"""Backends, vocabularies and random outputs for tests of grammars."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.build.grammars import words_of
from pawl.gpu.grammars.base import Compiled, GrammarBackend, Words
from pawl.gpu.grammars.rows import unpacked
from pawl.gpu.grammars.select import choose_backend

CLOSERS = b'"}]'
LONGEST = 400


@lru_cache(maxsize=1)
def ghost_words() -> Words:
    words = words_of(ghost_vocabulary())
    assert words is not None
    return words


@lru_cache(maxsize=4)
def backend(name: str) -> GrammarBackend:
    """Of the ghost's vocabulary."""
    return choose_backend(name)[1](ghost_words())


def allowed(matcher: object, words: Words) -> NDArray[np.int64]:
    """Tokens that may come next, rising."""
    bits = np.full(words.mask_words, -1, np.int32)
    matcher.fill(bits)  # type: ignore[attr-defined]
    return np.flatnonzero(unpacked(bits[None], len(words.entries))[0])


class _Same:
    """A vocabulary that equals itself alone."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def __hash__(self) -> int:
        return id(self.words.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.words.entries is other.words.entries


@lru_cache(maxsize=4)
def _preferred(vocabulary: _Same) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each token: whether it closes something or ends the output; whether it is letters and digits."""
    words = vocabulary.words
    closing = np.array([len(entry) == 1 and entry in CLOSERS for entry in words.entries])
    closing[list(words.end_ids)] = True
    return closing, np.array([entry.isascii() and entry.isalnum() for entry in words.entries])


def random_output(compiled: Compiled, words: Words, seed: int) -> list[int] | None:
    """Tokens of a whole output, the end left out; None where it did not end in time. Printable ones, and those that
    close something, are preferred."""
    source, matcher, output = random.Random(seed), compiled.matcher(), list[int]()
    is_closing, is_plain = _preferred(_Same(words))
    while len(output) < LONGEST:
        options = allowed(matcher, words)
        assert len(options), f"nothing can follow {output}"
        closing, plain = options[is_closing[options]], options[is_plain[options]]
        eager = 0.3 if len(output) < 60 else 0.9
        if len(closing) and source.random() < eager:
            options = closing
        elif len(plain) and source.random() < 0.9:
            options = plain
        token = int(source.choice(options))
        assert matcher.accept(token)
        if matcher.terminated:
            return output
        output.append(token)
    return None


def text_of(tokens: list[int], words: Words) -> str:
    """As a client is told it: bytes that are no UTF-8 become U+FFFD."""
    return b"".join(words.entries[token] for token in tokens).decode("utf-8", "replace")


def accepts(compiled: Compiled, words: Words, tokens: list[int]) -> bool:
    """Whether these tokens and then the end are an output."""
    matcher = compiled.matcher()
    return all(map(matcher.accept, tokens)) and matcher.accept(words.end_ids[0])
