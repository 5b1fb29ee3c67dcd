"""What the prefix cache has, as its recorded changes tell."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from pawl.lifecycle.records import CacheChange, Cached, int32s


class CacheFaults(NamedTuple):
    """What was wrong with the changes of one record: pages, by kind of fault."""

    stored_twice: list[int]
    removed_twice: list[int]
    """They were not cached when they were removed."""
    cut_off: list[int]
    """Without the page before them: stored below one that is not cached, or left behind when it was removed."""
    foreign: list[int]
    """Stored below a page of another namespace."""


SOUND = CacheFaults([], [], [], [])


class CacheView:
    """The cached pages: which namespace each belongs to, and what hangs below what."""

    def __init__(self) -> None:
        self.namespace: dict[int, str] = {}
        """page -> namespace of the requests that may share it"""
        self.faults = SOUND
        """What is wrong with the current record."""
        self.stored: list[int] = []
        """Pages that the current record stores."""
        self.removed: list[int] = []
        """Pages that the current record takes away."""
        self._parent: dict[int, int | None] = {}
        self._children: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.namespace)

    def advance(self, record: Cached) -> None:
        """Take one record in."""
        self.faults = CacheFaults([], [], [], [])
        self.stored, self.removed = [], []
        for change in record.changes:
            match change.kind:
                case "stored":
                    self._store(change)
                case "removed":
                    self._remove(int32s(change.pages).tolist())
                case _:
                    self._remove(list(self.namespace))

    def _store(self, change: CacheChange) -> None:
        parent = change.parent
        pages = int32s(change.pages).tolist()
        if parent is not None and parent not in self.namespace:
            self.faults.cut_off.extend(pages[:1])
        elif parent is not None and self.namespace[parent] != change.namespace:
            self.faults.foreign.extend(pages[:1])
        for page in pages:
            if page in self.namespace:
                self.faults.stored_twice.append(page)
            self.namespace[page] = change.namespace
            self._parent[page] = parent
            if parent is not None:
                self._children[parent] += 1
            parent = page
        self.stored += pages

    def _remove(self, pages: list[int]) -> None:
        for page in pages:
            if self.namespace.pop(page, None) is None:
                self.faults.removed_twice.append(page)
                continue
            parent = self._parent.pop(page)
            if parent is not None:
                self._children[parent] -= 1
        # All pages of one change leave at the same time.
        self.faults.cut_off.extend(page for page in pages if self._children.pop(page, 0) > 0)
        self.removed += pages
