"""What the prefix cache tells about itself, handed on from one place: to the trace, and to whoever else follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.records import CacheChange
from pawl.memory.arrays import NO_PAGES
from pawl.memory.prefix.base import PrefixCache
from pawl.memory.prefix.events import CacheEvent, Removed, Stored

Follower = Callable[[Sequence[CacheEvent]], None]


class CacheEventLog:
    """Takes the events out of `cache`; nobody else does. The trace gets them ahead of the next record, a follower when
    it asks for them (`collect`) or when the trace does, whichever comes first."""

    def __init__(self, cache: PrefixCache, journal: Journal) -> None:
        self._cache = cache
        self._followers: list[Follower] = []
        self._recording = journal.recording
        self._unrecorded: list[CacheEvent] = []
        if self._recording:
            cache.events = []
            journal.precede(self._changes)

    def follow(self, follower: Follower) -> None:
        """Have `follower` called with all events from now on, oldest first."""
        self._followers.append(follower)
        if self._cache.events is None:
            self._cache.events = []

    def collect(self) -> None:
        """Hand on what has happened since the last time."""
        events = self._cache.events
        if not events:
            return
        self._cache.events = []
        if self._recording:
            self._unrecorded += events
        for follower in self._followers:
            follower(events)

    def _changes(self) -> tuple[CacheChange, ...]:
        if self._cache.events:
            self.collect()
        if not self._unrecorded:
            return ()
        events, self._unrecorded = self._unrecorded, []
        return tuple(_change(event) for event in events)


def _change(event: CacheEvent) -> CacheChange:
    match event:
        case Stored():
            return CacheChange("stored", event.namespace, event.parent, event.pages)
        case Removed(pages):
            return CacheChange("removed", "", None, pages)
        case _:
            return CacheChange("cleared", "", None, NO_PAGES)
