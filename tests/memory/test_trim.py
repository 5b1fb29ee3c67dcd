"""A slot that is trimmed is shorter, gives its spare pages back at commit, and is as it was when the step is undone."""

from __future__ import annotations

import numpy as np
import pytest

from pawl.memory.checks import check_memory
from pawl.memory.memory import Memory
from pawl.memory.page_pool import Int32s
from pawl.memory.prefix.select import make_cache
from pawl.memory.transaction import Ledger, Transaction
from pawl.memory.trim import trim
from pawl.memory.window_pool import WindowPool

NUM_PAGES = 12
SLOTS = np.array([0, 1], np.int32)


def lengths(*values: int) -> Int32s:
    return np.array(values, np.int32)


def make_memory(*, windows: bool = False) -> Memory:
    """Two slots may run, and pages have four tokens."""
    pool = None
    if windows:
        sizes = {"num_pages": NUM_PAGES, "num_full": NUM_PAGES, "num_slots": 2, "page_size": 4}
        pool = WindowPool(Ledger(), **sizes, window=64, chunk=16, max_context=40)
    return Memory(num_pages=NUM_PAGES, num_slots=2, max_context=40, cache=make_cache("radix", 4, pool), windows=pool)


def grown(memory: Memory, *, to: Int32s) -> Transaction:
    """A launched step in which both slots have grown."""
    transaction = memory.ledger.begin()
    for token in (1, 2):
        assert memory.admit(transaction, np.full(4, token, np.int32), "", use_cache=True) is not None
    assert memory.extend(transaction, SLOTS, to) is not None
    memory.ledger.prepare(transaction)
    return transaction


@pytest.mark.parametrize("windows", [False, True])
def test_spare_pages_are_free_when_the_step_commits_and_stay_promised(windows: bool) -> None:
    memory = make_memory(windows=windows)
    transaction = grown(memory, to=lengths(14, 6))
    trim(memory, transaction, SLOTS, lengths(5, 5))
    assert memory.page_table.num_pages[SLOTS].tolist() == [2, 2]
    assert memory.page_table.length[SLOTS].tolist() == [5, 5]
    assert memory.pages.free == NUM_PAGES - 6
    memory.ledger.commit(transaction)
    assert memory.pages.free == NUM_PAGES - 4
    assert memory.escrow.promised[SLOTS].tolist() == [2, 0]
    check_memory(memory)


def test_pages_that_a_later_step_may_touch_wait_for_it() -> None:
    memory = make_memory()
    transaction = grown(memory, to=lengths(14, 6))
    later = memory.ledger.begin()
    memory.ledger.prepare(later)
    trim(memory, transaction, SLOTS, lengths(5, 5))
    memory.ledger.commit(transaction)
    assert (memory.pages.free, memory.pages.deferred) == (NUM_PAGES - 6, 2)
    memory.ledger.commit(later)
    assert memory.pages.free == NUM_PAGES - 4
    check_memory(memory)


@pytest.mark.parametrize("windows", [False, True])
def test_a_rollback_restores_the_tail_and_the_digest(windows: bool) -> None:
    memory = make_memory(windows=windows)
    memory.ledger.commit(grown(memory, to=lengths(14, 6)))
    before, table = memory.digest(), memory.page_table.pages.copy()
    transaction = memory.ledger.begin()
    trim(memory, transaction, SLOTS, lengths(5, 5))
    assert memory.digest() != before
    memory.ledger.discard(transaction)
    assert memory.digest() == before
    assert memory.page_table.length[SLOTS].tolist() == [14, 6]
    assert (memory.page_table.pages == table).all()
    check_memory(memory)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("aborts", [False, True])
def test_a_slot_that_left_meanwhile_has_given_everything_back_whatever_becomes_of_the_step(
    windows: bool, aborts: bool
) -> None:
    memory = make_memory(windows=windows)
    memory.ledger.commit(grown(memory, to=lengths(14, 6)))
    transaction = memory.ledger.begin()
    trim(memory, transaction, SLOTS, lengths(5, 5))
    memory.ledger.prepare(transaction)
    memory.release(0)
    if aborts:
        memory.ledger.abort(transaction)
    else:
        memory.ledger.commit(transaction)
    assert memory.pages.free == NUM_PAGES - 2
    assert memory.escrow.total == 0
    check_memory(memory)
