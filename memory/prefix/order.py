"""Eviction policies: in which order nodes of a radix tree leave. A victim is always a leaf that nobody holds.

    lru        the one that was let go of longest ago
    mru        the one that was let go of last
    lfu        the one that the fewest requests have used; among equals as lru
    fifo       the one that was made first
    filo       the one that was made last
    priority   the one whose users had the lowest priority, at best; among equals as lru

A node is used while it is held, so its use ends when the last holder lets go. Whoever halves a node makes two of the
same age, use and priority. `lru` is an intrusive ring, every operation O(1); the others share a heap of the leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Protocol, TypeAlias

from pawl.memory.arrays import NO_PAGES
from pawl.memory.prefix.node import Node, Rank
from pawl.memory.violation import MemoryViolation

Key: TypeAlias = int | tuple[int, int]
_SPARE_ENTRIES = 64
"""Stale entries that are not worth a compaction."""


class Order(Protocol):
    """What a tree tells its policy, and asks it."""

    counts_uses: bool
    """Whether `use` wants to be called at all: it costs a walk over the nodes of each prefix that is found."""

    def created(self, node: Node) -> None:
        """A new leaf, about to be held."""

    def split(self, upper: Node, lower: Node) -> None:
        """`upper` was cut off `lower`. Mostly it is about to be held."""

    def use(self, node: Node, priority: int) -> None:
        """One more request, of this priority, uses the node. It is held."""

    def unuse(self, node: Node) -> None:
        """A use came to nothing, such as that of a request that did not fit. It is held."""

    def push(self, node: Node) -> None:
        """Nobody holds the node any more. Children are pushed before their parents."""

    def remove(self, node: Node) -> None:
        """The node is held now; it may not have been waiting at all."""

    def dropped(self, victim: Node) -> None:
        """The victim has left the tree; its parent may be a leaf now."""

    @property
    def victim(self) -> Node | None:
        """Who leaves next; None when nothing may leave."""

    def check(self, unheld: Collection[Node]) -> None:
        """Raise MemoryViolation unless exactly what may leave waits to leave, in order. O(size)."""


class RecencyOrder:
    """Unheld nodes, least recently used first: an intrusive ring.

    Whoever lets go of a node pushes it before its parent. A node is pushed again only after it was removed, together
    with its parents, so a child always stands before its parent and the oldest node never has a child. This is the
    least-recently-used order without a timestamp, a heap or a search.
    """

    __slots__ = ("_ring",)

    counts_uses = False

    def __init__(self) -> None:
        self._ring = Node(None, b"", NO_PAGES)

    def __iter__(self) -> Iterator[Node]:
        node = self._ring.newer
        while node is not self._ring:
            yield node
            node = node.newer

    @property
    def victim(self) -> Node | None:
        """The oldest."""
        node = self._ring.newer
        return None if node is self._ring else node

    def created(self, node: Node) -> None:
        """Nothing to note: it is not let go of yet."""

    def split(self, upper: Node, lower: Node) -> None:
        """The upper half was used just now."""
        if not upper.holds:
            self.push(upper)

    def use(self, node: Node, priority: int) -> None:
        """Uses do not count here, only their end."""

    def unuse(self, node: Node) -> None:
        """Nothing was counted."""

    def push(self, node: Node) -> None:
        """`node` was used just now."""
        newest, ring = self._ring.older, self._ring
        node.older = newest
        node.newer = ring
        newest.newer = node
        ring.older = node

    def remove(self, node: Node) -> None:
        """`node` may not leave any more, or has left."""
        node.older.newer = node.newer
        node.newer.older = node.older
        node.older = node.newer = node

    dropped = remove

    def check(self, unheld: Collection[Node]) -> None:
        """Exactly the unheld nodes wait to leave, each before its parent."""
        left: set[Node] = set()
        for node in self:
            if node.holds:
                raise MemoryViolation("a held node is never evicted", holds=node.holds, pages=node.pages)
            if node in left or node.newer.older is not node or node.older.newer is not node:
                raise MemoryViolation("the order of leaving is a ring", pages=node.pages)
            if node.children and not left.issuperset(node.children.values()):
                raise MemoryViolation("children leave before their parent", pages=node.pages)
            left.add(node)
        _check_all_wait(len(left), len(unheld))


class RankedOrder:
    """Unheld leaves, smallest key first: a heap that is cleaned when somebody looks at it.

    A key never changes while its node waits, as ranks change only while nodes are held. A node that is held again
    leaves its entry behind, which is stale from then on; entries are at most twice the leaves that wait and a few, so
    every operation is O(log leaves), amortised. A ring cannot do this: a node that was made early and is let go of
    again belongs into the middle of its policy's order.
    """

    __slots__ = ("_clock", "_heap", "_key", "_waiting", "counts_uses")

    def __init__(self, key: Callable[[Rank], Key], counts_uses: bool) -> None:
        self.counts_uses = counts_uses
        self._key = key
        self._heap: list[tuple[Key, int, Node]] = []
        self._clock = 0
        self._waiting = 0
        """Entries that are not stale."""

    @property
    def victim(self) -> Node | None:
        """The leaf with the smallest key."""
        heap = self._heap
        while heap:
            _, entry, node = heap[0]
            if node.rank.entry == entry:
                return node
            heappop(heap)
        return None

    def created(self, node: Node) -> None:
        """It is as old as its first use."""
        self._clock += 1
        node.rank = Rank(self._clock)

    def split(self, upper: Node, lower: Node) -> None:
        """The new half inherits all of it."""
        rank = upper.rank = Rank(lower.rank.created)
        rank.used, rank.hits, rank.priority = lower.rank.used, lower.rank.hits, lower.rank.priority

    def use(self, node: Node, priority: int) -> None:
        """Count it."""
        rank = node.rank
        rank.hits += 1
        if priority > rank.priority:
            rank.priority = priority

    def unuse(self, node: Node) -> None:
        """Do not count it. The priority stays: whoever wanted the node may want it again."""
        node.rank.hits -= 1

    def push(self, node: Node) -> None:
        """Its use ended just now; as long as it has children, these leave first."""
        self._clock += 1
        node.rank.used = self._clock
        if not node.children:
            self._offer(node)

    def remove(self, node: Node) -> None:
        """Its entry, if it has one, is stale."""
        if node.rank.entry:
            node.rank.entry = 0
            self._waiting -= 1
            if len(self._heap) > 2 * self._waiting + _SPARE_ENTRIES:
                self._heap = [entry for entry in self._heap if entry[2].rank.entry == entry[1]]
                heapify(self._heap)

    def dropped(self, victim: Node) -> None:
        """The last child of an unheld parent makes way for it."""
        self.remove(victim)
        parent = victim.parent
        if parent is not None and not parent.children and not parent.holds:
            self._offer(parent)

    def _offer(self, node: Node) -> None:
        self._clock += 1
        node.rank.entry = self._clock
        heappush(self._heap, (self._key(node.rank), self._clock, node))
        self._waiting += 1

    def check(self, unheld: Collection[Node]) -> None:
        """Exactly the unheld leaves wait to leave, under their present keys, and stale entries are few."""
        waiting = 0
        for key, entry, node in self._heap:
            if node.rank.entry != entry:
                continue
            waiting += 1
            if node.holds:
                raise MemoryViolation("a held node is never evicted", holds=node.holds, pages=node.pages)
            if node.children:
                raise MemoryViolation("children leave before their parent", pages=node.pages)
            if node not in unheld or self._key(node.rank) != key:
                raise MemoryViolation("a node waits in the place of its rank", key=key, pages=node.pages)
        leaves = sum(1 for node in unheld if not node.children)
        _check_all_wait(waiting, leaves)
        if waiting != self._waiting or len(self._heap) > 2 * self._waiting + _SPARE_ENTRIES:
            raise MemoryViolation("stale entries are few", entries=len(self._heap), waiting=self._waiting)


def _check_all_wait(waiting: int, expected: int) -> None:
    if waiting != expected:
        raise MemoryViolation("every unheld node waits to leave", waiting=waiting, unheld=expected)


def _least_frequent(rank: Rank) -> Key:
    return rank.hits, rank.used


def _first_in(rank: Rank) -> Key:
    return rank.created


def _most_recent(rank: Rank) -> Key:
    return -rank.used


def _last_in(rank: Rank) -> Key:
    return -rank.created


def _lowest_priority(rank: Rank) -> Key:
    return rank.priority, rank.used


POLICIES: Mapping[str, Callable[[], Order]] = {
    "lru": RecencyOrder,
    "lfu": partial(RankedOrder, _least_frequent, counts_uses=True),
    "fifo": partial(RankedOrder, _first_in, counts_uses=False),
    "mru": partial(RankedOrder, _most_recent, counts_uses=False),
    "filo": partial(RankedOrder, _last_in, counts_uses=False),
    "priority": partial(RankedOrder, _lowest_priority, counts_uses=True),
}
"""Name on the command line -> an empty order."""


def make_order(eviction: str) -> Order:
    """The order called `eviction`, empty. Raises ValueError for an unknown name."""
    if eviction not in POLICIES:
        raise ValueError(f"unknown eviction policy {eviction!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[eviction]()
