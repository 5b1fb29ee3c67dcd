"""The parts of a radix tree: its nodes, and the order in which they may leave."""

from __future__ import annotations

from collections.abc import Iterator

from memory.pages import Int32s


class Node:
    """An edge of the tree and what hangs below it: `key` are the token ids of `pages`, as the bytes of int32."""

    __slots__ = ("children", "fence", "holds", "key", "newer", "older", "pages", "parent")

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


class Root(Node):
    """Top of one namespace. It has no pages, and counts as held once more than its children make it.

    So a walk upwards that stops at the first node whose count does not change between 0 and 1 always stops here.
    """

    __slots__ = ("namespace",)

    def __init__(self, namespace: str, no_pages: Int32s) -> None:
        super().__init__(None, b"", no_pages)
        self.namespace = namespace
        self.holds = 1


class RecencyOrder:
    """Unheld nodes, least recently used first: an intrusive ring, every operation O(1).

    Whoever lets go of a node pushes it before its parent. A node is pushed again only after it was removed, together
    with its parents, so a child always stands before its parent and the oldest node never has a child. This is the
    least-recently-used order without a timestamp, a heap or a search.
    """

    __slots__ = ("_ring",)

    def __init__(self, no_pages: Int32s) -> None:
        self._ring = Node(None, b"", no_pages)

    def __iter__(self) -> Iterator[Node]:
        node = self._ring.newer
        while node is not self._ring:
            yield node
            node = node.newer

    @property
    def oldest(self) -> Node | None:
        """The next victim; None when nothing may leave."""
        node = self._ring.newer
        return None if node is self._ring else node

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
