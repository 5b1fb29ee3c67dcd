"""A radix tree of cached prefixes over page-sized keys, as in SGLang (Zheng et al. 2024, RadixAttention).

    namespace ""   root ── [p0 p1 p2] ─┬─ [p3]            an edge holds whole pages; children differ in their first page
                                       └─ [p7 p8]
    namespace "a"  root ── [p4 p5]                        adapters and salts never share

The token ids of a prompt are turned into bytes once. An edge is compared by one `memcmp`, a child is found by the bytes
of its first page, and the place where an edge parts from the prompt is found by bisection; so a match costs what
reading the tokens costs, whatever the size of the tree.

A node keeps its identity for life. Splitting puts a *new* node between it and its parent, so a hold on it stays a hold
on the same, deepest, place. Splits and evictions change no content and are not undone with a step.

Which unheld leaf leaves first is the business of an order (memory/prefix/order.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pawl.memory.arrays import NO_PAGES, Int32s
from pawl.memory.prefix.base import Eviction, Hold, Insertion
from pawl.memory.prefix.checks import check_tree, content
from pawl.memory.prefix.events import CacheEvent, Cleared, Content, Removed, Stored
from pawl.memory.prefix.hold import RadixHold
from pawl.memory.prefix.node import Node, Root, common_pages, path
from pawl.memory.prefix.order import make_order
from pawl.memory.violation import MemoryViolation

_TOKEN_BYTES = 4


class RadixCache:
    """Prefix cache with sharing; `eviction` names the policy by which pages leave. Implements `PrefixCache`."""

    def __init__(self, page_size: int, eviction: str = "lru") -> None:
        if page_size < 1:
            raise ValueError(f"a page holds at least one token, not {page_size}")
        self.page_size = page_size
        self.events: list[CacheEvent] | None = None
        self._page_bytes = page_size * _TOKEN_BYTES
        self._roots: dict[str, Root] = {}
        self._order = make_order(eviction)
        self._counts_uses = self._order.counts_uses
        self._held = 0
        self._evictable = 0
        self._num_nodes = 0
        self._num_holds = 0
        self._counts = dict.fromkeys(
            ("matches", "hit_tokens", "missed_tokens", "insertions", "adopted_pages", "splits", "evicted_pages"), 0
        )

    @property
    def evictable(self) -> int:
        """Pages of unheld nodes: a child of an unheld node is unheld, so all of them can leave."""
        return self._evictable

    @property
    def held(self) -> int:
        """Pages of held nodes."""
        return self._held

    # ---- find and keep ----

    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> RadixHold:
        """Hold the longest cached prefix of `tokens`, int32 [n], in whole pages. O(n).

        `priority`: of the request, for the policy that asks for it.
        """
        counts = self._counts
        counts["matches"] += 1
        root = self._roots.get(namespace)
        matched = 0
        node: Node | None = None
        if root is not None:
            reached, at, end = self._reach(root, self._bytes_of(tokens))
            num_pages = self._usable(reached, at // self._page_bytes)
            node = self._cut(reached, num_pages * self._page_bytes, end)
            matched = num_pages * self.page_size
        counts["hit_tokens"] += matched
        counts["missed_tokens"] += len(tokens) - matched
        hold = self._hold(node if matched else None, matched)
        if self._counts_uses:
            self._use(hold, 0, priority)
        return hold

    def _usable(self, node: Node, num_pages: int) -> int:
        """How many of the first `num_pages` pages on the path to `node` a request can start with: all of them, where
        every layer reads everything."""
        return num_pages

    def insert(
        self, tokens: Int32s, pages: Int32s, namespace: str, hold: Hold | None, fence: int, priority: int = 0
    ) -> Insertion:
        """Offer `pages` for `tokens` (whole pages); hold all of it instead of `hold`, which is released. O(n).

        Where the tree has pages for the same tokens already, those stay and the offered ones are not adopted. What
        `hold` covers counts as used once by this request, as before.
        """
        data = self._bytes_of(tokens)
        if len(data) != len(pages) * self._page_bytes or len(tokens) != len(pages) * self.page_size:
            raise MemoryViolation("pages are inserted whole", num_tokens=len(tokens), num_pages=len(pages))
        before = None if hold is None else self._own(hold)
        self._counts["insertions"] += 1
        adopted = NO_PAGES
        node: Node | None = None
        if data:
            root = self._roots.get(namespace)
            if root is None:
                root = self._roots[namespace] = Root(namespace)
            node, at = self._descend(root, data)
            if at < len(data):
                adopted = pages[at // self._page_bytes :].copy()
                adopted.flags.writeable = False
                if self.events is not None:
                    parent = None if node is root else int(node.pages[-1])
                    self.events.append(Stored(namespace, parent, tokens[at // _TOKEN_BYTES :].copy(), adopted))
                node = self._grow(node, data[at:], adopted, fence)
        new_hold = self._hold(node, len(tokens))
        if self._counts_uses:
            self._use(new_hold, 0 if before is None else before.num_tokens, priority)
        if before is not None:
            # Only after the new one holds: what both share is never unheld in between.
            self._let_go(before, fence)
        return Insertion(new_hold, adopted)

    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        """Let go of a hold, once. `fence`: newest step that may still touch its pages.

        `used`: False when nothing came of it, so that a request which is tried at every step is counted once.
        """
        hold = self._own(hold)
        if not used and self._counts_uses:
            for node in path(hold.node):
                self._order.unuse(node)
        self._let_go(hold, fence)

    def _own(self, hold: Hold) -> RadixHold:
        """The hold, when it is of this cache and not released yet. Raises MemoryViolation."""
        if not isinstance(hold, RadixHold) or hold.released or hold.owner is not self:
            raise MemoryViolation("a hold is released once, to the cache that gave it", num_tokens=hold.num_tokens)
        return hold

    def _hold(self, node: Node | None, num_tokens: int) -> RadixHold:
        if node is not None:
            self._num_holds += 1
            self.pin(node)
        return RadixHold(self, node, num_tokens)

    def _let_go(self, hold: RadixHold, fence: int) -> None:
        hold.released = True
        node, hold.node = hold.node, None
        if node is not None:
            self._num_holds -= 1
            self.unpin(node, fence)

    def _use(self, hold: RadixHold, covered: int, priority: int) -> None:
        """A request uses the path of its hold; it has used the nodes of the first `covered` tokens before."""
        end = hold.num_tokens
        for node in path(hold.node):
            if end <= covered:
                return
            self._order.use(node, priority)
            end -= len(node.pages) * self.page_size

    def pin(self, node: Node) -> None:
        """One more holder. Parents are touched only as far as nodes become held."""
        above: Node | None = node
        while above is not None:
            above.holds += 1
            if above.holds > 1:
                return
            self._order.remove(above)
            count = len(above.pages)
            self._evictable -= count
            self._held += count
            above = above.parent

    def unpin(self, node: Node, fence: int) -> None:
        """One holder less. Parents are touched only as far as nodes become unheld, children before parents."""
        if fence > node.fence:
            node.fence = fence
        above: Node | None = node
        while above is not None:
            above.holds -= 1
            if above.holds > 0:
                return
            self._order.push(above)
            count = len(above.pages)
            self._held -= count
            self._evictable += count
            above = above.parent

    # ---- the tree ----

    def _bytes_of(self, tokens: Int32s) -> bytes:
        """The whole pages of `tokens` as bytes."""
        if tokens.dtype != np.int32:
            raise TypeError(f"token ids are int32, not {tokens.dtype}")
        spare = len(tokens) % self.page_size
        return tokens[: len(tokens) - spare].tobytes() if spare else tokens.tobytes()

    def _descend(self, root: Node, data: bytes) -> tuple[Node, int]:
        """The node at which the longest cached prefix of `data` ends, and its length in bytes."""
        node, at, end = self._reach(root, data)
        return self._cut(node, at, end), at

    def _reach(self, root: Node, data: bytes) -> tuple[Node, int, int]:
        """The last node that the longest cached prefix of `data` reaches into, the length of that prefix, and how far
        the node itself goes, in bytes."""
        width = self._page_bytes
        node, at = root, 0
        while at < len(data):
            child = node.children.get(data[at : at + width])
            if child is None:
                break
            end = at + len(child.key)
            if not data.startswith(child.key, at):
                return child, at + common_pages(data, at, child.key, width) * width, end
            node, at = child, end
        return node, at, at

    def _cut(self, node: Node, at: int, end: int) -> Node:
        """The node that ends at byte `at` of the path to `node`, which ends at `end`; splits an edge if need be."""
        while node.parent is not None and end - len(node.key) >= at:
            end -= len(node.key)
            node = node.parent
        if end > at:
            node = self._split(node, (at - end + len(node.key)) // self._page_bytes)
        return node

    def _grow(self, parent: Node, key: bytes, pages: Int32s, fence: int) -> Node:
        """A new leaf below `parent`, about to be held."""
        node = Node(parent, key, pages)
        node.fence = fence
        parent.children[key[: self._page_bytes]] = node
        self._order.created(node)
        self._evictable += len(pages)
        self._num_nodes += 1
        self._counts["adopted_pages"] += len(pages)
        return node

    def _split(self, node: Node, count: int) -> Node:
        """Cut the first `count` pages of `node` off into a new parent, which is returned."""
        cut = count * self._page_bytes
        upper = Node(node.parent, node.key[:cut], node.pages[:count])
        upper.children[node.key[cut : cut + self._page_bytes]] = node
        if node.parent is not None:
            node.parent.children[node.key[: self._page_bytes]] = upper
        node.parent, node.key, node.pages = upper, node.key[cut:], node.pages[count:]
        if node.holds:
            upper.holds = 1
        self._order.split(upper, node)
        self._num_nodes += 1
        self._counts["splits"] += 1
        return upper

    # ---- give back ----

    def evict(self, count: int) -> Eviction:
        """Drop unheld leaves in the policy's order until `count` pages are gone or none is left.

        O(1) for each victim under `lru`, O(log leaves) under the other policies.
        """
        eviction = self._evict(count)
        if self.events is not None and len(eviction.pages):
            self.events.append(Removed(eviction.pages))
        return eviction

    def _evict(self, count: int) -> Eviction:
        gone: list[Int32s] = []
        fence = 0
        freed = 0
        while freed < count:
            victim = self._order.victim
            if victim is None:
                break
            self._drop(victim)
            gone.append(victim.pages)
            freed += len(victim.pages)
            fence = max(fence, victim.fence)
        self._evictable -= freed
        self._counts["evicted_pages"] += freed
        return Eviction(np.concatenate(gone) if gone else NO_PAGES, fence)

    def _drop(self, victim: Node) -> None:
        """Take an unheld leaf out of the tree. Who held it may have touched its parents' pages as well."""
        parent = victim.parent
        if parent is None or victim.children or victim.holds:
            raise MemoryViolation("only an unheld leaf is evicted", holds=victim.holds, children=len(victim.children))
        del parent.children[victim.key[: self._page_bytes]]
        self._num_nodes -= 1
        self._order.dropped(victim)
        if victim.fence > parent.fence:
            parent.fence = victim.fence
        if isinstance(parent, Root) and not parent.children:
            del self._roots[parent.namespace]

    def reset(self) -> Eviction:
        """Drop everything. Raises MemoryViolation, without a change, while anything is held."""
        if self._num_holds:
            raise MemoryViolation("a cache that is held is not reset", holds=self._num_holds, held_pages=self._held)
        eviction = self._evict(self._evictable)
        if self.events is not None:
            self.events.append(Cleared())
        return eviction

    # ---- for people and tests ----

    def statistics(self) -> dict[str, Any]:
        """Counts since start, and the size now."""
        return {
            **self._counts,
            "nodes": self._num_nodes,
            "pages": self._held + self._evictable,
            "held_pages": self._held,
            "holds": self._num_holds,
            "namespaces": len(self._roots),
        }

    def content(self) -> Content:
        """Every cached page and where it stands, O(size)."""
        return content(self._roots, self.page_size)

    def check_all(self) -> None:
        """Every property of the structure, O(size)."""
        kept = {
            "held": self._held,
            "evictable": self._evictable,
            "nodes": self._num_nodes,
            "holds": self._num_holds,
        }
        check_tree(self._roots, self._order, self._page_bytes, kept)
