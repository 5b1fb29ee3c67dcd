"""The work that prefix caches are measured by. Ours and a peer's adapter drive it, so it is the same for all.

A cache is filled to a size and keeps it. Requests find all of what they ask for, or half of it; what comes in is made
up for by what is evicted:

    find    LOOKUPS prompts out of the whole cache:  match and hold  ─  release  ─  one page: match, hold, release
    turn    BATCH new prompts, half of each known:   match and insert  ─  evict as many pages as came in
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import quiet

Int32s: TypeAlias = NDArray[np.int32]

PAGE = 64
PROMPT = 512
"""Tokens of a prompt."""
SHARED = 256
"""Tokens at its beginning that it shares with its group."""
GROUP = 100
"""Prompts in a group."""
SIZES = (1_000, 10_000, 100_000, 1_000_000)
"""Cached pages."""
LOOKUPS = 1_000
"""Prompts found in one repetition, in random order."""
BATCH = 48
"""New prompts in one batch: few enough that a cache of a thousand pages stays about as full as it was."""
BATCHES = 4
"""Batches in one repetition."""
REPETITIONS = 7
EVICT_TOKENS = 512
OWN_PAGES = (PROMPT - SHARED) // PAGE
SHARED_PAGES = SHARED // PAGE
EVICTIONS = BATCH * OWN_PAGES * PAGE // EVICT_TOKENS
"""Evictions after each batch, of EVICT_TOKENS each: as much as came in."""

MATCH_INSERT = "match + insert, 512 tokens, half shared"
MATCH = "match and hold, full hit of 512 tokens"
RELEASE = "release"
ONE_PAGE = "match, hold and release one page"
EVICT = "evict 512 tokens, cache alone"
EVICT_ALL = "evict 512 tokens, cache and pool"
OPERATIONS = (MATCH_INSERT, MATCH, RELEASE, ONE_PAGE, EVICT, EVICT_ALL)


class Prompts:
    """Prompts in groups: int32 [PROMPT] each, the first SHARED tokens being those of its group."""

    def __init__(self, pages: int) -> None:
        self._source = np.random.default_rng(0)
        count = prompts_to_fill(pages)
        self._heads = self._tokens((-(-count // GROUP), SHARED))
        self._tails = self._tokens((count, PROMPT - SHARED))
        self._groups = np.arange(count) // GROUP
        random.Random(0).shuffle(order := list(range(count)))
        self._groups = self._groups[order]

    def __len__(self) -> int:
        return len(self._tails)

    def __getitem__(self, index: int) -> Int32s:
        """One of those that fill the cache; groups are mixed."""
        return np.concatenate((self._heads[self._groups[index]], self._tails[index]))

    def fill(self) -> Iterator[Int32s]:
        """All that fill the cache."""
        return (self[index] for index in range(len(self)))

    def known(self) -> list[Int32s]:
        """LOOKUPS prompts out of those that fill the cache."""
        return [self[int(index)] for index in self._source.integers(0, len(self), LOOKUPS)]

    def fresh(self) -> list[Int32s]:
        """BATCH prompts of known groups that were never seen."""
        groups = self._source.integers(0, len(self._heads), BATCH)
        tails = self._tokens((BATCH, PROMPT - SHARED))
        return [np.concatenate((self._heads[group], tail)) for group, tail in zip(groups, tails, strict=True)]

    def _tokens(self, shape: tuple[int, int]) -> Int32s:
        return self._source.integers(0, 50_000, shape, dtype=np.int32)


class Driver(Protocol):
    """A cache, filled, and its allocator. Each method does its work once and returns seconds an operation."""

    def find(self, prompts: Sequence[Int32s]) -> dict[str, float]:
        """MATCH and RELEASE, and ONE_PAGE."""

    def turn(self, prompts: Sequence[Int32s]) -> dict[str, float]:
        """MATCH_INSERT, then EVICTIONS evictions: EVICT or EVICT_ALL, or half of them each."""


def measure(makers: Mapping[str, Callable[[Prompts, int], Driver]], pages: int) -> dict[str, dict[str, list[float]]]:
    """For each cache, microseconds of each operation with about so many pages cached, a value for each repetition.

    A maker fills a cache with prompts and gives it room for as many pages and one batch more. The caches take turns,
    so that a neighbour's burst of work does not fall on one of them. The collector is off all along.
    """
    prompts = Prompts(pages)
    values: dict[str, dict[str, list[float]]] = {key: {} for key in makers}
    with quiet():
        drivers = {key: make(prompts, pages_to_hold(len(prompts))) for key, make in makers.items()}
        for repetition in range(REPETITIONS + 1):
            known = prompts.known()
            for key, driver in drivers.items():
                _note(values[key], driver.find(known), repetition)
        # Only now: what comes in drives out what the others look for.
        for repetition in range(REPETITIONS + 1):
            batches = [prompts.fresh() for _ in range(BATCHES)]
            for key, driver in drivers.items():
                turns = [driver.turn(batch) for batch in batches]
                means = {name: sum(turn[name] for turn in turns) / BATCHES for name in turns[0]}
                _note(values[key], means, repetition)
    return values


def _note(values: dict[str, list[float]], seconds: Mapping[str, float], repetition: int) -> None:
    if repetition:  # The first one warms up.
        for name, value in seconds.items():
            values.setdefault(name, []).append(value * 1e6)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of this thread in one call of `work`: what others run on this machine is not in it."""
    start = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - start) / 1e9


def prompts_to_fill(pages: int) -> int:
    """How many prompts cache about so many pages: each has its own, and those of a group share some."""
    return round(pages * GROUP / (GROUP * OWN_PAGES + SHARED_PAGES))


def pages_to_hold(count: int) -> int:
    """Pages that `count` prompts fill, and room for a batch with a page for every token: next to nothing is free."""
    return count * OWN_PAGES + -(-count // GROUP) * SHARED_PAGES + BATCH * PROMPT // PAGE


def each(work: Callable[[Any], object], items: Sequence[Any]) -> Callable[[], None]:
    """A loop over `items`, to be timed."""

    def loop() -> None:
        for item in items:
            work(item)

    return loop
