"""One actor and all that the runtime keeps for it. A driver (a thread, an event loop) calls `step` until it says False.

begin ─► started() ─► step: receive() per message ... settled() when nothing is left to take ─► stopped()
                         │ a handler raised
                         └► stopped() ─► the failure is told, watchers get `Down`, what waits becomes dead letters
"""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Protocol, Union, get_args, get_origin

import structlog

from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.dead_letters import DeadLetters, Reason
from pawl.actors.runtime.mailbox import ACCEPTED, Edge, Entry, Mailbox
from pawl.actors.runtime.receiver import Phase, Receiver, not_accepted
from pawl.actors.runtime.timers import ActorTimer, TimerQueue

log = structlog.get_logger("pawl.actors")

# SystemExit too: a handler that calls sys.exit() would otherwise end its thread without a word.
FAILURES = (Exception, SystemExit)


class Host(Protocol):
    """What a cell needs from the system it lives in."""

    dead_letters: DeadLetters
    clock: Callable[[], float]
    wall: Callable[[], float]

    def find(self, name: str) -> Receiver | None:
        """Who takes messages for the actor `name`; None when there is none."""

    def ended(self, cell: Cell, reason: str, error: BaseException | None) -> None:
        """The cell has handled its last message; `error` says that it ended by a failure."""


@lru_cache(maxsize=256)
def message_types(accepts: Any) -> tuple[type, ...]:
    """The classes of a tagged union. Raises TypeError for what is not a union of classes."""
    members = get_args(accepts) if get_origin(accepts) in (Union, types.UnionType) else (accepts,)
    if not all(isinstance(member, type) and member is not Any for member in members):
        raise TypeError(f"`accepts` must be a class or a union of classes, not {accepts!r}")
    return members


def settles(actor: Actor) -> bool:
    """Whether `settled` is more than the one that does nothing."""
    return type(actor).settled is not Actor.settled


class CellContext:
    """The world as one actor sees it (`pawl.actors.runtime.actor.Context`)."""

    def __init__(self, cell: Cell, host: Host, seed: int) -> None:
        self.name = cell.name
        self._cell = cell
        self._host = host
        self._seed = seed
        self._random: random.Random | None = None
        self._edges: tuple[dict[str, tuple[Receiver, Edge]], ...] = ({}, {}, {})

    def now(self) -> float:
        return self._host.clock()

    def wall(self) -> float:
        return self._host.wall()

    @property
    def random(self) -> random.Random:
        # Seeding takes longer than handling a message, and most actors draw nothing.
        if self._random is None:
            self._random = random.Random(f"{self._seed}/{self.name}")
        return self._random

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        found = self._edges[lane].get(to)
        if found is None:
            cell = self._host.find(to)
            if cell is None:
                self._host.dead_letters.add(to, self.name, message, Reason.UNKNOWN_RECEIVER)
                return False
            # Two threads may open the same edge at once (an HTTP server beside its actor): one of them wins.
            found = self._edges[lane].setdefault(to, (cell, Edge(self.name, lane, self._cell.mailbox)))
        return found[0].admit(message, found[1])

    def after(self, delay_s: float, message: Any) -> ActorTimer:
        return self._cell.set_timer(self._host.clock() + delay_s, message)


