"""The radix cache with a compiled core: decides what `RadixCache` decides, in less time.

The core (memory/prefix/native/, C++) is built when the package is installed where there is a compiler; an installation
without it is whole, and says so when this cache is asked for. `RadixCache` stays the reference: tests drive both side
by side, and for checks the compiled tree is written out as a Python one.

    native/radix.cpp     methods of the Python type           native/tree.h       what RadixCache does
    native/objects.h     holds                                native/children.h   which child goes on with which page
    native/python.h      arguments, arrays, errors            native/order.h      who leaves first
    native/moves.h       pages of a pool and the digest: memory/moves.py
"""

from __future__ import annotations

from typing import ClassVar, Self

from pawl.memory import moves
from pawl.memory.moves import Moves
from pawl.memory.prefix.events import Content
from pawl.memory.prefix.order import POLICIES, make_order
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.prefix.snapshot import restore

_INTERFACE = 2
"""What this file expects of the extension module."""


class CompiledUnavailable(Exception):
    """The compiled core cannot be used here. `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


_OTHER_SOURCES = "it was built from other sources than these; install Pawl again (`make setup`)"
_problem = ""
_moves: Moves = moves
try:
    from pawl.memory.prefix._radix import INTERFACE, CompiledTree
except Exception as error:  # The module imports names of ours; one that was built before they moved fails in any way.
    missing = isinstance(error, ModuleNotFoundError) and error.name == "pawl.memory.prefix._radix"
    _problem = f"it was not built when Pawl was installed ({error})" if missing else f"{_OTHER_SOURCES} ({error})"

    class CompiledTree:  # type: ignore[no-redef]
        """Stands where the type would be."""

        def __new__(cls, page_size: int, policy: int) -> Self:
            """There is none. Raises CompiledUnavailable."""
            raise CompiledUnavailable(_problem)

else:
    from pawl.memory.prefix import _radix

    if INTERFACE != _INTERFACE:
        _problem = _OTHER_SOURCES
    else:
        _moves = _radix


def load() -> None:
    """Return if the compiled core can be used. Raises CompiledUnavailable."""
    if _problem:
        raise CompiledUnavailable(_problem)


class CompiledRadixCache(CompiledTree):
    """Prefix cache with sharing; `eviction` names the policy by which pages leave. Implements `PrefixCache`.

    `match_and_hold`, `insert`, `release`, `evict`, `reset`, `statistics`, `evictable`, `held` and `events` are those of
    `RadixCache`. Arrays it returns are read-only, those of an eviction too, and pages it takes must be int32.
    """

    __slots__ = ("eviction",)

    eviction: str
    moves: ClassVar[Moves] = _moves
    """Those of pages, compiled as well (memory/moves.py)."""

    def __new__(cls, page_size: int, eviction: str = "lru") -> Self:
        """Raises ValueError for an unknown policy or an empty page, and CompiledUnavailable."""
        load()
        make_order(eviction)
        if page_size < 1:
            raise ValueError(f"a page holds at least one token, not {page_size}")
        cache = super().__new__(cls, page_size, list(POLICIES).index(eviction))
        cache.eviction = eviction
        return cache

    def reference(self) -> RadixCache:
        """A Python cache in the same state, holds given out left aside. O(size), for checks and tests."""
        reference = RadixCache(self.page_size, self.eviction)
        restore(reference, self.snapshot())
        statistics = self.statistics()
        # Those of the core and not of its nodes, so that the reference's invariants compare them.
        reference._num_nodes, reference._num_holds = statistics["nodes"], statistics["holds"]
        reference._held, reference._evictable = self.held, self.evictable
        reference._counts.update((name, statistics[name]) for name in reference._counts)
        return reference

    def content(self) -> Content:
        """Every cached page and where it stands, O(size)."""
        return self.reference().content()

    def check_all(self) -> None:
        """Every property of the structure, O(size): those of the reference, and those of what it does not have."""
        self.check_links()
        self.reference().check_all()


if __name__ == "__main__":
    # Part of the set-up: says which core there is.
    try:
        load()
        print("prefix cache: compiled core")
    except CompiledUnavailable as missing:
        print(f"prefix cache: Python core; no compiled one, {missing}")
