"""Property 9: whatever operation of a step fails, rolling back restores what was there.

One busy step is planned again and again; each time another elementary operation fails (a slot or pages are taken, pages
shared, a prefix held, table entries written, a row lengthened, promises made or spent), from the first to the last, in
each way in which it can.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from pawl.memory.memory import Memory
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.transaction import Ledger, Transaction
from pawl.memory.window_pool import WindowPool
from tests.memory.injection import InjectedFailure, Injector
from tests.memory.observation import observe

PAGE = 16


def prompt(*words: int) -> Any:
    return np.repeat(np.array([*words, 99], np.int32), PAGE)


def empty_memory(num_pools: int) -> Memory:
    """24 pages of each pool, so that nothing has to leave the cache, which no rollback would undo."""
    sizes = {"num_slots": 6, "max_context": 8 * PAGE}
    if num_pools == 1:
        return Memory(num_pages=24, cache=RadixCache(PAGE), **sizes)
    windows = WindowPool(Ledger(), num_pages=24, num_full=24, page_size=PAGE, window=2 * PAGE, chunk=8 * PAGE, **sizes)
    return Memory(num_pages=24, cache=SlidingCache(PAGE, windows), windows=windows, **sizes)


def memory_with_history(num_pools: int) -> tuple[Memory, list[int]]:
    """Two running requests with shared prefixes, something evictable, and a step in flight."""
    memory = empty_memory(num_pools)
    slots = []
    for words in ((1, 2, 3), (1, 2, 4), (5, 6)):
        transaction = memory.ledger.begin()
        tokens = prompt(*words)
        granted = memory.admit(transaction, tokens, "", True)
        assert granted is not None
        extend(memory, transaction, granted.slot, len(tokens))
        memory.ledger.prepare(transaction)
        memory.ledger.commit(transaction)
        memory.share_prefix(granted.slot, tokens, "")
        memory.slide(np.array([granted.slot], np.int32), np.zeros(1, np.int32), np.array([len(tokens)], np.int32))
        slots.append(granted.slot)
    memory.release(slots.pop())
    transaction = memory.ledger.begin()
    extend(memory, transaction, slots[0], 5 * PAGE)
    memory.ledger.prepare(transaction)
    # So that one row spends promises, and the other takes what nobody was promised.
    assert memory.promise(slots[1], 6 * PAGE)
    return memory, slots


def extend(memory: Memory, transaction: Transaction, slot: int, length: int) -> bool:
    one = np.array([slot], np.int32)
    return memory.extend(transaction, one, np.array([length], np.int32)) is not None


def plan(memory: Memory, transaction: Transaction, slots: list[int]) -> None:
    """A busy step: it grows rows, and admits requests that hit and that miss; one that does not fit is put back."""
    extend(memory, transaction, slots[0], 6 * PAGE)
    for words in ((1, 2, 3, 7), (8, 9), (1, 5), (5, 6, 7)):
        savepoint = transaction.savepoint()
        tokens = prompt(*words)
        granted = memory.admit(transaction, tokens, "", True)
        if (
            granted is None
            or not memory.promise(granted.slot, len(tokens) - PAGE)
            or memory.extend_slot(transaction, granted.slot, len(tokens)) is None
        ):
            transaction.rollback(savepoint)
    extend(memory, transaction, slots[1], 8 * PAGE - 1)
    memory.advance(transaction, np.array(slots[1:]), memory.page_table.length[slots[1:]])


def attempt(num_pools: int, way: str, at: int) -> int | None:
    """Plan with the failure, roll back, compare. The number of calls when nothing was there to fail any more."""
    memory, slots = memory_with_history(num_pools)
    before, digest = observe(memory), memory.digest()
    injector = Injector(memory, way, at)
    transaction = memory.ledger.begin()
    with suppress(InjectedFailure):
        plan(memory, transaction, slots)
    memory.ledger.discard(transaction)
    assert observe(memory) == before
    assert memory.digest() == digest
    memory.check_all()
    return None if injector.calls > at else injector.calls


@pytest.mark.parametrize("num_pools", [1, 2])
@pytest.mark.parametrize("way", ["before", "after", "refuse"])
def test_rollback_restores_everything_whichever_operation_fails(way: str, num_pools: int) -> None:
    at = 0
    while (calls := attempt(num_pools, way, at)) is None:
        at += 1
    assert at == calls >= 30 + 6 * (num_pools - 1), "every operation of the step failed once"


@pytest.mark.parametrize("num_pools", [1, 2])
def test_a_launched_step_is_taken_back_whole_when_it_is_aborted(num_pools: int) -> None:
    memory, slots = memory_with_history(num_pools)
    before = observe(memory)
    transaction = memory.ledger.begin()
    plan(memory, transaction, slots)
    memory.ledger.prepare(transaction)
    assert observe(memory) != before
    memory.ledger.abort(transaction)
    assert observe(memory) == before
    memory.check_all()


@pytest.mark.parametrize("num_pools", [1, 2])
def test_every_savepoint_of_a_busy_step_can_be_returned_to(num_pools: int) -> None:
    memory, slots = memory_with_history(num_pools)
    transaction = memory.ledger.begin()
    seen = [(transaction.savepoint(), observe(memory))]
    for slot, length in ((slots[0], 6), (slots[1], 5), (slots[1], 8)):
        assert extend(memory, transaction, slot, length * PAGE)
        seen.append((transaction.savepoint(), observe(memory)))
    for words in ((1, 2, 3, 7), (5, 6, 7)):
        assert memory.admit(transaction, prompt(*words), "", True) is not None
        seen.append((transaction.savepoint(), observe(memory)))
    for savepoint, then in reversed(seen):
        transaction.rollback(savepoint)
        assert observe(memory) == then
