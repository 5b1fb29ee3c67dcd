"""Eviction policies: who leaves next, beside a model that looks at every edge; and what each policy is for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings

from pawl.memory.prefix.base import Hold
from pawl.memory.prefix.node import NO_RANK, Node, Rank
from pawl.memory.prefix.order import POLICIES, Order, RankedOrder, make_order
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation
from tests.memory.tree_model import FIRST_TO_LEAVE, MOVES, Move, TreeModel, array, play, random_moves


def follow(cache: RadixCache, model: TreeModel, moves: list[Move]) -> None:
    """A history, with every property checked after each move."""
    for _ in play(cache, model, moves):
        cache.check_all()
        held = {part for prefix in model.held for part in model.parts(prefix)}
        assert (cache.held, cache.evictable) == (len(held), len(model.page) - len(held))


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40)
@given(moves=MOVES)
def test_victims_are_those_of_a_search_through_all_leaves(policy: str, page_size: int, moves: list[Move]) -> None:
    follow(RadixCache(page_size, policy), TreeModel(page_size, policy), moves)


def test_every_policy_is_compared_with_the_model_and_an_unknown_one_is_refused() -> None:
    assert set(POLICIES) == set(FIRST_TO_LEAVE)
    with pytest.raises(ValueError, match="unknown eviction policy 'best'; there are: lru, lfu, fifo"):
        make_order("best")


# ---- one history, six ends ----

A, B, C = (1, 1), (2, 2), (3, 3)


def use(cache: RadixCache, words: tuple[int, ...], pages: tuple[int, ...] = (), priority: int = 0) -> None:
    """One request: it finds what there is, and caches the rest."""
    hold: Hold = cache.match_and_hold(array(*words), "", priority)
    if pages:
        hold = cache.insert(array(*words), array(*pages), "", hold, 0, priority).hold
    cache.release(hold, 0)


def used_cache(policy: str) -> RadixCache:
    """A made first, used twice, at best at priority 1; B made second, at 5; C made last, used most and last, at 0."""
    cache = RadixCache(1, policy)
    use(cache, A, (0, 1), priority=1)
    use(cache, B, (2, 3), priority=5)
    use(cache, C, (4, 5), priority=-3)
    use(cache, A, priority=0)
    use(cache, C)
    use(cache, C)
    return cache


@pytest.mark.parametrize(
    ("policy", "leaving"),
    [
        ("lru", [B, A, C]),
        ("mru", [C, A, B]),
        ("lfu", [B, A, C]),
        ("fifo", [A, B, C]),
        ("filo", [C, B, A]),
        ("priority", [C, A, B]),
    ],
)
def test_each_policy_has_an_order_of_its_own(policy: str, leaving: list[tuple[int, ...]]) -> None:
    cache = used_cache(policy)
    first_page = {0: A, 2: B, 4: C}
    assert [first_page[int(cache.evict(1).pages[0])] for _ in range(3)] == leaving


def test_a_request_counts_once_however_many_chunks_it_has() -> None:
    cache = RadixCache(1, "lfu")
    hold = cache.insert(array(1), array(0), "", None, 0).hold
    for length in range(2, 6):
        hold = cache.insert(array(*range(1, length + 1)), array(*range(length)), "", hold, 0).hold
    cache.release(hold, 0)
    use(cache, (9,), (7,))
    use(cache, (9,))
    # Five chunks, one request: less wanted than the page that two requests have used.
    assert cache.evict(1).pages.tolist() == [4]
    assert [cache.evict(1).pages.tolist() for _ in range(4)] == [[3], [2], [1], [0]]


def test_a_request_that_was_tried_often_and_never_went_on_does_not_count() -> None:
    cache = RadixCache(1, "lfu")
    use(cache, (1,), (0,))
    use(cache, (2,), (1,))
    use(cache, (2,))
    for _ in range(5):
        cache.release(cache.match_and_hold(array(1), ""), 0, used=False)
    assert cache.evict(1).pages.tolist() == [0]


def test_a_shared_beginning_has_the_best_priority_of_its_users() -> None:
    cache = RadixCache(1, "priority")
    use(cache, (1, 2), (0, 1), priority=3)
    use(cache, (1, 5), (0, 2), priority=9)
    use(cache, (7,), (3,), priority=6)
    # [1] was cut off an edge of priority 3 and has had a user of 9 since.
    assert [cache.evict(1).pages.tolist() for _ in range(4)] == [[1], [3], [2], [0]]


def test_negative_priorities_leave_before_none() -> None:
    cache = RadixCache(1, "priority")
    use(cache, (1,), (0,), priority=0)
    use(cache, (2,), (1,), priority=-4)
    assert cache.evict(1).pages.tolist() == [1]


# ---- cost ----


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"lru"}))
def test_stale_entries_never_outnumber_the_leaves_that_wait_by_much(policy: str) -> None:
    cache = RadixCache(1, policy)
    for word in range(100):
        use(cache, (word,), (word,))
    order = cache._order
    assert isinstance(order, RankedOrder)
    most = 0
    for turn in range(2000):
        use(cache, (turn % 100,))
        most = max(most, len(order._heap))
    holds = [cache.match_and_hold(array(word), "") for word in range(100)]
    assert len(order._heap) <= 64
    assert 100 < most <= 2 * 100 + 64
    for hold in holds:
        cache.release(hold, 0)
    cache.check_all()
    order._waiting += 1
    with pytest.raises(MemoryViolation, match="stale entries are few"):
        cache.check_all()


def test_the_default_policy_keeps_no_books_on_nodes() -> None:
    cache = used_cache("lru")
    assert all(node.rank is NO_RANK for root in cache._roots.values() for node in root.children.values())
    assert (NO_RANK.hits, NO_RANK.used, NO_RANK.entry) == (0, 0, 0)


# ---- canaries: the comparison must fail where the policy is wrong ----


class ForgetsAtSplit(RankedOrder):
    def split(self, upper: Node, lower: Node) -> None:
        super().created(upper)


class ForgetsParents(RankedOrder):
    def dropped(self, victim: Node) -> None:
        self.remove(victim)


class KeepsHeldEntries(RankedOrder):
    def remove(self, node: Node) -> None:
        if not node.holds:
            super().remove(node)


class OffersParents(RankedOrder):
    def push(self, node: Node) -> None:
        super().push(node)
        if node.children:
            self._offer(node)


class NeverForgetsAttempts(RankedOrder):
    def unuse(self, node: Node) -> None:
        return


class LatestPriority(RankedOrder):
    def use(self, node: Node, priority: int) -> None:
        super().use(node, priority)
        node.rank.priority = priority


def by_age(rank: Rank) -> int:
    return rank.created


def by_hits(rank: Rank) -> tuple[int, int]:
    return rank.hits, rank.used


def by_priority(rank: Rank) -> tuple[int, int]:
    return rank.priority, rank.used


def by_hits_only(rank: Rank) -> int:
    return rank.hits


WRONG: dict[str, tuple[str, Callable[[], Order]]] = {
    "a split makes its upper half young": ("fifo", partial(ForgetsAtSplit, by_age, counts_uses=False)),
    "a split forgets the hits": ("lfu", partial(ForgetsAtSplit, by_hits, counts_uses=True)),
    "a split forgets the priority": ("priority", partial(ForgetsAtSplit, by_priority, counts_uses=True)),
    "a parent is not offered when its last child left": ("fifo", partial(ForgetsParents, by_age, counts_uses=False)),
    "a held leaf keeps its turn": ("fifo", partial(KeepsHeldEntries, by_age, counts_uses=False)),
    "a parent is offered before its children": ("fifo", partial(OffersParents, by_age, counts_uses=False)),
    "the latest priority counts, not the best": ("priority", partial(LatestPriority, by_priority, counts_uses=True)),
    "equal hits are told apart by age": ("lfu", partial(RankedOrder, by_hits_only, counts_uses=True)),
    "attempts count as uses": ("lfu", partial(NeverForgetsAttempts, by_hits, counts_uses=True)),
    "nobody counts": ("lfu", partial(RankedOrder, by_hits, counts_uses=False)),
}


def histories_under(policy: str, make: Callable[[], Order]) -> None:
    """Many histories of a cache that has been given another order than the policy's."""
    for seed in range(300):
        cache = RadixCache(1, policy)
        cache._order = make()
        cache._counts_uses = cache._order.counts_uses
        follow(cache, TreeModel(1, policy), random_moves(Random(seed), 30))


@pytest.mark.parametrize("defect", WRONG)
def test_a_wrong_policy_is_caught(defect: str) -> None:
    with pytest.raises((AssertionError, MemoryViolation)):
        histories_under(*WRONG[defect])
