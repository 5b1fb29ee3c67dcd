"""Step transactions: an undo log with savepoints, and the fences that say when a step can no longer touch memory.

The manner is that of ARIES (Mohan et al. 1992): every change is applied at once and logged with its inverse, so a
rollback walks the log backwards. What is given back takes effect only at commit, so an undo never has to win back
something that has been handed to somebody else.

    OPEN ──prepare──► PREPARED ──commit──► COMMITTED        steps commit in launch order
      └──── abort ──────┴─────► ABORTED                     steps abort newest first

Several transactions may be PREPARED at once (overlap, pipeline). `Ledger.fence` is the epoch of the newest of them:
whatever a launched step may still touch waits under that epoch until the step is resolved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Self, TypeAlias

from pawl.memory.digest import MASK, Digest, Unrestored

_Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""


class TransactionError(Exception):
    """A transaction was used outside its protocol: a defect of the caller, never of the workload."""

    def __init__(self, what: str, epoch: int) -> None:
        super().__init__(f"{what} (epoch {epoch})")
        self.epoch = epoch


class Phase(IntEnum):
    """Where a transaction is."""

    OPEN = 0
    PREPARED = 1
    COMMITTED = 2
    ABORTED = 3


class Transaction:
    """The changes of one scheduling step. `savepoint` is an integer; `rollback` undoes back to it.

    with transaction.change(undo, *arguments):
        …                   moves memory, and with it the digest; logs nothing of its own
    """

    __slots__ = ("_before", "_changes", "_digest", "_pending", "_undo", "epoch", "phase")

    def __init__(self, epoch: int, digest: Digest) -> None:
        self.epoch = epoch
        self.phase = Phase.OPEN
        self._digest = digest
        self._undo: list[_Call] = []
        self._changes: list[int] = []
        """What each logged change has added to the digest."""
        self._pending: _Call | None = None
        self._before = 0
        """The digest when the pending change began."""

    def change(self, undo: Callable[..., Any], *arguments: Any) -> Self:
        """Log `undo` for what the body of a `with` does, and how far that moves the digest.

        Also where the body fails on its way: `undo` must then cope with a change of which only a part has happened. A
        body that fails before the digest has moved has changed nothing, and nothing is logged. One change is pending at
        a time. Raises TransactionError.
        """
        if self._pending is not None:
            raise TransactionError("a change within a change", self.epoch)
        self._pending = (undo, arguments)
        self._before = self._digest.value
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, failure: BaseException | None, traceback: object) -> None:
        pending, self._pending = self._pending, None
        change = self._digest.value - self._before
        if pending is not None and (change or failure is None):
            self._undo.append(pending)
            self._changes.append(change)

    def log(self, undo: Callable[..., Any], *arguments: Any) -> None:
        """Note how to take back a change that has just been applied, of something that the digest does not see."""
        self._undo.append((undo, arguments))
        self._changes.append(0)

    def savepoint(self) -> int:
        """A place in the log to roll back to."""
        return len(self._undo)

    def rollback(self, savepoint: int = 0) -> None:
        """Undo every change after `savepoint`, newest first.

        The digest must fall by what these changes had added to it. Where it does not, or an undo raises,
        `Digest.unrestored` says so, and whoever checks memory next tells.
        """
        if self.phase > Phase.PREPARED:
            raise TransactionError(f"rollback of a transaction that is {self.phase.name}", self.epoch)
        if not 0 <= savepoint <= len(self._undo):
            raise TransactionError(f"unknown savepoint {savepoint} of {len(self._undo)}", self.epoch)
        undo, changes, digest = self._undo, self._changes, self._digest
        expected = digest.value
        try:
            while len(undo) > savepoint:
                action, arguments = undo.pop()
                digest.undoing = changes.pop()
                action(*arguments)
                expected -= digest.undoing
        except Exception:
            digest.unrestored = Unrestored(self.epoch, savepoint, (digest.value - expected) & MASK)
            raise
        if (digest.value - expected) & MASK:
            digest.unrestored = Unrestored(self.epoch, savepoint, (digest.value - expected) & MASK)


class Ledger:
    """All transactions of one memory: gives out epochs, keeps launch order, and runs what waits behind fences."""

    __slots__ = ("_in_flight", "_next_epoch", "_open", "_waiting", "digest", "resolved")

    def __init__(self) -> None:
        self.digest = Digest()
        self._next_epoch = 1
        self._open: Transaction | None = None
        self._in_flight: deque[Transaction] = deque()
        self._waiting: dict[int, list[_Call]] = {}
        self.resolved = 0
        """Every step up to this epoch is committed or aborted."""

    @property
    def fence(self) -> int:
        """Epoch of the newest launched step; `resolved` when nothing is in flight."""
        return self._in_flight[-1].epoch if self._in_flight else self.resolved

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def follow(self, before: Ledger) -> None:
        """Give out no epoch that `before` has given out: it is not used any more, and nothing of it is in flight."""
        self._next_epoch = before._next_epoch + 1
        self.resolved = self._next_epoch - 1

    def begin(self) -> Transaction:
        """Open the next step's transaction. One is open at a time."""
        if self._open is not None:
            raise TransactionError("a transaction is open already", self._open.epoch)
        self._open = Transaction(self._next_epoch, self.digest)
        return self._open

    def prepare(self, transaction: Transaction) -> None:
        """OPEN -> PREPARED: the step has been launched."""
        if transaction is not self._open:
            raise TransactionError("only the open transaction can be prepared", transaction.epoch)
        transaction.phase = Phase.PREPARED
        self._in_flight.append(transaction)
        self._open = None
        self._next_epoch = transaction.epoch + 1

    def discard(self, transaction: Transaction) -> None:
        """Drop an open transaction that planned nothing; what it changed is undone and its epoch is used again."""
        if transaction is not self._open:
            raise TransactionError("only the open transaction can be discarded", transaction.epoch)
        transaction.rollback()
        transaction.phase = Phase.ABORTED
        self._open = None

    def commit(self, transaction: Transaction) -> None:
        """PREPARED -> COMMITTED: the oldest step is done; what it gave back is free once no step can touch it."""
        if not self._in_flight or transaction is not self._in_flight[0]:
            raise TransactionError("steps commit in launch order", transaction.epoch)
        self._in_flight.popleft()
        transaction.phase = Phase.COMMITTED
        self._resolve()

    def abort(self, transaction: Transaction) -> None:
        """PREPARED -> ABORTED: the newest step never happened."""
        if not self._in_flight or transaction is not self._in_flight[-1]:
            raise TransactionError("steps abort newest first", transaction.epoch)
        if self._open is not None:
            raise TransactionError("a later transaction is still open", self._open.epoch)
        transaction.rollback()
        self._in_flight.pop()
        transaction.phase = Phase.ABORTED
        self._resolve()

    def after(self, fence: int, action: Callable[..., Any], *arguments: Any) -> None:
        """Run `action` once every step up to epoch `fence` is resolved, which may be now."""
        if fence <= self.resolved:
            action(*arguments)
        else:
            self._waiting.setdefault(fence, []).append((action, arguments))

    def _resolve(self) -> None:
        # Not the epoch just finished: a newer one may have been aborted before it, and nobody would resolve that.
        epoch = (self._in_flight[0].epoch if self._in_flight else self._next_epoch) - 1
        self.resolved = epoch
        if self._waiting:
            for fence in sorted(fence for fence in self._waiting if fence <= epoch):
                for action, arguments in self._waiting.pop(fence):
                    action(*arguments)
