"""One adapter as a loop knows it, and what the loop needs of others for it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from pawl.lifecycle.machines.adapter import ADAPTER, AdapterPhase


def already_loaded(name: str) -> str:
    """Why it is not loaded once more."""
    return f"adapter {name!r} is already loaded; unload it first"


def still_loading(name: str) -> str:
    """Why it is not unloaded yet."""
    return f"adapter {name!r} is still being loaded"


class Adapter(msgspec.Struct, eq=False):
    """One incarnation."""

    number: int
    name: str
    source: str
    pinned: bool
    phase: AdapterPhase = ADAPTER.start
    fingerprint: str = ""
    slot: int = 0
    """That is its own; 0: none."""
    ticket: int = 0
    """Of the reading under way; 0: none is."""
    used: int = 0
    """When it was used last, by the count of all uses."""
    asker: int = 0
    """Who waits to hear that it is loaded, or gone."""

    @property
    def resident(self) -> bool:
        """Whether it can be computed with."""
        return self.slot > 0 and not self.ticket


class Named(NamedTuple):
    """An adapter that requests may name, for those who have to know."""

    name: str
    number: int
    source: str
    pinned: bool


class AdapterEffects(Protocol):
    """What the adapters of a loop need of others."""

    def read(self, ticket: int, slot: int, source: str) -> None:
        """Have it read into a slot that nobody computes with; AdapterLoaded or AdapterFailed is to follow."""

    def empty(self, slot: int) -> None:
        """Nothing is in this slot any more."""

    def named(self, adapters: tuple[Named, ...], resting: tuple[Named, ...]) -> None:
        """Requests may name these from now on; those that rest are not listed."""
