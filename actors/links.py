"""Links between prefill and decode replicas in processes of their own, as the router has them made.

trying ── both have said Linked ──► up ── one has said LinkLost ──► (a moment) ──► trying
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from pawl.actors.messages.links import (
    AwaitPeer,
    EndPeer,
    FromLinker,
    JoinPeer,
    LinkAgain,
    Linked,
    LinkLost,
    PeerAddress,
)
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane

log = structlog.get_logger("pawl.router")

AGAIN_S = 1.0
"""After which a link that was lost is tried again."""

Turned = Callable[[int, int, bool], None]


@dataclass(eq=False)
class _Link:
    prefiller: Names
    decoder: Names
    attempt: int
    met: set[str] = field(default_factory=set)
    """Linkers that know the actors of the other side."""

    @property
    def up(self) -> bool:
        return len(self.met) == 2


class Links:
    """Of every two replicas that have to speak with each other and are not lost."""

    def __init__(self, actor: Actor, turned: Turned) -> None:
        """`actor` sends for it; `turned` is called with (prefill replica, decode replica, whether it is up)."""
        self._actor = actor
        self._turned = turned
        self._attempts = 0
        self._links: dict[tuple[int, int], _Link] = {}
        """By numbers: (prefill replica, decode replica)."""

    def up(self, prefiller: int, decoder: int) -> bool:
        """Whether they can reach each other."""
        link = self._links.get((prefiller, decoder))
        return link is not None and link.up

    def begin(self, prefiller: Names, decoder: Names) -> None:
        """Both are there."""
        link = self._links[prefiller.replica, decoder.replica] = _Link(prefiller, decoder, self._number())
        self._try(link)

    def _number(self) -> int:
        self._attempts += 1
        return self._attempts

    def _try(self, link: _Link) -> None:
        self._send(link.prefiller.linker, AwaitPeer(link.decoder.linker, link.attempt))

    def forget(self, lost: Names, reason: str) -> None:
        """A replica is gone, which whoever has a link with it need not find out by its silence."""
        for pair, link in list(self._links.items()):
            if lost in (link.prefiller, link.decoder):
                other = link.decoder if lost == link.prefiller else link.prefiller
                self._send(other.linker, EndPeer(lost.linker, reason))
                del self._links[pair]

    def receive(self, message: FromLinker | LinkAgain) -> None:
        """A linker has said so, or the time has come to try again."""
        link = next((each for each in self._links.values() if each.attempt == message.attempt), None)
        if link is None:
            return
        match message:
            case PeerAddress(linker, peer, attempt, address):
                self._send(peer, JoinPeer(linker, attempt, address))
            case Linked(linker):
                link.met.add(linker)
                if link.up:
                    self._turned(link.prefiller.replica, link.decoder.replica, True)
            case LinkLost():
                self._lost(link, message)
            case LinkAgain():
                self._try(link)

    def _lost(self, link: _Link, message: LinkLost) -> None:
        pair = link.prefiller.replica, link.decoder.replica
        log.error("two replicas have lost each other", prefill=pair[0], decode=pair[1], reason=message.reason)
        if link.up:
            self._turned(*pair, False)
        link.met.clear()
        attempt = self._number()
        self._send(message.peer, EndPeer(message.linker, message.reason))
        self._actor.context.after(AGAIN_S, LinkAgain(attempt))
        # What else is said of the attempt before is of no interest. Last: until here all is done again if it fails.
        link.attempt = attempt

    def _send(self, linker: str, message: AwaitPeer | JoinPeer | EndPeer) -> None:
        self._actor.context.send(linker, message, Lane.CONTROL)
