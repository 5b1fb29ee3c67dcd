"""The undo log and the fences by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.memory.digest import Unrestored
from pawl.memory.transaction import Ledger, Phase, Transaction, TransactionError


def write(transaction: Transaction, store: dict[str, int], key: str, value: int) -> None:
    """Set a key now; logged with its inverse."""
    if key in store:
        transaction.log(store.__setitem__, key, store[key])
    else:
        transaction.log(store.__delitem__, key)
    store[key] = value


def launch(ledger: Ledger) -> Transaction:
    transaction = ledger.begin()
    ledger.prepare(transaction)
    return transaction


@given(writes=st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=12), data=st.data())
def test_rollback_restores_what_was_there_at_any_savepoint(writes: list[tuple[str, int]], data: Any) -> None:
    transaction = Ledger().begin()
    store: dict[str, int] = {}
    seen = [(transaction.savepoint(), dict(store))]
    for key, value in writes:
        write(transaction, store, key, value)
        seen.append((transaction.savepoint(), dict(store)))
    while seen:
        savepoint, then = seen.pop(data.draw(st.integers(0, len(seen) - 1)))
        seen = [other for other in seen if other[0] < savepoint]
        transaction.rollback(savepoint)
        assert store == then
        assert transaction.savepoint() == savepoint


class Counter:
    """A number that the digest knows."""

    def __init__(self, ledger: Ledger) -> None:
        self.value = 0
        self._digest = ledger.digest

    def add(self, amount: int) -> None:
        self._digest.value += amount
        self.value += amount

    def fail_after_adding(self, amount: int) -> None:
        self.add(amount)
        raise TypeError

    def restore(self, value: int) -> None:
        self.add(value - self.value)


def test_a_rollback_takes_back_what_a_change_has_done_and_the_digest_agrees() -> None:
    ledger = Ledger()
    counter, transaction = Counter(ledger), ledger.begin()
    with transaction.change(counter.restore, 0):
        counter.add(3)
        counter.add(4)
    transaction.rollback()
    assert (counter.value, ledger.digest.value, ledger.digest.unrestored) == (0, 0, None)


def test_a_change_that_fails_on_its_way_is_undone_as_far_as_it_went() -> None:
    ledger = Ledger()
    counter, transaction = Counter(ledger), ledger.begin()
    with pytest.raises(TypeError), transaction.change(counter.restore, 0):
        counter.fail_after_adding(3)
    transaction.rollback()
    assert (counter.value, ledger.digest.unrestored) == (0, None)


def test_a_change_that_fails_before_anything_has_changed_is_not_undone() -> None:
    ledger = Ledger()
    undone: list[str] = []
    transaction = ledger.begin()
    with pytest.raises(MemoryError), transaction.change(undone.append, "nothing was done"):
        raise MemoryError
    transaction.rollback()
    assert not undone


def test_an_undo_that_leaves_something_is_told_by_the_digest() -> None:
    ledger = Ledger()
    counter, transaction = Counter(ledger), ledger.begin()
    with transaction.change(counter.restore, 1):
        counter.add(3)
    transaction.rollback()
    assert ledger.digest.unrestored == Unrestored(transaction.epoch, savepoint=0, difference=1)


def test_a_change_within_a_change_is_refused() -> None:
    ledger = Ledger()
    counter, transaction = Counter(ledger), ledger.begin()
    with (
        pytest.raises(TransactionError, match="a change within a change"),
        transaction.change(counter.restore, 0),
        transaction.change(counter.restore, 0),
    ):
        counter.add(1)


def test_a_discarded_transaction_is_undone_and_its_epoch_used_again() -> None:
    ledger = Ledger()
    store: dict[str, int] = {}
    transaction = ledger.begin()
    write(transaction, store, "a", 1)
    ledger.discard(transaction)
    assert store == {}
    assert transaction.phase is Phase.ABORTED
    assert ledger.begin().epoch == transaction.epoch


def test_an_undo_that_raises_leaves_word_of_it() -> None:
    ledger = Ledger()
    transaction = ledger.begin()
    transaction.log([].pop)
    with pytest.raises(IndexError):
        transaction.rollback()
    assert ledger.digest.unrestored == Unrestored(transaction.epoch, savepoint=0, difference=0)


def test_aborting_newest_first_unwinds_to_before_the_oldest() -> None:
    ledger = Ledger()
    store = {"a": 0}
    steps = []
    for value in (1, 2, 3):
        transaction = ledger.begin()
        write(transaction, store, "a", value)
        ledger.prepare(transaction)
        steps.append(transaction)
    for transaction, left in zip(reversed(steps), (2, 1, 0), strict=True):
        ledger.abort(transaction)
        assert store == {"a": left}


def test_actions_behind_a_fence_run_when_its_step_commits_and_not_before() -> None:
    ledger = Ledger()
    ran: list[str] = []
    first, second = launch(ledger), launch(ledger)
    ledger.after(second.epoch, ran.append, "second")
    ledger.after(first.epoch, ran.append, "first")
    assert ran == []
    ledger.commit(first)
    assert ran == ["first"]
    ledger.commit(second)
    assert ran == ["first", "second"]
    ledger.after(second.epoch, ran.append, "at once")
    assert ran[-1] == "at once"


def test_what_waits_for_an_aborted_step_is_not_left_behind() -> None:
    ledger = Ledger()
    ran: list[str] = []
    first, second = launch(ledger), launch(ledger)
    ledger.after(second.epoch, ran.append, "second")
    ledger.abort(second)
    assert ran == [], "the first may be what still touches it"
    ledger.commit(first)
    assert ran == ["second"]


def test_the_fence_is_the_newest_step_in_flight() -> None:
    ledger = Ledger()
    assert ledger.fence == ledger.resolved == 0
    first, second = launch(ledger), launch(ledger)
    ledger.begin()
    assert (ledger.fence, ledger.resolved, ledger.num_in_flight) == (second.epoch, 0, 2)
    ledger.commit(first)
    ledger.commit(second)
    assert ledger.fence == ledger.resolved == second.epoch


def misuses() -> dict[str, Callable[[Ledger, Transaction, Transaction], object]]:
    """Each breaks the protocol of a ledger with two steps in flight and none open."""
    return {
        "commit out of order": lambda ledger, _, second: ledger.commit(second),
        "abort the older first": lambda ledger, first, _: ledger.abort(first),
        "open two": lambda ledger, *_: (ledger.begin(), ledger.begin()),
        "prepare twice": lambda ledger, first, _: ledger.prepare(first),
        "discard what was launched": lambda ledger, first, _: ledger.discard(first),
        "abort under an open one": lambda ledger, _, second: (ledger.begin(), ledger.abort(second)),
        "commit twice": lambda ledger, first, _: (ledger.commit(first), ledger.commit(first)),
        "roll back what is committed": lambda ledger, first, _: (ledger.commit(first), first.rollback()),
        "roll back to the future": lambda _, first, __: first.rollback(7),
        "roll back to a negative savepoint": lambda _, first, __: first.rollback(-1),
    }


@pytest.mark.parametrize("misuse", misuses())
def test_use_outside_the_protocol_is_refused(misuse: str) -> None:
    ledger = Ledger()
    first, second = launch(ledger), launch(ledger)
    with pytest.raises(TransactionError):
        misuses()[misuse](ledger, first, second)


def test_a_transaction_says_how_far_it_is() -> None:
    ledger = Ledger()
    transaction = ledger.begin()
    phases = [transaction.phase]
    ledger.prepare(transaction)
    phases.append(transaction.phase)
    ledger.commit(transaction)
    assert [*phases, transaction.phase] == [Phase.OPEN, Phase.PREPARED, Phase.COMMITTED]
    for end in (Ledger.discard, Ledger.abort):
        other = ledger.begin() if end is Ledger.discard else launch(ledger)
        end(ledger, other)
        assert other.phase is Phase.ABORTED
