"""The pool of slots by itself: fences, and the order in which slots come back."""

from __future__ import annotations

import numpy as np
import pytest

from pawl.memory.slot_pool import SlotPool
from pawl.memory.transaction import Ledger
from pawl.memory.violation import MemoryViolation


def test_a_server_has_a_slot_at_least() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        SlotPool(0, Ledger())


def test_a_slot_is_used_again_only_after_the_step_that_used_it() -> None:
    ledger = Ledger()
    slots = SlotPool(1, ledger)
    transaction = ledger.begin()
    assert slots.take(transaction) == 0
    assert slots.take(transaction) is None
    ledger.prepare(transaction)
    slots.release(0, ledger.fence)
    assert slots.take(ledger.begin()) is None
    slots.check()
    ledger.commit(transaction)
    assert slots.free == 1
    slots.check()


def test_a_slot_is_released_once() -> None:
    ledger = Ledger()
    slots = SlotPool(2, ledger)
    slot = slots.take(ledger.begin())
    assert slot is not None
    slots.release(slot, 0)
    with pytest.raises(MemoryViolation, match="released once"):
        slots.release(slot, 0)
    assert slots.used.tolist() == []


def test_slots_come_back_in_the_order_they_had() -> None:
    ledger = Ledger()
    slots = SlotPool(3, ledger)
    transaction = ledger.begin()
    taken = [slots.take(transaction) for _ in range(3)]
    transaction.rollback()
    assert [slots.take(transaction) for _ in range(3)] == taken == list(np.arange(3))
