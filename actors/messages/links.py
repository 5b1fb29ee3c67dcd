"""Links between the processes of two replicas: who asks for them, and who makes them.

    router ── AwaitPeer ──► linker of a prefill replica        (it waits at an address of its own)
    router ◄── PeerAddress ─┘
    router ── JoinPeer ──► linker of a decode replica          (it goes there)
    router ◄── Linked ─────┘
    router ◄── LinkLost ── either; the router has them try again   ── EndPeer ──► either: the other process is gone

Each attempt has a number, so what is said of an earlier one is told from what is said of this one.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class AwaitPeer(msgspec.Struct, frozen=True, tag=True):
    """router -> linker: wait for the process of the linker `peer`. PeerAddress or LinkLost is to follow."""

    peer: str
    attempt: int


class PeerAddress(msgspec.Struct, frozen=True, tag=True):
    """linker -> router: `peer` finds the process of `linker` at this address."""

    linker: str
    peer: str
    attempt: int
    address: str


class JoinPeer(msgspec.Struct, frozen=True, tag=True):
    """router -> linker: the process of the linker `peer` waits at this address. Linked or LinkLost is to follow."""

    peer: str
    attempt: int
    address: str


class Linked(msgspec.Struct, frozen=True, tag=True):
    """linker -> router: actors of `peer` can be sent to."""

    linker: str
    peer: str
    attempt: int


class LinkLost(msgspec.Struct, frozen=True, tag=True):
    """linker -> router: they cannot, or not any more."""

    linker: str
    peer: str
    attempt: int
    reason: str


class EndPeer(msgspec.Struct, frozen=True, tag=True):
    """router -> linker: the process of `peer` is not to be heard any more. Nothing is said of it afterwards."""

    peer: str
    reason: str


class PeerMet(msgspec.Struct, frozen=True, tag=True):
    """The link itself -> linker: the other process has said which actors it has."""

    peer: str


class PeerLost(msgspec.Struct, frozen=True, tag=True):
    """The link itself -> linker: the other process is silent, or gone."""

    peer: str
    reason: str


class LinkAgain(msgspec.Struct, frozen=True, tag=True):
    """The router's own timer: this attempt is due."""

    attempt: int


ToLinker: TypeAlias = AwaitPeer | JoinPeer | EndPeer | PeerMet | PeerLost
FromLinker: TypeAlias = PeerAddress | Linked | LinkLost
