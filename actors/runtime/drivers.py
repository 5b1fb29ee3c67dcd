"""Who calls `Cell.step`: a thread of the actor's own, or an asyncio event loop it shares with others."""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol

import structlog

from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.receiver import Phase

log = structlog.get_logger("pawl.actors")

SLICE_MESSAGES = 64
SLICE_S = 0.002
"""One turn on an event loop ends after this many messages or seconds, so that its other work goes on."""


class Driver(Protocol):
    """Runs one actor."""

    def start(self) -> None:
        """Begin to run; returns at once."""


class Visitor(threading.local):
    """This thread: whether it has brought messages from elsewhere, and may run an actor that it wakes by that."""

    may_run = False
    woken: ThreadDriver | None = None

    def takes(self, driver: ThreadDriver) -> bool:
        """Whether it will run this one; one at a time."""
        if not self.may_run or self.woken is not None:
            return False
        self.woken = driver
        return True

    def stays(self) -> None:
        """It has more to bring, so whom it wakes must run without it."""
        if (woken := self.leave()) is not None:
            woken.go()

    def leave(self) -> ThreadDriver | None:
        """It has brought everything; whom it has to run now."""
        self.may_run = False
        woken, self.woken = self.woken, None
        return woken


visitor = Visitor()


class ThreadDriver:
    """Runs the actor in a thread of its own, parked on a lock (no CPU) while there is nothing to do. One that roams is
    run by who wakes it, where that is a visitor, until it has nothing to do, while its own thread goes on waiting.

    Whoever ends the mailbox's parking, and nobody else, may run the actor, or has somebody do so."""

    def __init__(self, cell: Cell, thread_name: str) -> None:
        self._cell = cell
        self._gate = threading.Lock()
        self._gate.acquire()
        self._until: float | None = None
        """When the thread, which waits, goes on by itself."""
        self._overdue = False
        """It would have gone on, but for another thread that ran the actor."""
        self.go = self._gate.release
        """Have the actor's own thread run it. Only for who has ended the parking."""
        cell.mailbox.wake = self._wake if cell.roams else self.go
        # A daemon: a program that never reaches `stop` must end all the same. Whoever made the system stops it at exit.
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def visit(self) -> None:
        """Run the actor in this thread, which has ended the parking, until there is nothing to do."""
        try:
            if self._rests():
                return
        except BaseException:
            self._cell.abandon("its turn was broken off")
            self.go()
            raise
        self.go()

    def _wake(self) -> None:
        if not visitor.takes(self):
            self.go()

    def _rests(self) -> bool:
        """Do what there is to do. False: its own thread is to wait for another time, or to end."""
        cell, mailbox = self._cell, self._cell.mailbox
        while True:
            self._empty()
            if cell.phase is Phase.ENDED or cell.deadline() != self._until:
                return False
            if mailbox.park():
                return not (self._overdue and mailbox.unpark())

    def _run(self) -> None:
        cell, mailbox = self._cell, self._cell.mailbox
        try:
            cell.begin()
            while True:
                self._empty()
                if cell.phase is Phase.ENDED:
                    return
                # Behind the parking another thread may be at its timers.
                self._until = cell.deadline()
                if mailbox.park():
                    self._wait()
        finally:
            cell.abandon("its thread died")

    def _empty(self) -> None:
        cell = self._cell
        cell.owner = threading.get_ident()
        while cell.step():
            pass
        cell.owner = None

    def _wait(self) -> None:
        timeout_s = -1.0 if self._until is None else max(0.0, self._until - self._cell.context.now())
        if self._gate.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            return
        # Timed out. A sender may have ended the parking a moment ago; its release is then on the way and must not be
        # left over for the next wait.
        self._overdue = True
        if not self._cell.mailbox.unpark():
            self._gate.acquire()
        self._overdue = False


class LoopDriver:
    """Runs the actor on an event loop, in slices. However many messages arrive at once, they wake the loop once."""

    def __init__(self, cell: Cell, loop: asyncio.AbstractEventLoop) -> None:
        self._cell = cell
        self._loop = loop
        self._alarm: asyncio.TimerHandle | None = None
        self._in_turn = True
        cell.mailbox.wake = self._wake
        cell.on_timer = self._timer_set

    def start(self) -> None:
        self._call_soon_threadsafe(begin=True)

    def _wake(self) -> None:
        self._call_soon_threadsafe(begin=False)

    def _call_soon_threadsafe(self, begin: bool) -> None:
        try:
            self._loop.call_soon_threadsafe(self._begin if begin else self._turn)
        except RuntimeError:
            log.error("the event loop is closed", actor=self._cell.name)
            self._cell.abandon("its event loop is closed")

    def _begin(self) -> None:
        self._cell.begin()
        self._turn()

    def _turn(self) -> None:
        """Handle a bounded number of messages, then make room for the loop's other work."""
        cell, loop = self._cell, self._loop
        ends_at = loop.time() + SLICE_S
        self._in_turn = True
        try:
            for _ in range(SLICE_MESSAGES):
                if not cell.step():
                    self._in_turn = False
                    self._rest()
                    return
                if loop.time() >= ends_at:
                    break
        except BaseException:
            cell.abandon("its turn was broken off")
            raise
        loop.call_soon(self._turn)

    def _rest(self) -> None:
        """Nothing to do: wait for a wake or for the next timer."""
        if self._cell.phase is Phase.ENDED:
            self._disarm()
        elif self._cell.mailbox.park():
            self._arm()
        else:
            self._in_turn = True
            self._loop.call_soon(self._turn)

    def _timer_set(self) -> None:
        # Also coroutines on this loop may use the actor's context, between its turns.
        if not self._in_turn:
            self._arm()

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _arm(self) -> None:
        self._disarm()
        due = self._cell.deadline()
        if due is not None:
            self._alarm = self._loop.call_later(max(0.0, due - self._cell.context.now()), self._expired)

    def _expired(self) -> None:
        if self._cell.mailbox.unpark():
            self._turn()
