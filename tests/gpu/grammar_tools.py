"""Backends, vocabularies and random outputs for tests of grammars."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np

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


def allowed(matcher: object, words: Words) -> list[int]:
    """Tokens that may come next."""
    bits = np.full(words.mask_words, -1, np.int32)
    matcher.fill(bits)  # type: ignore[attr-defined]
    return [int(token) for token in np.flatnonzero(unpacked(bits[None], len(words.entries))[0])]


def random_output(compiled: Compiled, words: Words, seed: int) -> list[int] | None:
    """Tokens of a whole output, the end left out; None where it did not end in time. Printable ones, and those that
    close something, are preferred."""
    source, matcher, output = random.Random(seed), compiled.matcher(), list[int]()
    while len(output) < LONGEST:
        options = allowed(matcher, words)
        assert options, f"nothing can follow {output}"
        closing = [token for token in options if token in words.end_ids or words.entries[token] in _CLOSING]
        plain = [token for token in options if words.entries[token].isascii() and words.entries[token].isalnum()]
        eager = 0.3 if len(output) < 60 else 0.9
        if closing and source.random() < eager:
            options = closing
        elif plain and source.random() < 0.9:
            options = plain
        token = source.choice(options)
        assert matcher.accept(token)
        if matcher.terminated:
            return output
        output.append(token)
    return None


_CLOSING = frozenset(bytes([byte]) for byte in CLOSERS)


def text_of(tokens: list[int], words: Words) -> str:
    """As a client is told it: bytes that are no UTF-8 become U+FFFD."""
    return b"".join(words.entries[token] for token in tokens).decode("utf-8", "replace")


def accepts(compiled: Compiled, words: Words, tokens: list[int]) -> bool:
    """Whether these tokens and then the end are an output."""
    matcher = compiled.matcher()
    return all(map(matcher.accept, tokens)) and matcher.accept(words.end_ids[0])
