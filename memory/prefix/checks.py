"""The properties of a radix tree, checked node by node, and its content. Not on the hot path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pawl.memory.prefix.events import Block, Content
from pawl.memory.prefix.node import Node, Root
from pawl.memory.prefix.order import Order
from pawl.memory.violation import MemoryViolation


def walk(roots: Mapping[str, Root]) -> Iterator[Node]:
    """Every node but the roots, parents first. Iterative: a long conversation is a deep tree."""
    waiting = [child for root in roots.values() for child in root.children.values()]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.children.values())


def own_holders(node: Node) -> int:
    """Holders of this very place, those of its children left out."""
    return node.holds - sum([child.holds != 0 for child in node.children.values()]) if node.children else node.holds


def check_tree(roots: Mapping[str, Root], order: Order, page_bytes: int, kept: Mapping[str, int]) -> None:
    """Raise MemoryViolation at the first property that does not hold; `kept` is what the cache counts. O(size)."""
    for namespace, root in roots.items():
        if root.namespace != namespace or not root.children:
            raise MemoryViolation("a namespace has a tree", namespace=namespace)
        if own_holders(root) != 1:
            raise MemoryViolation("a root counts as held once", namespace=namespace, holds=root.holds)
        _check_edges(root, page_bytes)
    found = dict.fromkeys(("held", "evictable", "nodes", "holds"), 0)
    seen: set[int] = set()
    unheld: set[Node] = set()
    for node in walk(roots):
        if node.children:
            _check_edges(node, page_bytes)
        own, count = own_holders(node), len(node.pages)
        if own < 0:
            raise MemoryViolation(
                "holds = own holders + held children", holds=node.holds, pages=node.pages, children=len(node.children)
            )
        if node.holds:
            found["held"] += count
        else:
            found["evictable"] += count
            unheld.add(node)
        found["nodes"] += 1
        found["holds"] += own
        before = len(seen)
        seen.update(node.pages.tolist())
        if len(seen) != before + count:
            raise MemoryViolation("a page is cached in one place", pages=node.pages)
    order.check(unheld)
    if found != kept:
        raise MemoryViolation("counters of the cache equal its content", kept=kept, found=found)


def _check_edges(parent: Node, page_bytes: int) -> None:
    for first, child in parent.children.items():
        key = child.key
        if child.parent is not parent or key[:page_bytes] != first:
            raise MemoryViolation("a child is found by its first page, and knows its parent", pages=child.pages)
        if not key or len(key) != len(child.pages) * page_bytes:
            raise MemoryViolation("an edge holds whole pages", key_bytes=len(key), num_pages=len(child.pages))


def content(roots: Mapping[str, Root], page_size: int) -> Content:
    """Every cached page and where it stands."""
    found: Content = {}
    for namespace, root in roots.items():
        for node in walk({namespace: root}):
            tokens = np.frombuffer(node.key, np.int32).reshape(-1, page_size).tolist()
            parent = int(node.parent.pages[-1]) if node.parent is not None and len(node.parent.pages) else None
            for page, words in zip(node.pages.tolist(), tokens, strict=True):
                found[page] = Block(namespace, parent, tuple(words))
                parent = page
    return found
