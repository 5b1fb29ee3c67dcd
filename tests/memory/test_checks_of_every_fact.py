"""Every number in memory, changed by one: either the check of all of memory notices it wherever it stands, or it is no
fact that could be wrong at that moment, and is named below with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from pawl.memory.memory import Memory
from pawl.memory.prefix.radix import RadixCache
from tests.memory import test_checks
from tests.memory.test_window_pool import hybrid, serve

Change = tuple[Callable[[], object], Callable[[], object]]
"""Makes it, and puts it right again."""

NEVER = {
    "a size, which nothing changes": {
        *("Memory.max_context", "Memory._page_size", "PagePool.page_size", "WindowPool.page_size"),
        *(
            "ChunkCache.page_size",
            "RadixCache.page_size",
            "SlidingCache.page_size",
            "WindowPool.behind",
            "WindowPool.most",
        ),
        *("Digest._num_streams", "RadixCache._counts_uses", "SlidingCache._counts_uses", "RankedOrder.counts_uses"),
    },
    "statistics": {"ChunkCache._counts", "RadixCache._counts", "SlidingCache._counts"},
    "the cache that keeps nothing only counts what it lends": {"ChunkCache._num_holds", "EmptyHold.released"},
    "what comes next, which may be anything that has not been": {
        *("Ledger._next_epoch", "Ledger.resolved", "PageOrder._latest", "PageOrder._stored", "RankedOrder._clock"),
    },
    "which step may still touch it: none is in flight": {"Node.fence", "Root.fence", "WindowPool._fence"},
    "of a digest that is undone, or of what a prefix was called, which is told and not kept": {
        *("Digest.undoing", "Escrow._keys", "PageTable._held", "RadixHold.released", "Rank.created", "Rank.priority"),
    },
    "weighs nothing where the page has never been given back": {"PagePool._keys"},
}
SOMETIMES = {
    "the page size of one kind of cache follows from another": {"Memory.page_size"},
    "the top of the stack only: below it is what is not free": {"PagePool._free_stack"},
    "the digest has it of pages, rows and slots that are in use": {
        *("PagePool.generation", "PageTable._hold_keys", "PageTable._index_keys", "PageTable._length_keys"),
        *("PageTable._namespaces", "PageTable._page_keys", "PageTable._slot_keys", "PageTable.length"),
        *("PageTable.pages", "Partners._full_keys", "Partners._window_keys", "Partners.full_page", "SlotPool._keys"),
        *("WindowPool._present", "WindowPool._start_keys"),
    },
    "of those that wait to leave, and of what decides who is next": {
        *("Node.holds", "PageOrder._stamp", "Rank.entry", "Rank.hits", "Rank.used"),
    },
}


def of_windows(cache: str) -> Memory:
    memory, _ = hybrid(num_window_pages=8, cache=cache)
    serve(memory, 1, 2, 3, 4, 5, whole=False)
    return memory


def ranked(monkeypatch: pytest.MonkeyPatch) -> Memory:
    with monkeypatch.context() as patch:
        patch.setattr(test_checks, "RadixCache", lambda page: RadixCache(page, "lfu"))
        return test_checks.healthy()[0]


def attributes(owner: object) -> dict[str, Any]:
    """Those of its dictionary and of its slots."""
    slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(owner, name)]
    return {**getattr(owner, "__dict__", {}), **{name: getattr(owner, name) for name in slots}}


def is_ours(value: object) -> bool:
    return type(value).__module__.startswith("pawl.memory")


def numbers(root: object) -> Iterator[tuple[str, Change]]:
    """All there are below `root`, by class and attribute, each with one more, one less, or the other truth value."""
    seen: set[int] = set()
    left = [root]
    while left:
        owner = left.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for attribute, value in attributes(owner).items():
            name = f"{type(owner).__name__}.{attribute}"
            if is_ours(value):
                left.append(value)
            elif isinstance(value, bool | int):
                yield from ((name, change) for change in changes(partial(setattr, owner, attribute), value))
            elif isinstance(value, list | dict) or (isinstance(value, np.ndarray) and value.flags.writeable):
                places = np.ndindex(value.shape) if isinstance(value, np.ndarray) else positions(value)
                for at in list(places):
                    each = value[at]
                    if is_ours(each):
                        left.append(each)
                    elif isinstance(each, bool | int | np.generic):
                        yield from ((name, change) for change in changes(partial(value.__setitem__, at), each))


def positions(value: list[Any] | dict[Any, Any]) -> Iterator[Any]:
    return iter(value) if isinstance(value, dict) else iter(range(len(value)))


def changes(put: Callable[[Any], object], value: Any) -> Iterator[Change]:
    others = (not value,) if isinstance(value, bool | np.bool_) else (value + 1, value - 1)
    return ((partial(put, other), partial(put, value)) for other in others)


def is_noticed(memory: Memory, change: Change) -> bool:
    make, undo = change
    make()
    try:
        memory.check_all()
    except Exception:
        return True
    finally:
        undo()
    return False


def test_whatever_is_wrong_with_a_fact_of_memory_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, set[bool]] = defaultdict(set)
    for memory in (test_checks.healthy()[0], ranked(monkeypatch), of_windows("radix"), of_windows("chunk")):
        for name, change in list(numbers(memory)):
            shown[name].add(is_noticed(memory, change))
        memory.check_all()
    never, sometimes = (set().union(*named.values()) for named in (NEVER, SOMETIMES))
    assert {name for name, noticed in shown.items() if noticed == {False}} == never
    assert {name for name, noticed in shown.items() if noticed == {False, True}} == sometimes
    assert sum(noticed == {True} for noticed in shown.values()) >= 25
