"""Property `released_is_still`, and what of the memory is released, for others that judge by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pawl.lifecycle.machines.memory import RESIDENCY, MemoryTag, Residency, ResidencyEvent
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Idled, MemoryMoved, StepPlanned, Transition
from pawl.lifecycle.states import Event


class Releases:
    """What is released."""

    def __init__(self) -> None:
        self.tags: set[MemoryTag] = set()

    def begin(self, beginning: Beginning) -> None:
        """Start from a checkpoint."""
        self.tags = set(beginning.residency.released)

    def moved(self, record: MemoryMoved) -> list[MemoryTag]:
        """Parts have moved; those that could not."""
        states = {tag: Residency.RELEASED if tag in self.tags else Residency.RESIDENT for tag in record.tags}
        known = {move[:2] for move in RESIDENCY.moves}
        wrong = [tag for tag in record.tags if (states[tag], record.event) not in known]
        (self.tags.update if record.event is ResidencyEvent.RELEASE else self.tags.difference_update)(record.tags)
        return wrong


class ReleasedIsStill(Property):
    """While a part of the engine's memory is released no step is planned and nobody is admitted. It is released with no
    step in flight, and pages only when nobody owns any and the prefix cache is empty. Each part moves as the table
    says."""

    name: ClassVar[str] = "released_is_still"

    def __init__(self) -> None:
        self._releases = Releases()

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._releases.begin(beginning)
        return ()

    @on(StepPlanned, Idled)
    def _planned(self, record: StepPlanned | Idled, history: History) -> Sequence[Violation]:
        return (self.violation(history, f"a step was planned while {self._are}"),) if self._releases.tags else ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        if not self._releases.tags:
            return ()
        return (self.violation(history, f"it was admitted while {self._are}", record.request),)

    @on(MemoryMoved)
    def _moved(self, record: MemoryMoved, history: History) -> Sequence[Violation]:
        found = [self.violation(history, f"{tag} cannot {record.event}") for tag in self._releases.moved(record)]
        if record.event is not ResidencyEvent.RELEASE:
            return found
        if history.in_flight:
            text = f"{self._are}, with {len(history.in_flight)} steps in flight"
            found.append(self.violation(history, text))
        working = history.working
        if MemoryTag.KV_CACHE in record.tags and working.any():
            request = int(history.request[int(working.argmax())])
            found.append(self.violation(history, "pages are released while it is at work", request))
        if MemoryTag.KV_CACHE in record.tags and len(history.cache):
            found.append(self.violation(history, f"pages are released, {len(history.cache)} of which are cached"))
        return found

    @property
    def _are(self) -> str:
        return f"{', '.join(sorted(self._releases.tags))} is released"
