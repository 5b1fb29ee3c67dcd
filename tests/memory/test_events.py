"""What the cache tells: replayed from nothing, its events give its content again, and an impossible one is noticed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings

from pawl.memory.prefix.chunk import ChunkCache
from pawl.memory.prefix.events import Block, CacheEvent, Cleared, Mirror, Removed, Stored
from pawl.memory.prefix.order import POLICIES
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation
from tests.memory.tree_model import MOVES, Move, TreeModel, array, play, random_moves


def listened(page_size: int) -> tuple[RadixCache, list[CacheEvent]]:
    """A cache with a listener, and the list it writes to."""
    cache = RadixCache(page_size)
    events: list[CacheEvent] = []
    cache.events = events
    return cache, events


def follow(cache: RadixCache, model: TreeModel, moves: list[Move], lost: int | None = None) -> list[bool]:
    """A history and a listener that misses event number `lost`. For each event, whether it told something new."""
    events: list[CacheEvent] = []
    cache.events = events
    mirror, changed = Mirror(cache.page_size), list[bool]()
    for _ in play(cache, model, moves):
        for event in events:
            before = dict(mirror.content)
            if len(changed) != lost:
                mirror.replay([event])
            changed.append(mirror.content != before)
        events.clear()
        assert mirror.content == cache.content()
        # The content is not only what the events say, but what there is.
        assert set(mirror.content) == set(model.page.values())
        for part, page in model.page.items():
            above = model.page[model.parts(part)[-2]] if len(part[1]) > cache.page_size else None
            assert mirror.content[page] == Block(part[0], above, part[1][-cache.page_size :])
    return changed


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15)
@given(moves=MOVES)
def test_events_replayed_from_nothing_give_the_content(policy: str, page_size: int, moves: list[Move]) -> None:
    follow(RadixCache(page_size, policy), TreeModel(page_size, policy), moves)


def test_a_lost_event_is_caught_whichever_it_is() -> None:
    """The canary of the replay. Only to clear an empty cache says nothing."""
    for seed in range(10):
        moves = random_moves(Random(seed), 30)
        for index, matters in enumerate(follow(RadixCache(1), TreeModel(1, "lru"), moves)):
            if matters:
                with pytest.raises((AssertionError, MemoryViolation)):
                    follow(RadixCache(1), TreeModel(1, "lru"), moves, lost=index)


def test_one_event_for_each_change_and_none_for_a_split_or_a_duplicate() -> None:
    cache, events = listened(2)
    tokens, pages = array(1, 2, 3, 4, 5, 6), array(7, 8, 9)
    first = cache.insert(tokens, pages, "a", None, 0).hold
    again = cache.insert(tokens[:4], array(20, 21), "a", None, 0).hold
    assert cache.statistics()["splits"] == 1
    longer = cache.insert(array(1, 2, 3, 4, 9, 9), array(30, 31, 32), "a", None, 0).hold
    for hold in (first, again, longer):
        cache.release(hold, 0)
    cache.evict(1)
    told = [
        (event.namespace, event.parent, event.tokens.tolist(), event.pages.tolist())
        if isinstance(event, Stored)
        else event
        for event in events
    ]
    assert told[:2] == [("a", None, [1, 2, 3, 4, 5, 6], [7, 8, 9]), ("a", 8, [9, 9], [32])]
    assert len(events) == 3
    assert isinstance(events[2], Removed)
    assert events[2].pages.tolist() == [9]
    assert cache.evict(0).pages.tolist() == []
    cache.reset()
    assert events[3:] == [Cleared()]


def test_a_refused_reset_tells_nothing() -> None:
    cache, events = listened(1)
    cache.insert(array(1), array(0), "", None, 0)
    with pytest.raises(MemoryViolation, match="not reset"):
        cache.reset()
    assert [type(event) for event in events] == [Stored]


def test_events_are_the_listeners_own() -> None:
    cache, events = listened(1)
    tokens = array(1, 2)
    cache.insert(tokens, array(5, 6), "", None, 0)
    tokens[:] = 0
    (stored,) = events
    assert isinstance(stored, Stored)
    assert stored.tokens.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        stored.pages[0] = 9


def test_nobody_is_told_where_nobody_listens() -> None:
    cache = RadixCache(1)
    cache.release(cache.insert(array(1), array(0), "", None, 0).hold, 0)
    cache.evict(1)
    assert cache.events is None
    silent = ChunkCache(1)
    events: list[CacheEvent] = []
    silent.events = events
    silent.insert(array(1), array(0), "", silent.match_and_hold(array(1), ""), 0)
    silent.reset()
    assert (events, silent.content()) == ([], {})


STORED = Stored("", None, array(1, 2, 3), array(0, 1, 2))
IMPOSSIBLE: dict[str, tuple[str, list[CacheEvent]]] = {
    "a page that is there": ("taken once", [Stored("", None, array(9), array(1))]),
    "a place that is taken": ("taken once", [Stored("", 0, array(2), array(9))]),
    "a page twice": ("taken once", [Stored("", 2, array(7, 8), array(9, 9))]),
    "below a page that is not there": ("below one of its namespace", [Stored("", 9, array(7), array(8))]),
    "below a page of another namespace": ("below one of its namespace", [Stored("a", 2, array(7), array(8))]),
    "tokens without a page": ("whole pages", [Stored("", 2, array(7, 8), array(9))]),
    "nothing stored": ("whole pages", [Stored("", 2, array(), array())]),
    "a page that was never stored": ("was stored", [Removed(array(9))]),
    "a page that left before": ("was stored", [Removed(array(2)), Removed(array(2))]),
    "a parent before its child": ("before those below", [Removed(array(1))]),
    "a parent without one of its children": ("before those below", [Removed(array(1, 0))]),
    "after everything was cleared": ("was stored", [Cleared(), Removed(array(2))]),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_event_is_noticed(name: str) -> None:
    statement, events = IMPOSSIBLE[name]
    mirror = Mirror(1)
    mirror.replay([STORED])
    with pytest.raises(MemoryViolation, match=statement):
        mirror.replay(events)


def test_parents_may_leave_together_with_their_children() -> None:
    mirror = Mirror(1)
    mirror.replay([STORED, Removed(array(1, 2)), Stored("", 0, array(2), array(1)), Cleared(), STORED])
    assert mirror.content == {0: Block("", None, (1,)), 1: Block("", 0, (2,)), 2: Block("", 1, (3,))}


@pytest.mark.parametrize("others", [[], [4]])
def test_a_page_that_leaves_before_one_below_it_is_noticed_whichever_of_those_that_leave_it_is(
    others: list[int],
) -> None:
    mirror = Mirror(1)
    mirror.replay([Stored("", None, array(5, 6), array(1, 2)), Stored("", None, array(7), array(4))])
    with pytest.raises(MemoryViolation, match="a page never leaves before those below it"):
        mirror.replay([Removed(array(*others, 1))])
