"""Which replica a request is given to: policies, pure and seen from the router's own books.

round_robin        one after the other
shortest_queue     the one with the fewest open requests
total_tokens       the one whose open requests have the fewest tokens
prefix_affinity    the one that had the longest part of its prompt last, unless that one is much busier
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pawl.memory.arrays import Int32s

AFFINITY_BOUND = 8
"""Open requests that a replica may have more than the least busy one, and be chosen for a prefix all the same."""
MOST_PREFIXES = 1 << 16
"""Pages of prompts that are remembered; those that were met least lately are forgotten."""


class Load(NamedTuple):
    """What one replica has to do."""

    replica: int
    num_open: int
    """Requests that it was given and that have not ended."""
    num_tokens: int
    """Of these: prompts, and outputs so far."""


class Placement(Protocol):
    """A policy. It may keep what it needs of earlier requests."""

    def place(self, tokens: Int32s, namespace: str, loads: Sequence[Load]) -> int:
        """The replica for a request of these tokens, one of `loads`, which has at least one, in rising order of their
        numbers. Requests of other namespaces share no pages with it."""


class RoundRobin:
    """The next one after that of the request before."""

    def __init__(self, page_size: int, bound: int = AFFINITY_BOUND) -> None:
        self._last = -1

    def place(self, tokens: Int32s, namespace: str, loads: Sequence[Load]) -> int:
        later = (load.replica for load in loads if load.replica > self._last)
        self._last = next(later, loads[0].replica)
        return self._last


class ShortestQueue:
    """The fewest open requests; of several such, the fewest tokens."""

    def __init__(self, page_size: int, bound: int = AFFINITY_BOUND) -> None: ...

    def place(self, tokens: Int32s, namespace: str, loads: Sequence[Load]) -> int:
        return min(loads, key=lambda load: (load.num_open, load.num_tokens)).replica


class TotalTokens:
    """The fewest tokens; of several such, the fewest open requests."""

    def __init__(self, page_size: int, bound: int = AFFINITY_BOUND) -> None: ...

    def place(self, tokens: Int32s, namespace: str, loads: Sequence[Load]) -> int:
        return min(loads, key=lambda load: (load.num_tokens, load.num_open)).replica


class PrefixAffinity:
    """Where the longest part of the prompt, in whole pages, was seen last, unless that replica has more than `bound`
    open requests more than the least busy one; then, and where no page of it was seen, the shortest queue."""

    def __init__(self, page_size: int, bound: int = AFFINITY_BOUND) -> None:
        self._page_size = page_size
        self._bound = bound
        self._seen: OrderedDict[int, int] = OrderedDict()
        """Hash of a beginning of a prompt -> the replica that had it last; the one that was met last at the end."""
        self._otherwise = ShortestQueue(page_size)

    def place(self, tokens: Int32s, namespace: str, loads: Sequence[Load]) -> int:
        pages = self._hashes(tokens, namespace)
        by_replica = {load.replica: load for load in loads}
        chosen = self._otherwise.place(tokens, namespace, loads)
        most = min(load.num_open for load in loads) + self._bound
        for page in reversed(pages):
            known = by_replica.get(self._seen.get(page, -1))
            if known is not None:
                if known.num_open <= most:
                    chosen = known.replica
                break
        for page in pages:
            self._seen[page] = chosen
            self._seen.move_to_end(page)
        while len(self._seen) > MOST_PREFIXES:
            self._seen.popitem(last=False)
        return chosen

    def _hashes(self, tokens: Int32s, namespace: str) -> list[int]:
        """Of each whole page of a prompt, with all that stands before it."""
        size, data, found = self._page_size * tokens.itemsize, tokens.tobytes(), list[int]()
        last = hash(namespace)
        for end in range(size, len(data) + 1, size):
            last = hash((last, data[end - size : end]))
            found.append(last)
        return found


PLACEMENTS: Mapping[str, Callable[[int, int], Placement]] = {
    "round_robin": RoundRobin,
    "shortest_queue": ShortestQueue,
    "total_tokens": TotalTokens,
    "prefix_affinity": PrefixAffinity,
}
"""Name -> maker, given the tokens of a page, and the bound of `PrefixAffinity`."""
