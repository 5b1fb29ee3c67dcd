"""What a radix cache must find, keep and let go, said with plain dicts, and random histories to compare it with.

Every cached page is an entry of a dict; pages that were cached together, and were not parted by a request since, are
one edge. The victim is looked for among all edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from pawl.memory.arrays import Int32s
from pawl.memory.prefix.base import Hold, PrefixCache
from tests.memory.reference import Prefix, beginnings


def array(*values: int) -> Int32s:
    return np.array(values, np.int32)


@dataclass(eq=False)
class Edge:
    """What policies may know."""

    created: int
    used: int = 0
    hits: int = 0
    priority: float = float("-inf")


FIRST_TO_LEAVE: Mapping[str, Callable[[Edge], Any]] = {
    "lru": lambda edge: edge.used,
    "lfu": lambda edge: (edge.hits, edge.used),
    "fifo": lambda edge: edge.created,
    "mru": lambda edge: -edge.used,
    "filo": lambda edge: -edge.created,
    "priority": lambda edge: (edge.priority, edge.used),
}


class TreeModel:
    """The cached prefixes, their pages and edges, and who holds what."""

    def __init__(self, page_size: int, policy: str) -> None:
        self.page_size = page_size
        self.rank = FIRST_TO_LEAVE[policy]
        self.page: dict[Prefix, int] = {}
        self.edge: dict[Prefix, Edge] = {}
        self.held: list[Prefix] = []
        """The prefix of every hold that is not released."""
        self.clock = 0

    def parts(self, prefix: Prefix) -> list[Prefix]:
        return beginnings(prefix, self.page_size)

    def known(self, prefix: Prefix) -> list[Prefix]:
        """The cached beginnings of `prefix`, shortest first."""
        return [part for part in self.parts(prefix) if part in self.page]

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def part(self, prefix: Prefix) -> None:
        """A request goes another way from here on, or ends here: what lies behind is an edge of its own."""
        edge = self.edge[prefix]
        if any(other is edge and len(part[1]) > len(prefix[1]) for part, other in self.edge.items()):
            upper = replace(edge)
            for part in self.parts(prefix):
                if self.edge[part] is edge:
                    self.edge[part] = upper

    def find(self, prefix: Prefix) -> Prefix:
        """The longest cached beginning; an empty one for none."""
        known = self.known(prefix)
        if known:
            self.part(known[-1])
        return known[-1] if known else (prefix[0], ())

    def store(self, prefix: Prefix, pages: list[int]) -> list[int]:
        """Offer `pages`; those adopted."""
        found = len(self.known(self.find(prefix)))
        edge = Edge(self.tick())
        for part, page in list(zip(self.parts(prefix), pages, strict=True))[found:]:
            self.page[part], self.edge[part] = page, edge
        return pages[found:]

    def hold(self, prefix: Prefix, priority: int, covered: int = 0) -> None:
        """A request uses the path, of which it has used `covered` tokens before."""
        self.held.append(prefix)
        for edge in {self.edge[part] for part in self.parts(prefix) if len(part[1]) > covered}:
            edge.hits += 1
            edge.priority = max(edge.priority, priority)

    def release(self, prefix: Prefix, used: bool = True) -> None:
        if not used:
            for edge in {self.edge[part] for part in self.parts(prefix)}:
                edge.hits -= 1
        held = self.held_edges()
        self.held.remove(prefix)
        let_go = held - self.held_edges()
        for part in reversed(self.parts(prefix)):
            if self.edge[part] in let_go:
                let_go.remove(self.edge[part])
                self.edge[part].used = self.tick()

    def held_edges(self) -> set[Edge]:
        return {self.edge[part] for prefix in self.held for part in self.parts(prefix)}

    def evict(self, count: int) -> list[int]:
        """Leaves until `count` pages are gone; their pages in the order of leaving."""
        gone: list[int] = []
        while len(gone) < count:
            held = self.held_edges()
            parents = {
                self.edge[above]
                for part, edge in self.edge.items()
                for above in self.parts(part)[:-1]
                if self.edge[above] is not edge
            }
            leaves = {*self.edge.values()} - parents - held
            if not leaves:
                break
            victim = min(leaves, key=self.rank)
            for part in [part for part, edge in self.edge.items() if edge is victim]:
                gone.append(self.page.pop(part))
                del self.edge[part]
        return gone


class Move(NamedTuple):
    """One thing that happens to a cache; which fields mean something depends on `verb`."""

    verb: str
    namespace: str
    words: tuple[int, ...]
    """Pages of a prompt. Words 2n and 2n + 1 differ in the last token of their page only."""
    number: int
    """A priority, the index of a hold, or pages to evict."""


VERBS = ("match", "insert", "insert", "extend", "release", "release", "withdraw", "evict", "reset")
MOVES = st.lists(
    st.builds(
        Move,
        st.sampled_from(VERBS),
        st.sampled_from(("", "a")),
        st.lists(st.integers(0, 3), max_size=5).map(tuple),
        st.integers(0, 7),
    ),
    min_size=5,
    max_size=40,
)


def random_moves(source: Random, count: int) -> list[Move]:
    """For canaries: histories without Hypothesis."""
    return [
        Move(
            source.choice(VERBS),
            source.choice(("", "a")),
            tuple(source.choices(range(4), k=source.randrange(6))),
            source.randrange(8),
        )
        for _ in range(count)
    ]


def play(cache: PrefixCache, model: TreeModel, moves: list[Move]) -> Iterator[Move]:
    """Do every move to both, and compare what they return. Yields after each move."""
    holds: list[tuple[Hold, Prefix]] = []
    used = 0
    for move in moves:
        tokens = tuple(token for word in move.words for token in [word // 2] * (cache.page_size - 1) + [word])
        prefix = (move.namespace, tokens)
        if move.verb == "match":
            hold = cache.match_and_hold(array(*tokens, 99), move.namespace, move.number)
            found = model.find(prefix)
            model.hold(found, move.number)
            assert hold.pages.tolist() == [model.page[part] for part in model.known(found)]
            holds.append((hold, found))
        elif move.verb in ("insert", "extend"):
            before = None
            if move.verb == "extend" and holds:
                before, (namespace, start) = holds.pop(move.number % len(holds))
                prefix = (namespace, start + tokens)
            offered = list(range(used, used + len(model.parts(prefix))))
            used += len(offered)
            insertion = cache.insert(array(*prefix[1]), array(*offered), prefix[0], before, 0, move.number)
            assert insertion.adopted.tolist() == model.store(prefix, offered)
            model.hold(prefix, move.number, 0 if before is None else before.num_tokens)
            if before is not None:
                model.release((prefix[0], prefix[1][: before.num_tokens]))
            assert insertion.hold.pages.tolist() == [model.page[part] for part in model.parts(prefix)]
            holds.append((insertion.hold, prefix))
        elif move.verb in ("release", "withdraw") and holds:
            hold, prefix = holds.pop(move.number % len(holds))
            cache.release(hold, 0, used=move.verb == "release")
            model.release(prefix, used=move.verb == "release")
        elif move.verb == "evict":
            assert cache.evict(move.number).pages.tolist() == model.evict(move.number)
        elif move.verb == "reset" and not any(words for _, (_, words) in holds):
            assert cache.reset().pages.tolist() == model.evict(len(model.page))
        yield move