class Cell:
    """Everything below `begin` belongs to the thread that runs the actor; the rest is safe from any thread."""

    def __init__(self, host: Host, actor: Actor, name: str, mailbox: Mailbox, seed: int) -> None:
        self.name = name
        self.mailbox = mailbox
        self.phase = Phase.NEW
        self.over = threading.Event()
        """Set when the last handler has returned and everybody concerned was told."""
        self.owner: int | None = None
        """Identifier of the thread that runs the actor."""
        self.roams = actor.roams
        self.on_timer: Callable[[], None] = lambda: None
        """Called when a timer is set; a driver that is not looping by itself re-arms its clock here."""
        self.context = CellContext(self, host, seed)
        self._host = host
        self._types = message_types(actor.accepts)
        self._exact_types = set(self._types)
        self._actor: Actor | None = actor
        self._timers = TimerQueue()
        self._timer_edge = Edge(name, Lane.CONTROL, None)
        self._settles = settles(actor)
        self._dirty = False
        """Something was received since `settled` was last called; never so where `settled` does nothing."""
        self._stop_reason: str | None = None
        self._cut = False
        actor.context = self.context

    # ---- any thread ----

    def accepts(self, message_type: type) -> bool:
        """Whether messages of this type are let in."""
        if message_type in self._exact_types:
            return True
        if not issubclass(message_type, self._types):
            return False
        self._exact_types.add(message_type)
        return True

    def admit(self, message: Any, edge: Edge) -> bool:
        """Put a message into the mailbox if it is of an accepted type and there is room."""
        if type(message) not in self._exact_types and not self.accepts(type(message)):
            self._host.dead_letters.add(self.name, edge.sender, message, Reason.UNKNOWN_MESSAGE)
            return False
        outcome = self.mailbox.put(message, edge)
        return outcome is ACCEPTED or not_accepted(self._host.dead_letters, self.name, message, edge, outcome)

    def ask_to_stop(self, reason: str) -> None:
        """Handle what waits, then end."""
        self._stop_reason = reason
        self.mailbox.nudge()

    def cut(self) -> None:
        """End after the handler that runs now; what waits becomes dead letters."""
        self._cut = True
        self.mailbox.nudge()

    def abandon(self, reason: str) -> None:
        """The driver is gone and no handler can run any more."""
        if self.phase is not Phase.ENDED:
            self._end(reason, RuntimeError(f"{self.name}: {reason}"))

    def withdraw(self) -> None:
        """End a cell that was never begun."""
        self._end("never started", None)

    # ---- the actor's own thread ----

    def begin(self) -> None:
        """Bring the actor up."""
        self.owner = threading.get_ident()
        self.phase = Phase.RUNNING
        try:
            self._running().started()
        except FAILURES as error:
            self._actor = None
            self._fail(error)

    def step(self) -> bool:
        """Do one thing: handle a message, or settle, or end. False: nothing to do before `deadline` or a wake."""
        if self.phase is not Phase.RUNNING:
            return False
        if self._cut:
            self._finish(self._stop_reason or "cut off")
            return False
        if self._timers.heap:
            self._queue_due_timers()
        entry = self.mailbox.take()
        if entry is not None:
            self._deliver(entry)
            return True
        if self._dirty:
            if self.mailbox.postpone():
                return False
            self._dirty = False
            self._settle()
            return True
        if self._stop_reason is not None and self.mailbox.close_if_empty():
            self._finish(self._stop_reason)
        return False

    def deadline(self) -> float | None:
        """Monotonic seconds at which `step` has something to do even if no message comes; None: never."""
        return self._timers.next_due() if self.phase is Phase.RUNNING else None

    def set_timer(self, due: float, message: Any) -> ActorTimer:
        """Send `message` to the actor itself at monotonic time `due`. Raises RuntimeError in a foreign thread."""
        if threading.get_ident() != self.owner:
            raise RuntimeError(f"only {self.name}'s own thread may set its timers")
        timer = self._timers.add(due, message)
        self.on_timer()
        return timer

    def timed(self) -> Iterator[Any]:
        """What its timers will tell the actor."""
        return self._timers.messages()

    def _queue_due_timers(self) -> None:
        now = self._host.clock()
        while (timer := self._timers.pop_due(now)) is not None:
            self.mailbox.put(timer, self._timer_edge)

    def _deliver(self, entry: Entry) -> None:
        message, edge, number = entry
        if number != edge.delivered + 1:
            # Cannot happen while `Mailbox` is right; said loudly because everything above relies on the order.
            log.error("gap", to=self.name, sender=edge.sender, expected=edge.delivered + 1, got=number)
        edge.delivered = number
        if message.__class__ is ActorTimer:
            if not message.claim():
                return
            message = message.message
        self._dirty = self._settles
        self._handle(message, entry)

    def _handle(self, message: Any, entry: Entry) -> None:
        try:
            self._running().receive(message)
        except FAILURES as error:
            if not self._contained(error, message):
                self._fail(error, message, entry)

    def _contained(self, error: BaseException, message: Any = None) -> bool:
        """Whether the failure could be kept to what the message was for, or the actor knew how to go on."""
        actor = self._actor
        if actor is None or not isinstance(error, Exception):
            return False
        try:
            survived = actor.spares(message, error)
        except FAILURES as second:
            log.error("containment failed", actor=self.name, error=type(second).__name__)
            return False
        self._dirty = self._settles
        return survived

    @property
    def num_contained(self) -> int:
        """Failures that the actor has survived."""
        return 0 if self._actor is None else self._actor.num_contained

    def _settle(self) -> None:
        try:
            self._dirty = bool(self._running().settled())
        except FAILURES as error:
            if not self._contained(error):
                self._fail(error)

    def _running(self) -> Actor:
        assert self._actor is not None
        return self._actor

    def _fail(self, error: BaseException, message: Any = None, entry: Entry | None = None) -> None:
        """The actor is lost: say so, let it answer what it holds, and tell everybody concerned."""
        kind = None if message is None else type(message).__name__
        log.error("actor failed", actor=self.name, message=kind, error=type(error).__name__, exc_info=error)
        # The class alone: clients are told the reason, and an exception's own words may quote another one's prompt.
        reason = f"failed: {type(error).__name__}"
        if self._actor is not None:
            self._actor.failure = error
        self._stop_actor(reason)
        self._end(reason, error, entry)

    # ---- the end ----

    def _stop_actor(self, reason: str) -> BaseException | None:
        """Call `stopped`, once, of an actor that was started; gives back what it raised."""
        actor, self._actor = self._actor, None
        if actor is None:
            return None
        try:
            actor.stopped(reason)
        except FAILURES as error:
            log.error("actor failed", actor=self.name, message=None, error=type(error).__name__, exc_info=error)
            return error
        return None

    def _finish(self, reason: str) -> None:
        self._end(reason, self._stop_actor(reason))

    def _end(self, reason: str, error: BaseException | None, fatal: Entry | None = None) -> None:
        """Nothing is handled any more; `fatal` is the message that the actor failed at."""
        self.phase = Phase.ENDED
        self._timers.forget()
        left = self.mailbox.close()
        if fatal is not None:
            left.insert(0, fatal)
        why = Reason.RECEIVER_GONE if error is None else Reason.RECEIVER_FAILED
        for message, edge, _ in left:
            if not isinstance(message, ActorTimer):
                self._host.dead_letters.add(self.name, edge.sender, message, why)
        try:
            self._host.ended(self, reason, error)
        finally:
            self.over.set()
