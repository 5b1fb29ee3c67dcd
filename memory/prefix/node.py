"""The nodes of a radix tree, and what an eviction policy knows about each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pawl.memory.arrays import NO_PAGES, Int32s

NO_PRIORITY = -(1 << 63)
"""Below the priority of every request."""


class Rank:
    """What decides when a node leaves. Times are readings of a counter that every use moves on, never of a clock."""

    __slots__ = ("created", "entry", "hits", "priority", "used")

    def __init__(self, created: int) -> None:
        self.created = created
        self.used = created
        """When its last holder let go of it."""
        self.hits = 0
        """Requests that have used it: found it or made it, and went on."""
        self.priority = NO_PRIORITY
        """The largest priority of those requests."""
        self.entry = 0
        """Number of the entry with which it waits to leave; 0 while it may not."""


NO_RANK = Rank(0)
"""For nodes of an order that needs none."""


class Node:
    """An edge of the tree and what hangs below it: `key` are the token ids of `pages`, as the bytes of int32."""

    __slots__ = ("children", "fence", "holds", "key", "newer", "older", "pages", "parent", "rank")

    def __init__(self, parent: Node | None, key: bytes, pages: Int32s) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.children: dict[bytes, Node] = {}
        """Child nodes by the bytes of the first page of their key."""
        self.holds = 0
        """Own holders plus children that are held."""
        self.fence = 0
        """Newest step that may still touch the pages, as far as holders of this very node and of evicted
        children have said. Children leave first, so this is complete by the time the node is a victim."""
        self.older: Node = self
        self.newer: Node = self
        self.rank = NO_RANK


class Root(Node):
    """Top of one namespace. It has no pages, and counts as held once more than its children make it.

    So a walk upwards that stops at the first node whose count does not change between 0 and 1 always stops here.
    """

    __slots__ = ("namespace",)

    def __init__(self, namespace: str) -> None:
        super().__init__(None, b"", NO_PAGES)
        self.namespace = namespace
        self.holds = 1


def path(node: Node | None) -> Iterator[Node]:
    """`node` and what is above it, but not the root; nothing for None."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent


def path_pages(node: Node | None) -> Int32s:
    """Pages from the root down to `node`, int32 [n], read-only."""
    parts: list[Int32s] = []
    while node is not None:
        if len(node.pages):
            parts.append(node.pages)
        node = node.parent
    if not parts:
        return NO_PAGES
    if len(parts) == 1:
        return parts[0]
    parts.reverse()
    pages: Int32s = np.concatenate(parts)
    pages.flags.writeable = False
    return pages


def common_pages(data: bytes, at: int, key: bytes, width: int) -> int:
    """Leading pages that `data` from `at` on and `key` share; the first is known to be equal.

    Compares spans that halve, so what is read in all is proportional to the shorter of the two.
    """
    equal, limit = 1, min(len(key), len(data) - at) // width
    span = limit - equal
    while equal < limit:
        low, high = equal * width, (equal + span) * width
        if data[at + low : at + high] == key[low:high]:
            equal += span
            span = limit - equal
        elif span == 1:
            break
        else:
            limit = equal + span
            span //= 2
    return equal
