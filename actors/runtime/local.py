"""The local runtime: the actors of one process, each in a thread of its own or on an event loop it is given."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import structlog

from pawl.actors.runtime.actor import Actor, Down, Lane, Overflow
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.dead_letters import DeadLetter, DeadLetters, Reason
from pawl.actors.runtime.drivers import Driver, LoopDriver, ThreadDriver
from pawl.actors.runtime.mailbox import Edge, Mailbox
from pawl.actors.runtime.receiver import Phase, Receiver
from pawl.actors.runtime.system import ActorStatistics

log = structlog.get_logger("pawl.actors")

OUTSIDE = "outside"
"""Sender of messages that come from no actor."""
CUT_GRACE_S = 1.0
"""How long an actor that did not drain in time gets to end after it was cut off."""

OnFailure = Callable[[str, BaseException], None]


class LocalSystem:
    """Actors in one process (see `pawl.actors.runtime.system.System` for what the methods promise).

    `on_failure(name, error)` is called in the failed actor's thread once the actor is gone, `on_dead_letter(letter)` in
    the thread that made the letter. Neither may block; the engine begins its orderly stop there (`begin_stop`).
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_failure: OnFailure | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> None:
        self.clock = clock
        self.wall = wall
        self.dead_letters = DeadLetters(on_dead_letter)
        self._seed = seed
        self._on_failure = on_failure
        self._cells: dict[str, Receiver] = {}
        self._drivers: dict[str, Driver] = {}
        self._watchers: dict[str, list[str]] = {}
        self._edges: dict[tuple[str, Lane], Edge] = {}
        self._started = False
        self._lock = threading.Lock()
        """Guards spawning, starting, watching, and the end of a cell against each other; never held in a handler."""
        self._stop_claims = itertools.count()
        self._stopped = threading.Event()
        self._not_stopped: tuple[str, ...] = ()

    # ---- building ----

    def spawn(
        self,
        actor: Actor,
        name: str,
        *,
        capacity: int = 1024,
        overflow: Overflow = Overflow.REJECT,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Add an actor; with `loop` its handlers run on that event loop, which must be kept running by its owner."""
        with self._lock:
            if name in self._cells or name == OUTSIDE:
                raise ValueError(f"there is an actor {name!r} already")
            cell = self._make_cell(actor, name, capacity, overflow)
            driver = self._make_driver(cell, loop)
            self._cells[name] = cell
            self._drivers[name] = driver
            self._tell_of(cell)
            started = self._started
        if started:
            driver.start()

    def _make_cell(self, actor: Actor, name: str, capacity: int, overflow: Overflow) -> Cell:
        return Cell(self, actor, name, Mailbox(capacity, overflow), self._seed)

    def _tell_of(self, cell: Cell) -> None:
        """Whoever else must know of an actor is told, before it runs."""

    def _make_driver(self, cell: Cell, loop: asyncio.AbstractEventLoop | None) -> Driver:
        return ThreadDriver(cell, cell.name) if loop is None else LoopDriver(cell, loop)

    def watch(self, watcher: str, watched: str) -> None:
        """See `System.watch`. Raises KeyError for an unknown name, TypeError when `watcher` does not accept `Down`."""
        if not self._cells[watcher].accepts(Down):
            raise TypeError(f"{watcher} does not accept Down")
        with self._lock:
            if self._cells[watched].phase is not Phase.ENDED:
                self._watchers.setdefault(watched, []).append(watcher)
                return
        self._send_down(watcher, watched, "ended before it was watched")

    def start(self) -> None:
        """Run the actors. Returns at once; messages sent before an actor is up wait for it."""
        with self._lock:
            if self._started:
                raise RuntimeError("the system was started already")
            self._started = True
            drivers = list(self._drivers.values())
        for driver in drivers:
            driver.start()

    # ---- from outside ----

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        """Post from any thread. A sender outside is never blocked: a full mailbox refuses it, with HOLD too."""
        cell = self.find(to)
        if cell is None:
            self.dead_letters.add(to, OUTSIDE, message, Reason.UNKNOWN_RECEIVER)
            return False
        edge = self._edges.get((to, lane))
        if edge is None:
            edge = self._edges.setdefault((to, lane), Edge(OUTSIDE, lane, None))
        return cell.admit(message, edge)

    def statistics(self) -> dict[str, ActorStatistics]:
        """See `System.statistics`."""
        return {name: self._statistics_of(cell) for name, cell in list(self._cells.items())}

    def _statistics_of(self, cell: Receiver) -> ActorStatistics:
        mailbox = cell.mailbox
        system, control, data = mailbox.depths()
        return ActorStatistics(
            alive=cell.phase is not Phase.ENDED,
            waiting_system=system,
            waiting_control=control,
            waiting_data=data,
            most_data=mailbox.most_data,
            capacity=mailbox.capacity,
            delivered=sum(mailbox.taken),
            rejected=mailbox.rejected,
            dead_letters=self.dead_letters.by_receiver[cell.name],
            contained=cell.num_contained,
        )

    def retire(self, names: Sequence[str], timeout_s: float = 10.0) -> None:
        """Stop these actors, one after the other, each in `timeout_s` seconds, and run on without them; blocks."""
        self._refuse_in_actor("retire")
        for cell in [self._cells[name] for name in names if name in self._cells]:
            cell.ask_to_stop("retired")
            if not cell.over.wait(timeout_s):
                cell.cut()

    # ---- what cells ask of their system ----

    def find(self, name: str) -> Receiver | None:
        """Who takes messages for the actor `name`; None when there is none."""
        return self._cells.get(name)

    def ended(self, cell: Cell, reason: str, error: BaseException | None) -> None:
        """Called once by each cell, after its last handler."""
        with self._lock:
            watchers = self._watchers.pop(cell.name, [])
        if error is None:
            log.info("actor stopped", actor=cell.name, reason=reason)
            return
        log.critical("actor lost", actor=cell.name, reason=reason, error=type(error).__name__)
        for watcher in watchers:
            self._send_down(watcher, cell.name, reason)
        if self._on_failure is not None:
            try:
                self._on_failure(cell.name, error)
            except Exception:
                log.exception("the failure callback failed", actor=cell.name)

    def _send_down(self, watcher: str, watched: str, reason: str) -> None:
        down = Down(name=watched, reason=reason)
        if not self._cells[watcher].mailbox.put_fenced(down, Edge(watched, Lane.SYSTEM, None)):
            self.dead_letters.add(watcher, watched, down, Reason.RECEIVER_GONE)

    # ---- stopping ----

    def begin_stop(self, order: Sequence[str] = (), timeout_s: float = 30.0) -> None:
        """Stop in the background; the first call counts, later ones do nothing. Takes no lock, so it may be called
        from a handler, a coroutine, or a signal handler."""
        if next(self._stop_claims) == 0:
            # Not a daemon: a process that ends must not leave requests without their last answer.
            threading.Thread(target=self._stop_all, args=(tuple(order), timeout_s), name="stop").start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything has stopped; False when `timeout_s` seconds passed first."""
        return self._stopped.wait(timeout_s)

    def stop(self, order: Sequence[str] = (), timeout_s: float = 30.0) -> tuple[str, ...]:
        """See `System.stop`; blocks, and may be called any number of times, from any thread that runs no actor."""
        self._refuse_in_actor("stop")
        try:
            self.begin_stop(order, timeout_s)
        except RuntimeError:  # Python 3.12 starts no thread any more while the interpreter ends
            self._stop_all(tuple(order), timeout_s)
        self.wait()
        return self._not_stopped

    def _refuse_in_actor(self, what: str) -> None:
        me = threading.get_ident()
        if any(cell.owner == me and cell.phase is not Phase.ENDED for cell in list(self._cells.values())):
            raise RuntimeError(f"`{what}` blocks, and this thread runs an actor")

    def _is_here(self, cell: Receiver) -> bool:
        """Whether it is an actor of this process, which ends with it."""
        return True

    def _stop_all(self, order: tuple[str, ...], timeout_s: float) -> None:
        try:
            for cell, deadline in self._stop_in_order(order, timeout_s):
                cell.over.wait(max(0.0, deadline - self.clock()))
            self._all_stopped()
        finally:
            self._stopped.set()

    def _all_stopped(self) -> None:
        """The last thing of a stop."""

    def _stop_in_order(self, order: tuple[str, ...], timeout_s: float) -> Iterator[tuple[Receiver, float]]:
        """Each step of a stop: (cell whose end to wait for, until when at the most)."""
        with self._lock:
            started, self._started = self._started, True
            cells = dict(self._cells)
        rest = [name for name in reversed(cells) if name not in order and self._is_here(cells[name])]
        in_order = [cells[name] for name in (*order, *rest) if name in cells]
        for cell in in_order:
            if not started:
                cell.withdraw()
                continue
            cell.ask_to_stop("stopped")
            yield cell, self.clock() + timeout_s
            if not cell.over.is_set():
                log.error("actor did not stop in time", actor=cell.name, waiting=sum(cell.mailbox.depths()))
                cell.cut()
                # Those after it have their own time all the same: what it says last should still be heard.
                yield cell, self.clock() + CUT_GRACE_S
        self._not_stopped = tuple(cell.name for cell in in_order if not cell.over.is_set())
