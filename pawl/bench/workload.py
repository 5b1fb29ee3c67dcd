"""Prompts to measure with: reproducible, of exact length, with or without a common beginning."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

LOWEST_TOKEN = 256
"""Ids below it are often special tokens or single bytes, in every vocabulary that is common today."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of an engine; the same values make the same prompts."""

    num_prompts: int
    input_length: int
    """Tokens of each prompt, the common beginning included."""
    output_length: int
    """Output tokens of each request; the end-of-sequence token is ignored."""
    shared_prefix: int = 0
    """Tokens that all prompts begin with."""
    seed: int = 0

    def token_prompts(self, vocabulary_size: int) -> list[list[int]]:
        """One list of token ids for each request, drawn evenly from the vocabulary without its lowest ids."""
        generator = random.Random(self.seed)
        lowest = min(LOWEST_TOKEN, vocabulary_size // 2)

        def draw(count: int) -> list[int]:
            return [generator.randrange(lowest, vocabulary_size) for _ in range(count)]

        prefix = draw(self.shared_prefix)
        return [prefix + draw(self.input_length - self.shared_prefix) for _ in range(self.num_prompts)]

    def arrivals(self, rate: float) -> Iterator[float]:
        """Seconds from the start at which requests are sent: a Poisson process of `rate` requests a second."""
        generator = random.Random(self.seed + 1)
        moment = 0.0
        for _ in range(self.num_prompts):
            yield moment
            moment += generator.expovariate(rate)
