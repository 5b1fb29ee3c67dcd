"""A cell of a simulated run: a real `Cell` that can say what its next step would be, and be made to fail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias

from pawl.actors.runtime.actor import Actor
from pawl.actors.runtime.cell import Cell, Host
from pawl.actors.runtime.codec import Codec, Malformed
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.mailbox import Edge, Entry
from pawl.actors.runtime.receiver import Phase
from pawl.actors.runtime.timers import ActorTimer
from pawl.actors.simulation.faults import InjectedCrash
from pawl.actors.simulation.mailbox import SimulatedMailbox

MakeCodec: TypeAlias = Callable[[Any], Codec]
"""Of what one actor accepts."""


class Observer(Protocol):
    """Who wants to know what the actors of a system go through."""

    inside: Callable[[str, Any], AbstractContextManager[None]] | None
    """What an actor does, with its name and the message that it handles (None: it settles), is done inside of this."""

    def delivered(self, name: str, message: Any) -> None:
        """The actor `name` is about to handle `message`."""

    def failed(self, name: str, error: BaseException) -> None:
        """The actor `name` is lost."""


class SimulatedCell(Cell):
    """A cell that can say what its next step would be, and be made to fail."""

    mailbox: SimulatedMailbox

    def __init__(
        self,
        host: Host,
        observer: Observer,
        actor: Actor,
        name: str,
        mailbox: SimulatedMailbox,
        seed: int,
        make_codec: MakeCodec | None = None,
    ) -> None:
        """With `make_codec`, what this actor is sent goes through bytes, as on a wire."""
        super().__init__(host, actor, name, mailbox, seed)
        self.crash: str | None = None
        """"before" or "after": the message handled next is where the actor fails."""
        self._observer = observer
        self._codec = make_codec(actor.accepts) if make_codec is not None else None

    def admit(self, message: Any, edge: Edge) -> bool:
        if self._codec is not None:
            try:
                message = self._codec.decode(self._codec.encode(message))
            except Malformed:
                self._host.dead_letters.add(self.name, edge.sender, message, Reason.UNKNOWN_MESSAGE)
                return False
        return super().admit(message, edge)

    def _handle(self, message: Any, entry: Entry) -> None:
        crash, self.crash = self.crash, None
        self._observer.delivered(self.name, message)
        if crash != "before":
            before = None if self._actor is None else self._actor.contained
            if self._observer.inside is None:
                super()._handle(message, entry)
            else:
                with self._observer.inside(self.name, message):
                    super()._handle(message, entry)
            self._tell_contained(before)
        if crash is not None and self.phase is Phase.RUNNING:
            self._fail(InjectedCrash(self.name, f"{crash} a message"), message, entry)

    def _settle(self) -> None:
        before = None if self._actor is None else self._actor.contained
        if self._observer.inside is None:
            super()._settle()
        else:
            with self._observer.inside(self.name, None):
                super()._settle()
        self._tell_contained(before)

    def _tell_contained(self, before: Exception | None) -> None:
        """It went on; all the same it is a failure of ours, and a run shows none."""
        actor = self._actor
        if actor is not None and actor.contained is not None and actor.contained is not before:
            self._observer.failed(self.name, actor.contained)

    def _fail(self, error: BaseException, message: Any = None, entry: Entry | None = None) -> None:
        self._observer.failed(self.name, error)
        super()._fail(error, message, entry)

    def vanish(self, why: str) -> None:
        """End in the middle of whatever it does: nothing of it runs, not even what ends it."""
        if self.phase is not Phase.ENDED:
            self._end(why, InjectedCrash(self.name, why))

    def busy(self) -> bool:
        """Whether `step` would do something."""
        if self.phase is Phase.RUNNING:
            if self._cut or self.mailbox.has_takeable() or (self._timers.heap and self._timer_is_due()):
                return True
            if self._dirty:
                return not self.mailbox.postpone()
            return self._stop_reason is not None and self.mailbox.is_empty()
        return self.phase is Phase.NEW

    @property
    def unsettled(self) -> bool:
        """Whether it has handled something since it last settled: what it says of that may be to come."""
        return self.phase is Phase.RUNNING and self._dirty

    def takes_message(self) -> bool:
        """Whether the next step hands a message to the actor."""
        return self.phase is Phase.RUNNING and not self._cut and self._next() is not None

    def _timer_is_due(self) -> bool:
        due = self._timers.next_due()
        return due is not None and due <= self._host.clock()

    def _next(self) -> Entry | Literal[True] | None:
        return self.mailbox.peek(timer_is_due=bool(self._timers.heap) and self._timer_is_due())

    def label(self) -> str:
        """What the next step would do."""
        name = self.name
        if self._cut or self.phase is not Phase.RUNNING:
            return f"{name} begins" if self.phase is Phase.NEW else f"{name} is cut off"
        found = self._next()
        if found is True or (found is not None and found[0].__class__ is ActorTimer):
            return f"{name}<timer"
        if found is not None:
            return self.mailbox.taking(found[1])
        if self._dirty:
            return f"{name} settles"
        return f"{name} rests" if self._stop_reason is None else f"{name} stops"

    def dump(self) -> str:
        """One line for a person: state, what waits, next deadline."""
        due = self.deadline()
        deadline = "" if due is None else f", next deadline at {due:g} s"
        return f"{self.name}: {self.phase.name.lower()}, waiting: {self.mailbox.dump()}{deadline}"
