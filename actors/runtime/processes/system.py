"""Actors in several processes: each process has a system like this, and a link to every other one it talks to.

Actors of this process are cells in threads, as in the local runtime. Those of others are remote cells, made when the
other process says Hello. To whoever sends, watches or stops, both are the same. What two processes promise each other:

    order along each edge, at most once, numbered; a gap is the loss of the process
    DATA that its receiver has not taken fills the sender's outbox, which then refuses, or holds the sender back
    a process that is silent, has ended, or has left is lost: `Down` to whoever watches an actor of it, after
    everything it said that was heard, and nothing of it is heard afterwards
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from pawl.actors.runtime.actor import Actor, Down, Overflow
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.processes.ends import Heartbeat, Wire
from pawl.actors.runtime.processes.frames import Bye, Card, Hello, Over, Spawned, Stop, Watch
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.mailboxes import LinkedMailbox
from pawl.actors.runtime.processes.remote import RemoteCell
from pawl.actors.runtime.receiver import Phase, Receiver

log = structlog.get_logger("pawl.actors")

BYE_S = 1.0
"""How long the last words of a process may take to leave it."""


class Process(NamedTuple):
    """Who this process is among others."""

    name: str
    make_codec: Callable[[Any], Codec]
    """Of what one actor accepts."""
    version: str = ""
    """Processes of different versions do not talk to each other."""
    heartbeat: Heartbeat = Heartbeat()
    on_met: Callable[[str], None] = lambda _: None
    """Called with the name of a process whose actors can be sent to from now on. None of these may block."""
    on_lost: Callable[[str, str], None] = lambda *_: None
    """Called with (process, reason) once its actors are gone."""
    on_left: Callable[[str], None] = lambda _: None
    """Called with the name of a process that has left as it should."""


class ProcessSystem(LocalSystem):
    """See `pawl.actors.runtime.system.System` for what the methods promise. `stop` stops the actors of this process,
    and those of others that its order names."""

    def __init__(self, process: Process, seed: int = 0, **options: Any) -> None:
        """`options` are those of a local system."""
        super().__init__(seed, **options)
        self.process = process
        self.links: dict[str, Link] = {}
        """By the name of the process at the other end."""
        self._codecs: dict[str, Codec] = {}

    # ---- building ----

    def connect(self, peer: str, wire: Wire) -> Link:
        """Talk to the process of that name, of which there is one at a time. Raises ValueError while it is there."""
        if peer in self.links:
            raise ValueError(f"there is a link to {peer!r} already")
        link = Link(peer, self, wire, self.process.make_codec(Any), self.process.heartbeat)
        with self._lock:
            self.links[peer] = link
            here = {name: cell for name, cell in self._cells.items() if isinstance(cell, Cell)}
            cards = tuple(self._card(name, cell) for name, cell in here.items() if cell.phase is not Phase.ENDED)
            link.say(Hello(self.process.name, self.process.version, cards))
        wire.carry(link)
        return link

    @staticmethod
    def _card(name: str, cell: Cell) -> Card:
        return Card(name, cell.mailbox.capacity, int(cell.mailbox.overflow), cell.accepts(Down))

    def _make_cell(self, actor: Actor, name: str, capacity: int, overflow: Overflow) -> Cell:
        cell = Cell(self, actor, name, LinkedMailbox(capacity, overflow), self._seed)
        self._codecs[name] = self.process.make_codec(actor.accepts)
        return cell

    def _tell_of(self, cell: Cell) -> None:
        # What it sends is not heard where nobody knows it, and a number that is left out is the loss of this process.
        for link in self.links.values():
            link.say(Spawned(self._card(cell.name, cell)))

    def watch(self, watcher: str, watched: str) -> None:
        super().watch(watcher, watched)
        cell = self._cells[watched]
        if isinstance(cell, RemoteCell) and cell.phase is Phase.RUNNING:
            cell.link.say(Watch(watcher, watched))

    # ---- what links ask of their system ----

    def local(self, name: str) -> tuple[Cell, Codec] | None:
        """The cell of an actor of this process, and what decodes its messages."""
        cell = self._cells.get(name)
        return (cell, self._codecs[name]) if isinstance(cell, Cell) else None

    def told(self, link: Link, word: Hello | Spawned | Watch | Stop | Over | Bye) -> None:
        """The other process has said so."""
        match word:
            case Hello():
                self._met(link, word)
            case Spawned():
                self._add_remote(link, word.card)
            case Watch():
                try:
                    super().watch(word.watcher, word.watched)
                except (KeyError, TypeError) as error:
                    log.error("cannot be watched", watcher=word.watcher, watched=word.watched, why=str(error))
            case Stop():
                self._stop_for_peer(word)
            case Over():
                self._over(link, word)
            case Bye():
                self._leave(link)

    def _met(self, link: Link, hello: Hello) -> None:
        mine = self.process.version
        if hello.process != link.peer or hello.version != mine:
            reason = f"{hello.process} {hello.version} and not {link.peer} {mine}"
            self.lost(link, reason)
            return
        for card in hello.cards:
            self._add_remote(link, card)
        link.met = True
        self.process.on_met(link.peer)

    def _add_remote(self, link: Link, card: Card) -> None:
        with self._lock:
            known = self._cells.get(card.name)
            if known is None:
                link.cells[card.name] = self._cells[card.name] = RemoteCell(self.dead_letters, link, card)
            elif isinstance(known, RemoteCell) and known.phase is Phase.ENDED:
                known.renew(link, card)
                link.cells[card.name] = known
            else:
                log.error("two actors of one name", actor=card.name, process=link.peer)

    def _stop_for_peer(self, stop: Stop) -> None:
        cell = self._cells.get(stop.name)
        if not isinstance(cell, Cell):
            return
        with self._lock:
            started = self._started
        if not started:
            cell.withdraw()
        elif stop.cut:
            cell.cut()
        else:
            cell.ask_to_stop(stop.reason)

    def _over(self, link: Link, over: Over) -> None:
        cell = link.cells.get(over.name)
        if cell is None or cell.phase is Phase.ENDED:
            return
        with self._lock:
            self._watchers.pop(over.name, None)
        cell.end(cell.mailbox.close_sent(), Reason.RECEIVER_FAILED if over.failed else Reason.RECEIVER_GONE)

    def heard_down(self, watcher: str, watched: str) -> None:
        """The other process has told a watcher here."""
        with self._lock:
            watchers = self._watchers.get(watched, [])
            if watcher in watchers:
                watchers.remove(watcher)

    def lost(self, link: Link, reason: str) -> None:
        """The other process is not to be heard any more."""
        if not self._forget(link):
            return
        log.critical("process lost", process=link.peer, reason=reason)
        for cell in link.cells.values():
            if cell.phase is Phase.RUNNING:
                with self._lock:
                    watchers = self._watchers.pop(cell.name, [])
                cell.end(cell.mailbox.close(), Reason.RECEIVER_FAILED)
                for watcher in watchers:
                    self._send_down(watcher, cell.name, f"lost: {reason}")
        self.process.on_lost(link.peer, reason)

    def _leave(self, link: Link) -> None:
        """It has left. What it did not end before is lost all the same."""
        if any(cell.phase is Phase.RUNNING for cell in link.cells.values()):
            self.lost(link, "it has left")
        elif self._forget(link):
            self.process.on_left(link.peer)

    def _forget(self, link: Link, linger_s: float = 0.0, last: Bye | None = None) -> bool:
        with self._lock:
            if self.links.get(link.peer) is not link:
                return False
            del self.links[link.peer]
        link.close(linger_s, last)
        return True

    # ---- the end ----

    def ended(self, cell: Cell, reason: str, error: BaseException | None) -> None:
        super().ended(cell, reason, error)
        for link in list(self.links.values()):
            link.finish(cell.name, error is not None)

    def _is_here(self, cell: Receiver) -> bool:
        return isinstance(cell, Cell)

    def _all_stopped(self) -> None:
        for peer in list(self.links):
            self.leave(peer, told_s=BYE_S)

    def leave(self, peer: str, told_s: float = 0.0) -> None:
        """Say goodbye to this process, if there is a link to it, and have no more to do with it. It is first told of
        what has ended here, as far as that takes no more than `told_s` seconds."""
        link = self.links.get(peer)
        if link is not None:
            link.finished(told_s)
        if link is not None and self._forget(link, BYE_S, Bye()):
            for cell in link.cells.values():
                cell.withdraw()
