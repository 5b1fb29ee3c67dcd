"""What a ghost must say, from the prompt alone: no pages, no arrays, one token after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.ghost.language import likeliest, logits_of

_MASK = (1 << 64) - 1


def mixed(word: int) -> int:
    """The finaliser of SplitMix64, of one word: `pawl.gpu.sampling.mixing.mix64` by other means."""
    word = (word + 0x9E3779B97F4A7C15) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


class Sequel:
    """A sequence of tokens, and what comes next."""

    def __init__(self, tokens: Iterable[int], salt: int = 0) -> None:
        """`salt`: of the weights that compute it."""
        self.entries: list[tuple[int, int]] = []
        """(tag, prefix) of each position, as a ghost stores them."""
        self._prefix = salt
        self._total = 0
        self._last = 0
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """One more token."""
        tag = (len(self.entries) + 1) << 32 | token
        self._prefix = (self._prefix + mixed(tag)) & _MASK
        self._total = (self._total + self._prefix) & _MASK
        self._last = token
        self.entries.append((tag, self._prefix))

    def likeliest(self) -> int:
        """The token that a greedy request gets now."""
        states = np.array([mixed(self._total)], np.uint64)
        return int(likeliest(states, np.array([self._last], np.int32))[0])

    def logits(self) -> NDArray[np.float32]:
        """float32 [VOCABULARY_SIZE], of the token that comes now."""
        states = np.array([mixed(self._total)], np.uint64)
        return logits_of(states, np.array([self._last], np.int32)).reshape(-1)


def expected(prompt: Sequence[int], count: int, salt: int = 0) -> list[int]:
    """The `count` tokens that a greedy request gets after `prompt`, end tokens ignored. `salt`: the sum of its weights'
    and its adapter's."""
    sequel = Sequel(prompt, salt & _MASK)
    output = []
    for _ in range(count):
        output.append(sequel.likeliest())
        sequel.push(output[-1])
    return output


def expected_pages(tokens: Sequence[int], page_size: int) -> NDArray[np.uint8]:
    """The bytes of the full pages of a sequence, uint8 [len(tokens) // page_size, page_bytes]."""
    count = len(tokens) // page_size
    entries = np.array(Sequel(tokens[: count * page_size]).entries, np.uint64)
    return entries.view(np.uint8).reshape(count, page_size * 16)
