"""The linker of a replica: joins its process with those of other replicas, as the router says.

Messages between replicas go from process to process, not by way of the front. Addresses are values: who waits says
where, and the router hands that on.
"""

from __future__ import annotations

from typing import Any, Protocol

from pawl.actors.messages.links import (
    AwaitPeer,
    EndPeer,
    JoinPeer,
    Linked,
    LinkLost,
    PeerAddress,
    PeerLost,
    PeerMet,
    ToLinker,
)
from pawl.actors.names import ROUTER, Names
from pawl.actors.runtime.actor import Actor, Lane


class Dialer(Protocol):
    """Makes links. The linker is told with PeerMet and PeerLost what becomes of them."""

    def wait(self, peer: str) -> str:
        """Wait for the process of the linker `peer`, with whose process there is no link: at which address. Raises
        OSError."""

    def join(self, peer: str, address: str) -> None:
        """Go to the process that waits there. Raises OSError, and ValueError for what is no address."""

    def end(self, peer: str, reason: str) -> None:
        """The link with it, if any, is lost once what has come is heard."""


class Linker(Actor):
    """Every link of this process but that with the front."""

    accepts: Any = ToLinker

    def __init__(self, dialer: Dialer, names: Names) -> None:
        self._dialer = dialer
        self._name = names.linker
        self._attempts: dict[str, int] = {}
        """Number of the attempt that goes on, or has become a link, by peer."""

    def receive(self, message: Any) -> None:
        match message:
            case AwaitPeer(peer) | JoinPeer(peer):
                self._attempts[peer] = message.attempt
                try:
                    self._try(message)
                except (OSError, ValueError) as error:
                    self._lost(peer, str(error))
            case PeerMet(peer) if peer in self._attempts:
                self._tell(Linked(self._name, peer, self._attempts[peer]))
            case PeerLost(peer, reason):
                self._lost(peer, reason)
            case EndPeer(peer, reason):
                self._attempts.pop(peer, None)
                self._dialer.end(peer, reason)

    def _try(self, message: AwaitPeer | JoinPeer) -> None:
        if isinstance(message, JoinPeer):
            self._dialer.join(message.peer, message.address)
        else:
            self._tell(PeerAddress(self._name, message.peer, message.attempt, self._dialer.wait(message.peer)))

    def _lost(self, peer: str, reason: str) -> None:
        attempt = self._attempts.pop(peer, None)
        if attempt is not None:
            self._tell(LinkLost(self._name, peer, attempt, reason))

    def _tell(self, message: PeerAddress | Linked | LinkLost) -> None:
        self.context.send(ROUTER, message, Lane.CONTROL)
