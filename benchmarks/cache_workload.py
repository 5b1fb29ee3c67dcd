"""The work that prefix caches are measured by. Ours and a peer's adapter read it from here, so it is the same."""

from __future__ import annotations

import random
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int32s: TypeAlias = NDArray[np.int32]

PAGE = 64
PROMPT = 512
"""Tokens of a prompt."""
SHARED = 256
"""Tokens at its beginning that it shares with its group."""
GROUP = 100
"""Prompts in a group."""
NUM_PROMPTS = 10_000
REPETITIONS = 7

EVICT_SIZES = (1_000, 10_000, 100_000, 1_000_000)
"""Cached pages when eviction starts."""
EVICT_CALLS = 50
"""Evictions in one repetition, each of EVICT_TOKENS: little enough that the cache stays about as full as it was."""
EVICT_TOKENS = 512
_OWN_PAGES = (PROMPT - SHARED) // PAGE
_SHARED_PAGES = SHARED // PAGE


def prompts(count: int, seed: int = 0) -> Int32s:
    """int32 [count, PROMPT] in an order in which groups are mixed."""
    source = np.random.default_rng(seed)
    heads = source.integers(0, 50_000, (-(-count // GROUP), SHARED), dtype=np.int32)
    tails = source.integers(0, 50_000, (count, PROMPT - SHARED), dtype=np.int32)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return np.concatenate([heads[np.array(order) // GROUP], tails], axis=1)


def prompts_to_fill(pages: int) -> int:
    """How many prompts cache about so many pages: each has its own, and those of a group share some."""
    return round(pages * GROUP / (GROUP * _OWN_PAGES + _SHARED_PAGES))


def pages_to_hold(count: int) -> int:
    """Pages that `count` prompts fill, and room for one more prompt: eviction starts with next to nothing free."""
    return count * _OWN_PAGES + -(-count // GROUP) * _SHARED_PAGES + PROMPT // PAGE


def evict_repetitions(pages: int) -> int:
    """Filling a large cache takes long, so it is done less often."""
    return REPETITIONS if pages <= 100_000 else 3
