"""A Python cache and a compiled one through the same calls, compared after each in all there is to them.

Whoever imports this is skipped where the compiled core was not built, and only there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from pawl.memory.arrays import Int32s
from pawl.memory.prefix.base import Hold, Insertion, PrefixCache
from pawl.memory.prefix.checks import walk
from pawl.memory.prefix.chunk import EmptyHold
from pawl.memory.prefix.compiled import CompiledRadixCache, CompiledUnavailable, load
from pawl.memory.prefix.events import CacheEvent
from pawl.memory.prefix.hold import RadixHold
from pawl.memory.prefix.order import Order, RankedOrder, RecencyOrder
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation
from tests.memory.tree_model import array

try:
    load()
except CompiledUnavailable as error:
    pytest.skip(f"no compiled core: {error}", allow_module_level=True)

from pawl.memory.prefix._radix import CompiledHold

MakeCache = Callable[[int, str], CompiledRadixCache]


class Deed(NamedTuple):
    """One call to both caches; which fields mean something depends on `verb`."""

    verb: str
    namespace: str
    words: tuple[int, ...]
    """Pages of a prompt. Words 2n and 2n + 1 differ in the last token of their page only."""
    tail: int
    """Tokens after the last whole page, modulo the page size."""
    which: int
    """A hold, modulo their number; or pages to evict."""
    number: int
    """A priority, which may be negative."""
    fence: int


VERBS = (
    *("match", "insert", "extend", "release", "evict") * 3,
    *("withdraw", "reset", "look", "forget", "release again", "foreign", "partial", "wide", "listen"),
)
DEEDS = st.lists(
    st.builds(
        Deed,
        st.sampled_from(VERBS),
        st.sampled_from(("", "a")),
        st.lists(st.integers(0, 3), max_size=6).map(tuple),
        st.integers(0, 63),
        st.integers(-1, 9),
        st.integers(-3, 3),
        st.integers(0, 9),
    ),
    min_size=10,
    max_size=60,
)


def random_deeds(source: Random, count: int) -> list[Deed]:
    """For canaries: histories without Hypothesis."""
    return [
        Deed(
            source.choice(VERBS),
            source.choice(("", "a")),
            tuple(source.choices(range(4), k=source.randrange(7))),
            source.randrange(64),
            source.randrange(-1, 10),
            source.randrange(-3, 4),
            source.randrange(10),
        )
        for _ in range(count)
    ]


def plain(value: Any) -> Any:
    """A result as values to compare: arrays with their type, holds by what they hold."""
    match value:
        case np.ndarray():
            return str(value.dtype), value.tolist()
        case RadixHold() | CompiledHold():
            return value.num_tokens, value.released
        case tuple():
            return type(value).__name__, [plain(part) for part in value]
    return value


def leaving(order: Order) -> list[list[int]]:
    """Pages of what waits, in the order of leaving."""
    if isinstance(order, RecencyOrder):
        return [node.pages.tolist() for node in order]
    assert isinstance(order, RankedOrder)
    live = [entry for entry in order._heap if entry[2].rank.entry == entry[1]]
    return [node.pages.tolist() for _, _, node in sorted(live, key=lambda entry: entry[:2])]


def state(cache: RadixCache) -> dict[str, Any]:
    """All there is to a cache but the identity of its holds."""
    nodes: list[tuple[Any, ...]] = []
    for node in walk(cache._roots):
        rank = node.rank
        nodes.append((node.key, node.pages.tolist(), node.holds, node.fence, rank.created, rank.used))
        nodes.append((rank.hits, rank.priority, rank.entry))
    return {
        "nodes": nodes,
        "roots": [(name, root.holds) for name, root in cache._roots.items()],
        "leaving": leaving(cache._order),
        "clock": getattr(cache._order, "_clock", 0),
        "statistics": cache.statistics(),
        "evictable": cache.evictable,
        "held": cache.held,
        "content": cache.content(),
    }


class SideBySide:
    """Both caches, and the holds that each has given out, in pairs."""

    def __init__(self, page_size: int, policy: str, make: MakeCache) -> None:
        self.page_size = page_size
        self.python, self.compiled = RadixCache(page_size, policy), make(page_size, policy)
        self.events: tuple[list[CacheEvent], list[CacheEvent]] = ([], [])
        self.python.events, self.compiled.events = self.events
        self.holds: list[tuple[Hold, Hold]] = []
        self.released: list[tuple[Hold, Hold]] = []
        self.num_pages = 0

    def both(self, call: Callable[[PrefixCache, int], Any]) -> tuple[Any, Any]:
        """The results of a call to each, which must be alike; None for each where it was refused."""
        results, seen = [], []
        for index, cache in enumerate((self.python, self.compiled)):
            try:
                results.append(call(cache, index))
                seen.append(plain(results[-1]))
            except (MemoryViolation, TypeError) as refusal:
                results.append(None)
                seen.append((type(refusal), str(refusal)))
        assert seen[0] == seen[1]
        return results[0], results[1]

    def do(self, deeds: Sequence[Deed]) -> None:
        for deed in deeds:
            self.one(deed)
            self.agree()

    def agree(self) -> None:
        self.compiled.check_all()
        reference = self.compiled.reference()
        assert state(reference) == state(self.python)
        assert (self.compiled.evictable, self.compiled.held) == (self.python.evictable, self.python.held)
        assert self.compiled.statistics() == self.python.statistics()
        assert list(map(plain, self.events[0])) == list(map(plain, self.events[1]))

    def tokens(self, deed: Deed, tail: int = 0) -> Int32s:
        words = [token for word in deed.words for token in [word // 2] * (self.page_size - 1) + [word]]
        return array(*words, *[9] * (tail % self.page_size))

    def one(self, deed: Deed) -> None:
        """See `VERBS`."""
        if deed.verb == "match":
            tokens = self.tokens(deed, deed.tail)
            # Every second one as a view into something wider: arrays need not be contiguous.
            tokens = np.repeat(tokens, 2)[::2] if deed.tail % 2 else tokens
            self.keep(self.both(lambda cache, _: cache.match_and_hold(tokens, deed.namespace, deed.number)))
        elif deed.verb in ("insert", "extend", "partial", "wide"):
            self.insert(deed)
        elif deed.verb in ("release", "withdraw", "forget") and self.holds:
            pair = self.holds.pop(deed.which % len(self.holds))
            if deed.verb != "forget":
                self.both(lambda cache, index: cache.release(pair[index], deed.fence, used=deed.verb == "release"))
                self.released.append(pair)
        elif deed.verb == "release again" and self.released:
            pair = self.released[deed.which % len(self.released)]
            self.both(lambda cache, index: cache.release(pair[index], deed.fence))
            self.both(lambda _, index: pair[index].pages)
        elif deed.verb == "foreign":
            self.foreign(deed)
        elif deed.verb == "look" and self.holds:
            pair = self.holds[deed.which % len(self.holds)]
            self.both(lambda _, index: pair[index].pages)
        elif deed.verb == "evict":
            self.both(lambda cache, _: cache.evict(deed.which))
        elif deed.verb == "reset":
            self.both(lambda cache, _: cache.reset())
        elif deed.verb == "listen":
            off = self.python.events is not None
            self.python.events, self.compiled.events = (None, None) if off else self.events

    def insert(self, deed: Deed) -> None:
        tokens = self.tokens(deed, deed.tail if deed.verb == "partial" else 0)
        pages = np.arange(self.num_pages, self.num_pages + len(deed.words), dtype=np.int32)
        self.num_pages += len(pages)
        before: tuple[Hold, Hold] | tuple[None, None] = (None, None)
        if deed.verb == "extend" and self.holds:
            before = self.holds.pop(deed.which % len(self.holds))
        offered: Any = tokens.astype(np.int64) if deed.verb == "wide" else tokens

        def call(cache: PrefixCache, index: int) -> Insertion:
            return cache.insert(offered, pages, deed.namespace, before[index], deed.fence, deed.number)

        results = self.both(call)
        tokens[:] = pages[:] = -1  # The arrays are the caller's again.
        if results[0] is None:
            return
        if before[0] is not None:
            self.released.append(before)
        self.keep((results[0].hold, results[1].hold))

    def foreign(self, deed: Deed) -> None:
        """A hold of another cache of the same kind, or of another kind."""
        tokens = self.tokens(deed)

        def call(cache: PrefixCache, _: int) -> None:
            other: PrefixCache = type(cache)(self.page_size)  # type: ignore[call-arg]
            given = other.match_and_hold(tokens, "")
            if deed.which % 2:
                given = EmptyHold(None)  # type: ignore[arg-type]
            cache.release(given, deed.fence)

        self.both(call)

    def keep(self, pair: tuple[Hold, Hold]) -> None:
        assert type(pair[1]) is CompiledHold
        self.holds.append(pair)
