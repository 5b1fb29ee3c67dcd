"""The pool of pages by itself: classes of pages, fences, generations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.page_pool import PagePool
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.transaction import Ledger, Transaction
from pawl.memory.violation import MemoryViolation


def pool_of(total: int) -> tuple[PagePool, Ledger]:
    ledger = Ledger()
    return PagePool(total, 16, ledger), ledger


def take(pool: PagePool, transaction: Transaction, count: int) -> Int32s:
    pages = pool.take(transaction, count)
    assert pages is not None
    return pages


def test_pages_go_out_lowest_first_and_come_back_as_they_were() -> None:
    pool, ledger = pool_of(4)
    transaction = ledger.begin()
    before = pool.free_pages.tolist()
    assert take(pool, transaction, 3).tolist() == [0, 1, 2]
    assert take(pool, transaction, 1).tolist() == [3]
    transaction.rollback()
    assert pool.free_pages.tolist() == before
    pool.check_all()


def test_too_few_pages_are_refused_without_a_change() -> None:
    pool, ledger = pool_of(4)
    transaction = ledger.begin()
    take(pool, transaction, 3)
    before = (pool.counters(), pool.free_pages.tolist(), transaction.savepoint())
    assert pool.take(transaction, 2) is None
    assert (pool.counters(), pool.free_pages.tolist(), transaction.savepoint()) == before
    assert take(pool, transaction, 0).tolist() == []


def test_a_released_page_is_not_given_out_while_a_launched_step_may_touch_it() -> None:
    pool, ledger = pool_of(2)
    first = ledger.begin()
    pages = take(pool, first, 2)
    ledger.prepare(first)
    second = ledger.begin()
    ledger.prepare(second)
    pool.release(pages, ledger.fence)
    assert (pool.free, pool.deferred) == (0, 2)
    ledger.commit(first)
    assert pool.take(ledger.begin(), 1) is None
    ledger.commit(second)
    assert (pool.free, pool.deferred) == (2, 0)
    pool.check_all()


def test_a_shared_page_outlives_all_but_its_last_referrer() -> None:
    pool, ledger = pool_of(2)
    pages = take(pool, ledger.begin(), 1)
    pool.adopt(pages)
    pool.share(pages)
    for left in (2, 1):
        pool.release(pages, 0)
        assert pool.refcount[pages].tolist() == [left]
        assert (pool.cached, pool.free) == (1, 1)
    pool.evict(pages, 0)
    assert (pool.cached, pool.free) == (0, 2)
    pool.check_all()


def test_the_generation_of_a_page_rises_each_time_it_is_given_back() -> None:
    pool, ledger = pool_of(1)
    handles = []
    for _ in range(3):
        transaction = ledger.begin()
        pages = take(pool, transaction, 1)
        handles.append((int(pages[0]), int(pool.generation[pages[0]])))
        transaction.rollback()
        ledger.discard(transaction)
        pages = take(pool, transaction, 1)
        handles.append((int(pages[0]), int(pool.generation[pages[0]])))
        pool.release(pages, 0)
    assert len(set(handles)) == len(handles), "a stale handle is told from a live one"


def test_pages_of_a_request_that_left_are_not_given_back_twice_by_an_abort() -> None:
    pool, ledger = pool_of(3)
    transaction = ledger.begin()
    pages = take(pool, transaction, 2)
    ledger.prepare(transaction)
    pool.release(pages, ledger.fence)
    ledger.abort(transaction)
    assert (pool.free, pool.deferred) == (3, 0)
    pool.check_all()


def test_moves_against_the_law_are_refused_and_change_nothing() -> None:
    pool, ledger = pool_of(6)
    transaction = ledger.begin()
    owned, cached = take(pool, transaction, 1), take(pool, transaction, 1)
    pool.adopt(cached)
    free = pool.free_pages[-1:].copy()
    before = (pool.counters(), pool.refcount.tolist(), pool.in_cache.tolist())
    refused: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (pool.share, (owned,)),
        (pool.share, (free,)),
        (pool.unshare, (owned,)),
        (pool.release, (free, 0)),
        (pool.adopt, (free,)),
        (pool.adopt, (cached,)),
        (pool.evict, (owned, 0)),
        (pool.evict, (cached, 0)),
    ]
    for move, arguments in refused:
        with pytest.raises(MemoryViolation):
            move(*arguments)
        assert (pool.counters(), pool.refcount.tolist(), pool.in_cache.tolist()) == before
    pool.check_all()


def test_a_pool_has_pages_of_a_token_at_least() -> None:
    ledger = Ledger()
    for total, page_size in ((0, 16), (1, 0)):
        with pytest.raises(ValueError, match="pool needs pages"):
            PagePool(total, page_size, ledger)


def test_a_memory_made_anew_keeps_what_a_writer_outside_the_steps_may_still_write() -> None:
    memory, fresh = (Memory(num_pages=8, num_slots=2, max_context=16, cache=RadixCache(2)) for _ in range(2))
    (stale,) = [memory.reserve(2)]
    assert stale is not None
    memory.withdraw(stale)
    written = memory.reserve(3)
    assert written is not None
    memory.replace(fresh, [written])
    assert (memory.pages.free, memory.pages.quarantined) == (5, 3)
    with pytest.raises(MemoryViolation):
        memory.withdraw(stale)
    memory.withdraw(written)
    memory.check_all()
    assert memory.pages.free == 8


def test_pages_that_anybody_outside_writes_stay_with_their_writers_when_memory_is_made_anew() -> None:
    pool, _ = pool_of(6)
    held = [pool.reserve(2), pool.reserve(1)]
    written = [each for each in held if each is not None]
    fresh, _ = pool_of(6)
    fresh.follow(pool, written)
    assert (fresh.quarantined, sorted(fresh.free_pages.tolist())) == (3, [3, 4, 5])
    for each in written:
        fresh.withdraw(each)
    fresh.check_all()
    assert fresh.free == 6


def test_of_pages_that_came_those_that_the_cache_has_meanwhile_are_free() -> None:
    memory = Memory(num_pages=8, num_slots=2, max_context=16, cache=RadixCache(2))
    tokens = np.arange(1, 7, dtype=np.int32)
    hold, came = memory.cache.match_and_hold(tokens[:0], ""), memory.reserve(3)
    assert came is not None
    transaction = memory.ledger.begin()
    granted = memory.admit(transaction, tokens[:3], "", True)
    assert granted is not None
    assert memory.extend_slot(transaction, granted.slot, 3) is not None
    memory.ledger.prepare(transaction)
    memory.share_prefix(granted.slot, tokens[:2], "")
    memory.ledger.commit(transaction)
    hold = memory.publish(came, 3, tokens, "", hold)
    assert hold.pages.tolist()[1:] == came.pages.tolist()[1:]
    assert came.pages[0] in memory.pages.free_pages
    memory.cache.release(hold, 0)
    memory.release(granted.slot)
    memory.check_all()
