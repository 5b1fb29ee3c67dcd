"""In which order waiting requests are offered to admission. Pure functions of what is waiting and what is cached."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from pawl.lifecycle.requests import RequestTable
from pawl.memory.arrays import Int32s

MAX_MATCHED = 128
"""Beyond this many waiting requests, policies that look into the cache fall back to arrival order: looking up every
prompt would cost more than the better order saves (the bound SGLang uses)."""


class Waiting(Protocol):
    """What a policy may look at."""

    table: RequestTable

    def cached_pages(self, row: int) -> Int32s:
        """Pages the prefix cache has for this request now, in order."""


class Policy(Protocol):
    """Orders the rows that wait; `rows` come in arrival order. Must return a permutation of them.

    A policy may state `max_overtaken`: how many requests that came later, of equal priority, may be admitted before one
    that waits; None: any number. Simulated runs hold it to that, and one that states nothing to a small number.
    """

    name: str

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]: ...


class PolicyFailed(Exception):
    """A policy raised when it was asked for the order of `rows`; what it raised is the cause."""

    def __init__(self, policy: str, rows: Sequence[int]) -> None:
        super().__init__(f"the order of admission {policy} failed")
        self.rows = rows


class FirstComeFirstServed:
    """Arrival order."""

    name = "fcfs"

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        return rows


class LongestPrefixMatch:
    """The request with most cached tokens first (SGLang's default, Zheng et al. 2024)."""

    name = "lpm"
    max_overtaken: int | None = None

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        if len(rows) > MAX_MATCHED:
            return rows
        return sorted(rows, key=lambda row: -len(waiting.cached_pages(row)))


class DepthFirstWeight:
    """Walk the prefix tree depth first, subtrees with more waiting requests first: neighbours in the tree run
    together while their prefix is hot. A page stands in one place of the tree, so page ids are the path."""

    name = "dfs-weight"
    max_overtaken: int | None = None

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        if len(rows) > MAX_MATCHED:
            return rows
        paths = {row: waiting.cached_pages(row).tolist() for row in rows}
        weight: dict[int, int] = {}
        for path in paths.values():
            for page in path:
                weight[page] = weight.get(page, 0) + 1
        return sorted(rows, key=lambda row: [(-weight[page], page) for page in paths[row]])


class LongestOutputFirst:
    """The request that may produce most tokens first: long tails start early."""

    name = "lof"
    max_overtaken: int | None = None

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        table = waiting.table
        return sorted(rows, key=lambda row: -int(table.max_tokens[row] - table.num_prompt[row]))


class HighestPriority:
    """Larger `priority` first; arrival order among equals."""

    name = "priority"

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        priority = waiting.table.priority
        return sorted(rows, key=lambda row: -int(priority[row]))


class Shuffled:
    """A new random order each time, from a seed."""

    name = "random"
    max_overtaken: int | None = None

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        shuffled = list(rows)
        self._random.shuffle(shuffled)
        return shuffled


POLICIES: dict[str, Callable[[int], Policy]] = {
    "fcfs": lambda seed: FirstComeFirstServed(),
    "lpm": lambda seed: LongestPrefixMatch(),
    "dfs-weight": lambda seed: DepthFirstWeight(),
    "lof": lambda seed: LongestOutputFirst(),
    "priority": lambda seed: HighestPriority(),
    "random": Shuffled,
}
"""Name on the command line -> maker, given the engine's seed."""
