"""What only compiled code can get wrong: arguments, lifetimes, the collector, memory that is never given back."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pawl.memory.prefix.compiled import CompiledRadixCache
from pawl.memory.prefix.events import CacheEvent
from pawl.memory.prefix.order import POLICIES
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation
from tests.memory.side_by_side import CompiledHold
from tests.memory.tree_model import array


def test_wrong_arguments_are_refused_and_change_nothing() -> None:
    cache = CompiledRadixCache(2)
    cache.insert(array(1, 2), array(5), "", None, 0)
    before = cache.statistics()
    tokens, pages = array(1, 2), array(5)
    wrong: list[Callable[[], object]] = [
        lambda: cache.match_and_hold([1, 2], ""),  # type: ignore[arg-type]
        lambda: cache.match_and_hold(tokens.astype(np.float32), ""),  # type: ignore[arg-type]
        lambda: cache.match_and_hold(tokens.astype(">i4"), ""),
        lambda: cache.match_and_hold(tokens.reshape(1, 2), ""),
        lambda: cache.match_and_hold(tokens, None),  # type: ignore[arg-type]
        lambda: cache.match_and_hold(tokens, b""),  # type: ignore[arg-type]
        lambda: cache.match_and_hold(tokens),  # type: ignore[call-arg]
        lambda: cache.match_and_hold(tokens, "", 0, 0),  # type: ignore[call-arg]
        lambda: cache.match_and_hold(tokens, "", depth=1),  # type: ignore[call-arg]
        lambda: cache.match_and_hold(tokens, "", tokens=tokens),  # type: ignore[misc]
        lambda: cache.insert(tokens, pages.astype(np.int64), "", None, 0),  # type: ignore[arg-type]
        lambda: cache.insert(tokens, pages, "", None, "0"),  # type: ignore[arg-type]
        lambda: cache.evict(None),  # type: ignore[arg-type]
        lambda: setattr(cache, "events", ()),
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()
    with pytest.raises(OverflowError):
        cache.match_and_hold(tokens, "", 1 << 63)
    with pytest.raises(AttributeError):
        cache.release(object(), 0)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        cache.held = 0  # type: ignore[misc]
    assert cache.statistics() == before
    cache.check_all()


def test_names_of_arguments_are_those_of_the_interface() -> None:
    cache = CompiledRadixCache(page_size=1, eviction="lfu")
    hold, adopted = cache.insert(tokens=array(1), pages=array(7), namespace="a", hold=None, fence=1, priority=2)
    assert adopted.tolist() == [7]
    cache.release(hold=hold, fence=3, used=False)
    cache.release(cache.match_and_hold(tokens=array(1), namespace="a", priority=1), fence=2)
    assert cache.evict(count=1) == (array(7), 3)


def test_a_policy_or_page_size_that_there_is_not_is_refused_as_by_the_reference() -> None:
    for arguments in ((0, "lru"), (-3, "lru"), (16, "best")):
        said = []
        for make in (RadixCache, CompiledRadixCache):
            with pytest.raises(ValueError, match=r"page holds|unknown eviction") as refusal:
                make(*arguments)
            said.append(str(refusal.value))
        assert said[0] == said[1]


def test_namespaces_may_be_any_text() -> None:
    class Name(str):
        __slots__ = ()

        def __hash__(self) -> int:
            raise AssertionError("nobody's code is run by a lookup")

    cache = CompiledRadixCache(1)
    for index, namespace in enumerate(("", "é", "\ud800", "a" * 1000, "\0")):
        cache.insert(array(1), array(index), namespace, None, 0)
    for index, namespace in enumerate(("", "é", "\ud800", "a" * 1000, "\0")):
        assert cache.match_and_hold(array(1), Name(namespace)).pages.tolist() == [index]
    assert cache.statistics()["namespaces"] == 5
    cache.check_all()


def test_holds_keep_their_cache_alive_and_dropped_holds_harm_nothing() -> None:
    cache = CompiledRadixCache(1)
    hold = cache.insert(array(1, 2, 3), array(0, 1, 2), "", None, 0).hold
    for _ in range(100):
        cache.match_and_hold(array(1, 2), "")
    # Nobody said which step may still touch the pages, so they stay held, as in the reference.
    assert cache.statistics()["holds"] == 101
    assert cache.evict(3).pages.tolist() == []
    cache.release(hold, 0)
    assert cache.evict(3).pages.tolist() == [2]
    cache.check_all()
    last = cache.match_and_hold(array(1, 2), "")
    assert type(last) is CompiledHold
    del cache
    gc.collect()
    assert last.pages.tolist() == [0, 1]


def test_a_cycle_of_a_cache_its_events_and_its_holds_is_collected() -> None:
    class Listener(list[Any]):
        """Can be watched."""

    cache, events = CompiledRadixCache(1), Listener()
    watched = weakref.ref(events)
    cache.events = events
    events.append(cache.insert(array(1, 2), array(0, 1), "", None, 0).hold)
    events.append(cache)
    del cache, events
    gc.collect()
    assert watched() is None


def test_a_finalizer_that_comes_back_in_finds_a_whole_tree() -> None:
    """The collector may run at any allocation; here it runs at every one, and each time uses the cache."""
    cache = CompiledRadixCache(1, "lfu")
    visits = 0

    class Visitor:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal visits
            visits += 1
            cache.check_all()
            cache.release(cache.match_and_hold(array(1, 2, visits % 5), ""), 0)
            cache.evict(1)

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for number in range(200):
            Visitor()
            hold = cache.match_and_hold(array(1, 2, number % 7, number), "")
            hold = cache.insert(array(1, 2, number % 7, number), np.arange(4, dtype=np.int32) + 4 * number, "", hold, 0)
            assert len(hold.hold.pages) == 4
            cache.release(hold.hold, 0)
    finally:
        gc.set_threshold(*before)
    assert visits > 100
    cache.check_links()


def kilobytes() -> int:
    """The most memory this process has had, KiB (bytes where the system says so)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


