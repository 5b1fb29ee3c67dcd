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


class ThreadDriver:
    """Runs the actor in a thread of its own, parked on a lock (no CPU) while there is nothing to do."""

    def __init__(self, cell: Cell, thread_name: str) -> None:
        self._cell = cell
        self._gate = threading.Lock()
        self._gate.acquire()
        cell.mailbox.wake = self._gate.release
        # A daemon: a program that never reaches `stop` must end all the same. Whoever made the system stops it at exit.
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        cell, mailbox = self._cell, self._cell.mailbox
        try:
            cell.begin()
            while True:
                while cell.step():
                    pass
                if cell.phase is Phase.ENDED:
                    return
                if mailbox.park():
                    self._wait()
        finally:
            cell.abandon("its thread died")

    def _wait(self) -> None:
        due = self._cell.deadline()
        timeout_s = -1.0 if due is None else max(0.0, due - self._cell.context.now())
        if self._gate.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX)):
            return
        # Timed out. A sender may have ended the parking a moment ago; its release is then on the way and must not be
        # left over for the next wait.
        if not self._cell.mailbox.unpark():
            self._gate.acquire()


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
            self._alarm = None

    def _arm(self) -> None:
        self._disarm()
        due = self._cell.deadline()
        if due is not None:
            self._alarm = self._loop.call_later(max(0.0, due - self._cell.context.now()), self._expired)

    def _expired(self) -> None:
        self._alarm = None
        if self._cell.mailbox.unpark():
            self._turn()
