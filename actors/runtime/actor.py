"""What an actor is, and what it may ask of the runtime that drives it.

An actor is a plain object. Its handlers are synchronous and run to completion, one at a time. Clock, randomness,
timers and sends come from its `Context`; an actor never imports `time`, `random`, `threading` or `asyncio`. The same
object runs under the simulated, the local and the ZeroMQ runtime.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Protocol

import msgspec
import structlog

log = structlog.get_logger("pawl.actors")


class Lane(IntEnum):
    """Priority of a message. A lower lane is served first; within (sender, receiver, lane) order is kept."""

    SYSTEM = 0
    CONTROL = 1
    DATA = 2


class Overflow(IntEnum):
    """What a full DATA mailbox does. SYSTEM and CONTROL are never refused."""

    REJECT = 0
    """`Context.send` returns False; the sender answers its client with an overload."""
    HOLD = 1
    """The sender is held back until there is room (its own mailbox then fills, and so on to the edge)."""


class Down(msgspec.Struct, frozen=True, tag=True):
    """A peer is gone. Arrives after every earlier message of that peer."""

    name: str
    reason: str


class Timer(Protocol):
    def cancel(self) -> None: ...


class Context(Protocol):
    """The world as one actor sees it."""

    name: str

    def now(self) -> float:
        """Monotonic seconds."""

    def wall(self) -> float:
        """Seconds since the epoch; for timestamps in replies and traces, never for decisions."""

    @property
    def random(self) -> random.Random:
        """This actor's own seeded generator."""

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        """Post `message`. False when the receiver's DATA mailbox is full (REJECT) or the receiver does not exist."""

    def after(self, delay_s: float, message: Any) -> Timer:
        """Deliver `message` to this actor itself (CONTROL lane) in `delay_s` seconds, unless cancelled."""


MOST_IN_A_ROW = 8
"""Failures in a row of an actor that survives them, after which it is not what it should be."""


def places_of(error: Exception) -> list[str]:
    """Where it was raised and who had called, without its words: those may quote a client."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


class Actor:
    """Base of every actor. `accepts` is the tagged union of messages its mailbox takes; anything else goes to dead
    letters and is counted."""

    accepts: Any = None
    context: Context
    roams = False
    """Its handlers may run in any thread, one at a time: in the one that has read a message for it, which spares a
    change of threads. Not for actors that use what belongs to one thread (a device, a pool of computing threads)."""
    num_contained = 0
    """Failures that ended a request, or an answer, and not the actor."""
    num_in_a_row = 0
    """Failures that were nobody's, since the actor last got on."""
    contained: Exception | None = None
    """The latest of these failures."""
    failure: BaseException | None = None
    """What ends the actor, where it fails; set before `stopped`. What it was at may be half done then."""

    def started(self) -> None:
        """Called once, in the actor's own thread, before the first message."""

    def receive(self, message: Any) -> None:
        """Handle one message. One `match`; no dispatcher table."""
        raise NotImplementedError

    def spares(self, message: Any, error: Exception) -> bool:
        """`receive` raised `error` (`settled`: `message` is None): whether that could be kept to what the message was
        for, or the actor could go on from a state that it knows to be right. If not, the actor fails."""
        if message is None:
            return False
        requests = tuple(self.requests_of(message))
        for request in requests:
            self.contain(request, error)
        return bool(requests)

    def survives(self) -> bool:
        """The actor can go on after a failure that was nobody's. Whether it should: not after too many in a row."""
        self.num_in_a_row += 1
        return self.num_in_a_row <= MOST_IN_A_ROW

    def progressed(self) -> None:
        """What failed last, if anything, does not fail every time."""
        self.num_in_a_row = 0

    def requests_of(self, message: Any) -> Iterable[int]:
        """Numbers of the requests that `message` is for, where it is for nothing else: a failure to handle it ends
        these."""
        return ()

    def contain(self, request: int, error: Exception) -> None:
        """The last line of defence: something failed for the sake of one request, which ends; nothing else does."""
        self.told_of(error, request=request)
        self.end_request(request)

    def told_of(self, error: Exception, **what: Any) -> None:
        """Count a failure that the actor survives, and say where it was, and for `what`.

        The log never quotes the content: an exception's own words may hold a prompt.
        """
        self.num_contained += 1
        self.contained = error
        if self.num_contained & (self.num_contained - 1) == 0:
            log.error(
                "something could not be handled and is ended",
                actor=self.context.name,
                error=type(error).__name__,
                at=places_of(error),
                count=self.num_contained,
                **what,
            )

    def end_request(self, request: int) -> None:
        """End this request with cause `internal`. Of every actor whose `requests_of` names some."""
        raise NotImplementedError

    def settled(self) -> bool | None:
        """Called when the mailbox has been emptied after at least one message: the place for work that should see
        all that has arrived (the scheduler plans here). Not while a full mailbox holds the actor back. True: there is
        more to do, once what has arrived meanwhile is handled; it is called again."""
        return None

    def stopped(self, reason: str) -> None:
        """Called once, last, after the mailbox was drained. Must answer everything still open."""
