"""The pool of slots by itself: fences, and the order in which slots come back."""

from __future__ import annotations

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
    assert slots.next == 0
    slots.take()
    assert slots.next is None
    ledger.prepare(transaction)
    slots.release(0, ledger.fence)
    assert slots.next is None
    slots.check()
    ledger.commit(transaction)
    assert slots.next == 0
    assert slots.free == 1
    slots.check()


def test_a_slot_is_released_once() -> None:
    ledger = Ledger()
    slots = SlotPool(2, ledger)
    slots.take()
    assert slots.used.tolist() == [0]
    slots.release(0, 0)
    with pytest.raises(MemoryViolation, match="released once"):
        slots.release(0, 0)
    assert slots.used.tolist() == []


def test_slots_come_back_in_the_order_they_had() -> None:
    slots = SlotPool(3, Ledger())
    for slot in range(3):
        assert slots.next == slot
        slots.take()
    for slot in (2, 1, 0):
        slots.untake(slot)
        assert slots.next == slot
    slots.check()
