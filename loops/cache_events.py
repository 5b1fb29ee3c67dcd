"""What the prefix cache tells about itself, handed on from one place: to the trace, and to whoever else follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.records import CacheChange
from pawl.memory.arrays import NO_PAGES
from pawl.memory.memory import Memory
from pawl.memory.prefix.events import CacheEvent, Removed, Stored

Follower = Callable[[Sequence[CacheEvent]], None]


class CacheEventLog:
    """Takes the events out of the cache of `memory`; nobody else does. The trace gets them ahead of the next record, a
    follower when it asks for them (`collect`) or when the trace does, whichever comes first."""

    def __init__(self, memory: Memory, journal: Journal) -> None:
        self._memory = memory
        self._followers: list[Follower] = []
        self._recording = journal.recording
        self.unrecorded: list[CacheEvent] = []
        if self._recording:
            memory.cache.events = []
            journal.precede(self)

    def follow(self, follower: Follower) -> None:
        """Have `follower` called with all events from now on, oldest first."""
        self._followers.append(follower)
        if self._memory.cache.events is None:
            self._memory.cache.events = []

    def collect(self) -> None:
        """Hand on what has happened since the last time."""
        cache = self._memory.cache
        events = cache.events
        if not events:
            return
        unrecorded = [*self.unrecorded, *events] if self._recording else []
        none: list[CacheEvent] = []
        # Nothing can fail between these two.
        cache.events = none
        self.unrecorded = unrecorded
        for follower in self._followers:
            follower(events)

    def forget(self) -> None:
        """The cache is about to be emptied, and what it did last may be half done: nobody is told."""
        self.unrecorded.clear()
        if self._memory.cache.events:
            self._memory.cache.events = []

    def changes(self) -> tuple[CacheChange, ...]:
        """What is to be recorded."""
        if self._memory.cache.events:
            self.collect()
        return tuple([_change(event) for event in self.unrecorded]) if self.unrecorded else ()


def _change(event: CacheEvent) -> CacheChange:
    match event:
        case Stored():
            return CacheChange("stored", event.namespace, event.parent, event.pages)
        case Removed(pages):
            return CacheChange("removed", "", None, pages)
        case _:
            return CacheChange("cleared", "", None, NO_PAGES)
