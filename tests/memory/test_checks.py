"""A check that never fires proves nothing: each property is broken on purpose, and the check must say so by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.prefix.node import Node
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation

PAGE = 16


def healthy() -> tuple[Memory, RadixCache]:
    """A running request in slot 0 that holds [1 2] of a tree [1 2]-{[3], [4]} and [5]; nothing is in flight."""
    cache = RadixCache(PAGE)
    memory = Memory(num_pages=20, num_slots=3, max_context=6 * PAGE, cache=cache)
    for words in ((1, 2, 3), (1, 2, 4), (5,), (1, 2, 9)):
        transaction = memory.ledger.begin()
        tokens = np.repeat(np.array([*words, 99], np.int32), PAGE)
        granted = memory.admit(transaction, tokens, "", True)
        assert granted is not None
        grown = memory.extend(transaction, np.array([granted.slot], np.int32), np.array([len(tokens)], np.int32))
        assert grown is not None
        memory.ledger.prepare(transaction)
        memory.ledger.commit(transaction)
        if words[-1] != 9:
            memory.share_prefix(granted.slot, tokens[: len(words) * PAGE], "")
            memory.release(granted.slot)
    memory.take_replaced()
    memory.check_all()
    return memory, cache


def child(cache: RadixCache, *path: int) -> Node:
    """The node at the n-th child of the n-th child … of the unnamed namespace."""
    node: Node = cache._roots[""]
    for index in path:
        node = list(node.children.values())[index]
    return node


def page(memory: Memory, index: int) -> int:
    return int(memory.page_table.pages[0, index])


def put(owner: object, **values: object) -> None:
    """Write attributes past every guard."""
    for name, value in values.items():
        setattr(owner, name, value)


def add(amount: int, table: Int32s, index: int) -> None:
    table[index] += amount


Break = Callable[[Memory, RadixCache], object]
BROKEN: dict[str, tuple[str, Break]] = {
    "a page leaks": ("free .* = total", lambda m, c: put(m.pages, free=m.pages.free - 1)),
    "a page is counted twice": ("free .* = total", lambda m, c: put(m.pages, deferred=1)),
    "a counter is negative": (
        "free .* = total",
        lambda m, c: put(m.pages, deferred=-1, quarantined=1),
    ),
    "a page is free twice": (
        "no duplicate",
        lambda m, c: m.pages.free_pages.__setitem__(0, m.pages.free_pages[1]),
    ),
    "a free page is referenced": (
        "both free and referenced",
        lambda m, c: add(1, m.pages.refcount, m.pages.free_pages[0]),
    ),
    "a refcount is negative": ("below zero|both free", lambda m, c: add(-3, m.pages.refcount, page(m, 3))),
    "a refcount is too high": ("number of its referrers", lambda m, c: add(1, m.pages.refcount, page(m, 3))),
    "a refcount is too low": ("number of its referrers", lambda m, c: add(-1, m.pages.refcount, page(m, 0))),
    "a cached page lost its mark": (
        "counters equal",
        lambda m, c: m.pages.in_cache.__setitem__(page(m, 0), False),
    ),
    "a free page is marked as cached": (
        "a cached page is referenced",
        lambda m, c: [add(1, m.pages.in_cache, m.pages.free_pages[0]), add(-1, m.pages.in_cache, page(m, 0))],  # type: ignore[func-returns-value]
    ),
    "a page that is used is in quarantine": (
        "a page in quarantine has no other use",
        lambda m, c: [put(m.pages, quarantined=1, free=m.pages.free - 1), add(1, m.pages.reserved, page(m, 3))],  # type: ignore[func-returns-value]
    ),
    "quarantine forgets a page": (
        "a page in quarantine has no other use",
        lambda m, c: put(m.pages, quarantined=1, free=m.pages.free - 1),
    ),
    "a free page is in quarantine": (
        "both free and reserved",
        lambda m, c: [  # type: ignore[func-returns-value]
            put(m.pages, quarantined=1, free=m.pages.free - 1),
            add(1, m.pages.reserved, m.pages.free_pages[0]),
        ],
    ),
    "owned and cached are mixed up": (
        "counters equal|evictable",
        lambda m, c: put(m.pages, owned=m.pages.owned + 1, cached=m.pages.cached - 1),
    ),
    "a slot leaks": ("total slots", lambda m, c: m.slots._free.pop()),
    "a row is longer than its pages": ("cover the length", lambda m, c: add(PAGE, m.page_table.length, 0)),
    "a row has a spare page": ("no page is spare", lambda m, c: add(-PAGE, m.page_table.length, 0)),
    "a row names another page": (
        "number of its referrers",
        lambda m, c: m.page_table.pages.__setitem__((0, 3), m.pages.free_pages[0]),
    ),
    "a slot that is idle owns a page": ("not in use owns nothing", lambda m, c: add(1, m.page_table.num_pages, 1)),
    "a slot that is idle holds a prefix": (
        "not in use owns nothing",
        lambda m, c: m.page_table.holds.__setitem__(1, m.page_table.holds[0]),
    ),
    "the cache counts too much": ("cached = evictable", lambda m, c: put(c, _evictable=c._evictable + 1)),
    "held and evictable are mixed up": (
        "counters of the cache",
        lambda m, c: put(c, _evictable=c._evictable + 1, _held=c._held - 1),
    ),
    "a hold is forgotten": ("counters of the cache", lambda m, c: put(c, _num_holds=0)),
    "a node forgets its holder": ("root counts as held", lambda m, c: put(child(c, 0), holds=0)),
    "a node forgets a held child": (
        "own holders",
        lambda m, c: [put(child(c, 0, index), holds=1) for index in (0, 1)],  # type: ignore[func-returns-value]
    ),
    "a held node may be evicted": ("never evicted", lambda m, c: c._order.push(child(c, 0))),
    "an unheld node may not": ("every unheld node", lambda m, c: c._order.remove(child(c, 0, 0))),
    "a root lets go": ("root counts as held", lambda m, c: put(c._roots[""], holds=1)),
    "an edge is cut within a page": (
        "whole pages",
        lambda m, c: put(child(c, 0), key=child(c, 0).key[:-4]),
    ),
    "an edge has a page too many": (
        "whole pages",
        lambda m, c: put(child(c, 1), pages=np.array([1, 2], np.int32)),
    ),
    "a child is filed under other tokens": (
        "found by its first page",
        lambda m, c: put(child(c, 1), key=bytes(len(child(c, 1).key))),
    ),
    "a child does not know its parent": (
        "found by its first page",
        lambda m, c: put(child(c, 0, 0), parent=child(c, 1)),
    ),
    "a page is cached twice": (
        "cached in one place",
        lambda m, c: put(child(c, 1), pages=child(c, 0, 0).pages),
    ),
    "a namespace is empty": ("namespace has a tree", lambda m, c: c._roots[""].children.clear()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_law_is_reported(name: str) -> None:
    statement, break_it = BROKEN[name]
    memory, cache = healthy()
    break_it(memory, cache)
    with pytest.raises(MemoryViolation, match=statement):
        memory.check_all()


def test_a_parent_that_would_leave_before_its_child_is_reported() -> None:
    memory, cache = healthy()
    memory.release(0)
    memory.check_all()
    leaf = child(cache, 0, 0)
    cache._order.remove(leaf)
    cache._order.push(leaf)
    with pytest.raises(MemoryViolation, match="children leave before"):
        memory.check_all()