LEAK_CHECK = """
import gc, sys
from tests.memory.test_compiled_type import blocks_and_memory_of_many_lives
print(*blocks_and_memory_of_many_lives())
"""


def one_life(policy: str) -> None:
    """A cache of about 4 MiB through everything that allocates, and then dropped with holds given out."""
    cache = CompiledRadixCache(16, policy)
    events: list[CacheEvent] = []
    cache.events = events
    tokens = np.arange(16 * 400, dtype=np.int32)
    for number in range(150):
        tokens[16 * (number % 97)] = -number
        hold = cache.match_and_hold(tokens, str(number % 3))
        inserted = cache.insert(tokens, np.arange(400, dtype=np.int32), str(number % 3), hold, number)
        assert len(inserted.hold.pages) == 400
        if number % 5:
            cache.release(inserted.hold, 0)
        cache.evict(30)
        with pytest.raises(MemoryViolation, match="once"):
            cache.release(hold, 0)
        with pytest.raises(MemoryViolation, match="not reset"):
            cache.reset()
        with pytest.raises(MemoryViolation, match="whole"):
            cache.insert(tokens[:9], array(), "", None, 0)
    assert cache.snapshot()
    cache.statistics()


def blocks_and_memory_of_many_lives() -> tuple[int, int]:
    """By how many objects and KiB a process has grown after many caches, the first of each policy aside."""
    for policy in POLICIES:
        one_life(policy)
    gc.collect()
    memory, blocks = kilobytes(), sys.getallocatedblocks()
    for policy in POLICIES:
        one_life(policy)
        one_life(policy)
        gc.collect()
    return sys.getallocatedblocks() - blocks, kilobytes() - memory


def test_nothing_is_left_of_caches_that_are_gone() -> None:
    """In a process of its own, where nobody else allocates."""
    done = subprocess.run([sys.executable, "-c", LEAK_CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    blocks, memory = map(int, done.stdout.split())
    # A single object, or block of an edge, that is left of each call would be thousands of blocks, or 20 MiB.
    assert blocks < 1000
    assert memory < 4096
