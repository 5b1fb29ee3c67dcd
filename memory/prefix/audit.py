"""The laws of a radix tree, checked node by node, and its content as text. Not on the hot path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from memory.pages import MemoryViolation
from memory.prefix.node import Node, RecencyOrder, Root

_SHOWN_TOKENS = 8


def walk(roots: Mapping[str, Root]) -> Iterator[Node]:
    """Every node but the roots, parents first. Iterative: a long conversation is a deep tree."""
    waiting = [child for root in roots.values() for child in root.children.values()]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.children.values())


def own_holders(node: Node) -> int:
    """Holders of this very place, those of its children left out."""
    return node.holds - sum(1 for child in node.children.values() if child.holds)


def check_tree(roots: Mapping[str, Root], order: RecencyOrder, page_bytes: int) -> None:
    """Raise MemoryViolation at the first law that does not hold. O(size)."""
    for namespace, root in roots.items():
        if root.namespace != namespace or not root.children:
            raise MemoryViolation("a namespace has a tree", namespace=namespace)
        if own_holders(root) != 1:
            raise MemoryViolation("a root counts as held once", namespace=namespace, holds=root.holds)
        for first, child in root.children.items():
            _check_edge(root, first, child, page_bytes)
    seen: set[int] = set()
    unheld = 0
    for node in walk(roots):
        for first, child in node.children.items():
            _check_edge(node, first, child, page_bytes)
        if own_holders(node) < 0:
            raise MemoryViolation(
                "holds = own holders + held children", holds=node.holds, pages=node.pages, children=len(node.children)
            )
        unheld += not node.holds
        before = len(seen)
        seen.update(node.pages.tolist())
        if len(seen) != before + len(node.pages):
            raise MemoryViolation("a page is cached in one place", pages=node.pages)
    _check_order(order, unheld)


def _check_edge(parent: Node, first: bytes, child: Node, page_bytes: int) -> None:
    if child.parent is not parent or child.key[:page_bytes] != first:
        raise MemoryViolation("a child is found by its first page, and knows its parent", pages=child.pages)
    if not child.key or len(child.key) != len(child.pages) * page_bytes:
        raise MemoryViolation("an edge holds whole pages", key_bytes=len(child.key), num_pages=len(child.pages))


def _check_order(order: RecencyOrder, unheld: int) -> None:
    """Exactly the unheld nodes wait to leave, each before its parent."""
    left: set[Node] = set()
    for node in order:
        if node.holds:
            raise MemoryViolation("a held node is never evicted", holds=node.holds, pages=node.pages)
        if node in left or node.newer.older is not node or node.older.newer is not node:
            raise MemoryViolation("the order of leaving is a ring", pages=node.pages)
        if any(child not in left for child in node.children.values()):
            raise MemoryViolation("children leave before their parent", pages=node.pages)
        left.add(node)
    if len(left) != unheld:
        raise MemoryViolation("every unheld node waits to leave", waiting=len(left), unheld=unheld)


def pretty(roots: Mapping[str, Root], page_size: int) -> str:
    """The trees as indented text, one line a node."""
    lines: list[str] = []
    for namespace, root in roots.items():
        lines.append(f"namespace {namespace!r}")
        waiting = [(1, child) for child in reversed(root.children.values())]
        while waiting:
            depth, node = waiting.pop()
            lines.append("  " * depth + _line(node, page_size))
            waiting.extend((depth + 1, child) for child in reversed(node.children.values()))
    return "\n".join(lines) or "empty"


def _line(node: Node, page_size: int) -> str:
    tokens = np.frombuffer(node.key, np.int32)
    shown = " ".join(map(str, tokens[:_SHOWN_TOKENS]))
    more = " …" if len(tokens) > _SHOWN_TOKENS else ""
    return (
        f"[{shown}{more}] {len(node.pages)} x {page_size} tokens, pages {node.pages.tolist()}, "
        f"holds {node.holds}, fence {node.fence}"
    )
