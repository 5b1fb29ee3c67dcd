"""Which pages go down to the lower cache tiers, and when.

    write-through             as soon as the device's cache has them; what could not go then, when it leaves the cache
    write-through-selective   when a request hits them (the second use of a page is the first sign of a third)
    write-back                when they leave the device's cache
    hand-over                 as write-through, and when a request hits what has not gone yet (a prefill replica's)

What is to go is gathered while the loop plans and commits, and is sent ahead of the step that might reuse the pages. A
bounded number of pages is under way at a time; beyond it pages stay where they are, and nobody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import TypeAlias

import msgspec
import numpy as np

from pawl.memory.arrays import Int32s
from pawl.memory.prefix.events import CacheEvent, Cleared, Removed, Stored
from pawl.memory.tiers.index import TierIndex
from pawl.memory.tiers.keys import DeviceKeys, PageKey

Send: TypeAlias = Callable[[int, Int32s, tuple[PageKey, ...]], None]
"""(number, pages, keys): copy these pages, as they are now, to the tiers below."""


class WritePolicy(StrEnum):
    """See the module."""

    WRITE_THROUGH = "write-through"
    WRITE_BACK = "write-back"
    SELECTIVE = "write-through-selective"
    HAND_OVER = "hand-over"


CHOICES = tuple(policy.value for policy in WritePolicy if policy is not WritePolicy.HAND_OVER)
"""Of a server; the other is a prefill replica's."""


class SavingCounts(msgspec.Struct):
    """Pages since the start."""

    saved: int = 0
    """Sent, and kept by a tier."""
    refused: int = 0
    """Sent, and kept by none."""
    skipped: int = 0
    """Not sent, because too many were under way."""


class Saving:
    """Follows the device's cache and sends pages down. `at_once` pages in one message, `limit` under way."""

    def __init__(
        self, device: DeviceKeys, index: TierIndex, policy: WritePolicy, send: Send, *, at_once: int, limit: int
    ) -> None:
        self.device = device
        self.index = index
        self.policy = policy
        self.at_once = at_once
        self.limit = limit
        self.number = 0
        """Number of the newest save."""
        self.counts = SavingCounts()
        self._send = send
        self._due: dict[PageKey, int] = {}
        """key -> page that is to go down with the next `flush`."""
        self._under_way: dict[int, tuple[PageKey, ...]] = {}
        self._sent: set[PageKey] = set()
        """Keys in `_under_way`."""
        self._void = 0
        """Saves up to this number say nothing about the tiers any more."""

    @property
    def num_under_way(self) -> int:
        """Pages that are on their way down."""
        return len(self._sent)

    # ---- the device's cache ----

    def follow(self, events: Iterable[CacheEvent], *, intact: bool = True) -> None:
        """Take in what the cache tells. Not `intact`: the device's content is lost, or not wanted any more."""
        for event in events:
            match event:
                case Stored():
                    pairs = self.device.stored(event)
                    if intact and self.policy in (WritePolicy.WRITE_THROUGH, WritePolicy.HAND_OVER):
                        self._want(pairs)
                case Removed():
                    pairs = self.device.removed(event)
                    if intact and self.policy is not WritePolicy.SELECTIVE:
                        self._want(pairs)
                case Cleared():
                    self.device.cleared()

    def hit(self, pages: Int32s) -> None:
        """A request starts with these cached pages."""
        if self.policy in (WritePolicy.SELECTIVE, WritePolicy.HAND_OVER):
            self._want((page, self.device[page]) for page in pages.tolist())

    def _want(self, pairs: Iterable[tuple[int, PageKey]]) -> None:
        for page, key in pairs:
            if key not in self.index and key not in self._sent:
                # A key that was stored anew is elsewhere now: the last page it had is the one to read.
                self._due[key] = page

    # ---- on their way ----

    def flush(self) -> None:
        """Send what has been gathered, as far as there is room for more under way."""
        if not self._due:
            return
        room = max(self.limit - len(self._sent), 0)
        due, self._due = list(self._due.items()), {}
        self.counts.skipped += max(len(due) - room, 0)
        for start in range(0, min(len(due), room), self.at_once):
            batch = due[start : min(start + self.at_once, room)]
            keys = tuple(key for key, _ in batch)
            self.number += 1
            self._send(self.number, np.array([page for _, page in batch], np.int32), keys)
            # What could not be sent is not waited for.
            self._under_way[self.number] = keys
            self._sent.update(keys)

    def done(self, number: int, kept: Sequence[PageKey]) -> Sequence[PageKey]:
        """A save is over; a tier has `kept` of its pages: those of them that are news. An answer that comes twice, or
        after a flush, is none."""
        keys = self._under_way.pop(number, None)
        if keys is None:
            return ()
        self._sent.difference_update(keys)
        self.counts.saved += len(kept)
        self.counts.refused += len(keys) - len(kept)
        return kept if number > self._void else ()

    def save_rest(self) -> None:
        """The engine stops: what only the device has goes down, as far as there is room under way."""
        if self.policy is not WritePolicy.SELECTIVE:
            self._want(self.device.items())
            self.flush()

    def forget(self) -> None:
        """The tiers have been emptied: answers that are still to come are about what was before."""
        self._due.clear()
        self._void = self.number

    def lost(self) -> None:
        """The device's content is lost, and no save made so far can be read any more: none is waited for."""
        self._due.clear()
        self._under_way.clear()
        self._sent.clear()
        self.device.cleared()
        # One number is left out: the worker reaches it by dealing with the loss, and fetches from now on wait for that.
        self.number += 1

    def check(self) -> None:
        """No more pages are under way than may be."""
        if len(self._sent) > self.limit:
            raise AssertionError(f"{len(self._sent)} pages are under way to lower tiers, {self.limit} may be")
