"""A radix tree as plain data, and back: what a checkpoint holds of the prefix cache.

`Snapshot`: (trees, waiting, clock). A tree is (namespace, holds of its root, nodes). A node, parents first, is
(index of its parent over all trees or None, key, pages, holds, fence, created, used, hits, priority, entry). `waiting`
are the indices of nodes that may leave.
"""

from __future__ import annotations

from heapq import heapify
from typing import Any, TypeAlias

import numpy as np

from pawl.memory.prefix.node import Node, Rank, Root
from pawl.memory.prefix.order import RankedOrder, RecencyOrder
from pawl.memory.prefix.radix import RadixCache

Snapshot: TypeAlias = tuple[list[Any], list[int], int]


def snapshot_of(cache: RadixCache) -> Snapshot:
    """Every node of a Python tree, and the order of leaving; O(size)."""
    index: dict[Node, int] = {}
    trees: list[Any] = []
    for root in cache._roots.values():
        nodes: list[Any] = []
        stack: list[tuple[Node, int | None]] = [(child, None) for child in root.children.values()]
        while stack:
            node, parent = stack.pop()
            index[node] = at = len(index)
            rank = node.rank
            ranks = (rank.created, rank.used, rank.hits, rank.priority, rank.entry)
            nodes.append((parent, node.key, node.pages, node.holds, node.fence, *ranks))
            stack += [(child, at) for child in node.children.values()]
        trees.append((root.namespace, root.holds, nodes))
    order = cache._order
    if isinstance(order, RankedOrder):
        waiting = [index[node] for _, entry, node in order._heap if node.rank.entry == entry]
        return trees, waiting, order._clock
    assert isinstance(order, RecencyOrder)
    return trees, [index[node] for node in order], 0


def canonical(snapshot: Snapshot, *, ranked: bool) -> Snapshot:
    """The same tree in the one order that does not depend on how it came about: equal trees give equal snapshots."""
    trees, waiting, clock = snapshot
    base = 0
    new_index: dict[int, int] = {}
    ordered: list[Any] = []
    for namespace, root_holds, nodes in trees:
        below: dict[int | None, list[int]] = {}
        for at, node in enumerate(nodes):
            below.setdefault(None if node[0] is None else node[0] - base, []).append(at)
        for children in below.values():
            children.sort(key=lambda at: nodes[at][1], reverse=True)
        ordered.append((namespace, root_holds, nodes, below, base))
        base += len(nodes)
    kept: list[Any] = []
    for namespace, root_holds, nodes, below, first in sorted(ordered, key=lambda tree: tree[0]):
        made: list[Any] = []
        stack: list[tuple[int, int | None]] = [(at, None) for at in below.get(None, ())]
        while stack:
            at, parent = stack.pop()
            new_index[first + at] = mine = len(new_index)
            rank = nodes[at][5:] if ranked else (0, 0, 0, 0, 0)
            made.append([parent, nodes[at][1], nodes[at][2], nodes[at][3], nodes[at][4], *rank])
            stack += [(child, mine) for child in below.get(at, ())]
        kept.append((namespace, root_holds, made))
    left = [new_index[at] for at in waiting]
    if ranked:
        entries = [node[9] for _, _, nodes in kept for node in nodes]
        left.sort(key=entries.__getitem__)
    return kept, left, clock if ranked else 0


def restore(cache: RadixCache, snapshot: Snapshot) -> None:
    """Fill an empty tree, without the holds that were given out. Raises ValueError for a node that waits twice."""
    trees, waiting, clock = snapshot
    if len(set(waiting)) != len(waiting):
        raise ValueError("a node waits twice to leave the cache")
    ranked, page_bytes = isinstance(cache._order, RankedOrder), cache._page_bytes
    nodes: list[Node] = []
    for namespace, root_holds, records in trees:
        root = cache._roots[namespace] = Root(namespace)
        root.holds = root_holds
        for record in records:
            parent, key, pages, holds, fence = record[:5]
            above = root if parent is None else nodes[parent]
            node = Node(above, key, np.frombuffer(pages, np.int32) if isinstance(pages, bytes) else pages)
            node.holds, node.fence = holds, fence
            if ranked:
                node.rank = _rank(*record[5:])
            above.children[key[:page_bytes]] = node
            nodes.append(node)
    cache._num_nodes = len(nodes)
    cache._held = sum(len(node.pages) for node in nodes if node.holds)
    cache._evictable = sum(len(node.pages) for node in nodes if not node.holds)
    _fill(cache._order, [nodes[index] for index in waiting], clock)


def _rank(created: int, used: int, hits: int, priority: int, entry: int) -> Rank:
    rank = Rank(created)
    rank.used, rank.hits, rank.priority, rank.entry = used, hits, priority, entry
    return rank


def _fill(order: object, waiting: list[Node], clock: int) -> None:
    """Let these nodes wait in an order that is empty."""
    if isinstance(order, RankedOrder):
        order._heap = [(order._key(node.rank), node.rank.entry, node) for node in waiting]
        heapify(order._heap)
        order._waiting, order._clock = len(waiting), clock
    elif isinstance(order, RecencyOrder):
        for node in waiting:
            order.push(node)
