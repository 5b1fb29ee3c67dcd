"""Pages on their way from a prefill replica's storage to a decode replica's.

Sent are those that a job wants and the store here has, in slices, so many bytes to one receiver before it has said that
it took them. Kept are those that were expected under their ticket, and whose checksum is right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

import numpy as np

from pawl.actors.messages.hand_over import HandedPages, OfferPages, PagesEnd, SendPages
from pawl.actors.tiers.checksums import UInt64s, checksum, checksums
from pawl.actors.tiers.files import UInt8s
from pawl.actors.tiers.shared_pages import Memory, Reader, Readers, shared_reader
from pawl.actors.tiers.store import TierStore
from pawl.gpu.devices import available_threads
from pawl.memory.arrays import Int32s
from pawl.memory.tiers.keys import PageKey

SLICE_BYTES = 4 << 20
"""Pages in one message."""
READ_BYTES = 16 << 20
"""Pages that one message names, where the receiver reads them."""
WINDOW_BYTES = 64 << 20
"""Sent to one receiver and not taken yet."""
MOST_BLOCKS = 64
"""Of one message: pages side by side are one, and those that lie in more places are copied first."""

SIDE_BY_SIDE_BYTES = 1 << 20
"""From so many on pages of one message are read by several threads."""
NUM_HELPERS = min(4, available_threads()) - 1
"""Beside the thread of the storage."""

Post: TypeAlias = Callable[[str, HandedPages | PagesEnd | OfferPages], bool]
"""Sends a message to the storage of this name."""


@dataclass(eq=False)
class _Job:
    ticket: int
    storage: str
    wanted: set[PageKey]
    """Pages that have not been seen yet."""
    due: deque[PageKey] = field(default_factory=deque)
    num_cached: int | None = None
    """Once nothing more is computed for it: tokens of its prompt that a cache had."""


class Outgoing:
    """All that a prefill replica sends."""

    def __init__(self, name: str, store: TierStore, post: Post, memory: Memory | None = None) -> None:
        """`name` is that of this storage; `memory` says where others can read the pages of its host memory."""
        page_bytes = store.host.page_bytes
        self._name = name
        self._store = store
        self._post = post
        self._slice = max(1, SLICE_BYTES // page_bytes)
        self._named = max(1, READ_BYTES // page_bytes)
        self._window = max(self._slice, WINDOW_BYTES // page_bytes)
        self._jobs: dict[int, _Job] = {}
        self._sent: dict[str, dict[int, tuple[int, int]]] = {}
        """Receiver -> number of a message that it has not taken -> (ticket, pages)."""
        self._numbers = 0
        self._memory = memory
        self._readable: dict[str, bool] = {}
        """Receivers that were offered to read, and whether they can."""
        self.pages = 0
        """Sent since the start."""
        self.shared_pages = 0
        """Those of them that were read where they are."""

    def open(self, message: SendPages) -> None:
        """A job begins: what the store has of its pages is due at once."""
        if self._memory is not None and message.storage not in self._readable:
            self._readable[message.storage] = False
            self._post(message.storage, OfferPages(self._name, self._memory))
        job = self._jobs[message.job] = _Job(message.ticket, message.storage, set(message.keys))
        self._found(job, message.keys)

    def kept(self, keys: Sequence[PageKey]) -> None:
        """The store has these now."""
        for job in self._jobs.values():
            self._found(job, keys)

    def _found(self, job: _Job, keys: Sequence[PageKey]) -> None:
        for key in keys:
            if key in job.wanted and key in self._store:
                job.wanted.remove(key)
                job.due.append(key)

    def end(self, number: int, num_cached: int) -> None:
        """Nothing more is computed for a job; a cache had so many tokens of its prompt."""
        if number in self._jobs:
            self._jobs[number].num_cached = num_cached

    def answered(self, storage: str, readable: bool) -> None:
        """Whether a receiver can read the pages where they are."""
        if storage in self._readable:
            self._readable[storage] = readable

    def taken(self, storage: str, number: int) -> None:
        """A receiver has dealt with a message."""
        self._sent.get(storage, {}).pop(number, None)
        self._prune(storage)

    def _prune(self, storage: str) -> None:
        if not self._sent.get(storage, True):
            del self._sent[storage]

    def over(self, storage: str, ticket: int) -> None:
        """A receiver expects nothing more under this ticket, and what it has not taken of it is lost, or will be."""
        sent = self._sent.get(storage, {})
        for number in [number for number, (other, _) in sent.items() if other == ticket]:
            del sent[number]
        self._prune(storage)
        over = [number for number, job in self._jobs.items() if (job.storage, job.ticket) == (storage, ticket)]
        for number in over:
            del self._jobs[number]

    def forget(self, storage: str) -> None:
        """A receiver is gone, with all that it was waiting for."""
        self._sent.pop(storage, None)
        self._readable.pop(storage, None)
        self._jobs = {number: job for number, job in self._jobs.items() if job.storage != storage}

    def pump(self) -> None:
        """Send what is due, oldest job first, as far as its receiver has taken what was sent before."""
        for number, job in list(self._jobs.items()):
            most = self._named if self._readable.get(job.storage) else self._slice
            while job.due and (room := self._window - self._under_way(job.storage)) > 0:
                self._send(job, [job.due.popleft() for _ in range(min(room, most, len(job.due)))])
            if job.num_cached is not None and not job.due:
                del self._jobs[number]
                self._post(job.storage, PagesEnd(job.ticket, self._name, job.num_cached))

    def _under_way(self, storage: str) -> int:
        return sum(pages for _, pages in self._sent.get(storage, {}).values())

    def _send(self, job: _Job, keys: list[PageKey]) -> None:
        rows = self._rows(job.storage, keys)
        if rows is not None:
            # Each where it is: a copy would take as long as the receiver's.
            sums = checksums(keys, map(self._store.host.block, keys))
            self._hand(job, tuple(keys), sums, None, rows)
        elif (blocks := self._store.views(keys, MOST_BLOCKS)) is not None:
            self._hand(job, tuple(keys), checksums(keys, chain.from_iterable(blocks)), tuple(blocks), None)
        else:
            self._send_copies(job, keys)

    def _send_copies(self, job: _Job, keys: list[PageKey]) -> None:
        while keys:
            data = self._store.read(tuple(keys))
            some, keys = tuple(keys[: len(data)]), keys[len(data) + 1 :]  # one that has left since is left out
            if some:
                self._hand(job, some, checksums(some, data), (data,), None)

    def _hand(
        self,
        job: _Job,
        keys: tuple[PageKey, ...],
        sums: UInt64s,
        data: tuple[UInt8s, ...] | None,
        rows: Int32s | None,
    ) -> None:
        self._numbers += 1
        if self._post(job.storage, HandedPages(job.ticket, self._name, self._numbers, keys, sums, data, rows)):
            self._sent.setdefault(job.storage, {})[self._numbers] = job.ticket, len(keys)
            self.pages += len(keys)
            self.shared_pages += 0 if rows is None else len(keys)

    def _rows(self, storage: str, keys: Sequence[PageKey]) -> Int32s | None:
        """Where the receiver can read these pages; None where it cannot read all of them."""
        if not self._readable.get(storage):
            return None
        rows = [self._store.host.row(key) for key in keys]
        return None if None in rows else np.array(rows, np.int32)

    def counts(self) -> dict[str, int]:
        """Counters since the start, and what is under way now."""
        under_way = sum(map(self._under_way, self._sent))
        return {
            "hand_overs": len(self._jobs),
            "hand_over_pages": under_way,
            "sent_pages": self.pages,
            "shared_pages": self.shared_pages,
        }

    @property
    def idle(self) -> bool:
        """Nothing is to be sent, and all that was sent is taken."""
        return not self._jobs and not self._sent


class Incoming:
    """All that a decode replica is sent."""

    def __init__(self, store: TierStore, readers: Readers = shared_reader) -> None:
        self._store = store
        self._reader_of = readers
        self._expected: dict[int, set[PageKey]] = {}
        self._kept: dict[int, int] = {}
        self._readers: dict[str, Reader] = {}
        """Of storages whose pages can be read where they are."""
        self._helpers = ThreadPoolExecutor(max(1, NUM_HELPERS), "pages")
        """None of them is started before it is needed."""
        self.refused = 0
        """Pages that were not expected, or not what their checksum says, since the start."""

    def offered(self, message: OfferPages) -> bool:
        """A sender's pages may be readable here: whether they are."""
        self.forget(message.storage)
        with suppress(OSError, ValueError):
            self._readers[message.storage] = self._reader_of(message.memory, self._store.host.page_bytes)
        return message.storage in self._readers

    def forget(self, storage: str) -> None:
        """A sender is gone."""
        if storage in self._readers:
            self._readers.pop(storage).close()

    def gave_up(self, storage: str) -> bool:
        """Whether the sender's pages could be read, and cannot any more: it is to send them. Said once."""
        reader = self._readers.get(storage)
        if reader is None or not reader.over:
            return False
        self.forget(storage)
        return True

    def expect(self, ticket: int, keys: Sequence[PageKey]) -> None:
        """Pages of these names may come."""
        self._expected[ticket], self._kept[ticket] = set(keys), 0

    def unexpect(self, ticket: int) -> None:
        """None of them may any more."""
        self._expected.pop(ticket, None)
        self._kept.pop(ticket, None)

    def wanted(self, ticket: int) -> bool:
        """Whether something is expected under this ticket."""
        return ticket in self._expected

    def keep(self, message: HandedPages) -> tuple[PageKey, ...]:
        """Keep what was expected and is whole; its keys."""
        expected = self._expected.get(message.ticket, set())
        kept: tuple[PageKey, ...] = ()
        read = self._reading(message) if expected and message.sums.shape == (len(message.keys),) else None
        if read is not None:
            at = {key: index for index, key in enumerate(message.keys) if key in expected}
            sums = message.sums.tolist()

            def whole(key: PageKey, place: UInt8s) -> bool:
                # The checksum is taken of what stays, which nobody else changes.
                return read(at[key], place) and checksum(key, place) == sums[at[key]]

            kept = self._store.fill(list(at), lambda keys, places: self._each(whole, keys, places))
            expected.difference_update(kept)
        self.refused += len(message.keys) - len(kept)
        if kept:
            self._kept[message.ticket] += len(kept)
        return kept

    def _each(
        self, make: Callable[[PageKey, UInt8s], bool], keys: Sequence[PageKey], places: Sequence[UInt8s]
    ) -> list[bool]:
        """Make pages, large ones side by side: Python lets others go on while bytes are read and checked."""
        made, indices = [False] * len(keys), iter(range(len(keys)))

        def some() -> None:
            for index in indices:
                made[index] = make(keys[index], places[index])

        large = len(keys) * self._store.host.page_bytes >= SIDE_BY_SIDE_BYTES
        others = [self._helpers.submit(some) for _ in range(NUM_HELPERS if large else 0)]
        try:
            some()
        finally:
            wait(others)  # for all: nobody writes into a place any more, whoever has failed
        for other in others:
            other.result()
        return made

    def _reading(self, message: HandedPages) -> Callable[[int, UInt8s], bool] | None:
        """What copies a page of the message into a place; None where they cannot be had."""
        data, rows, count = message.data, message.rows, len(message.keys)
        if rows is not None:
            reader = self._readers.get(message.storage) if rows.shape == (count,) else None
            return None if reader is None else lambda index, place: reader.read(int(rows[index]), place)
        size = self._store.host.page_bytes
        if data is None or any(block.shape[1:] != (size,) or block.dtype != np.uint8 for block in data):
            return None
        pages = list(chain.from_iterable(data))
        if len(pages) != count:
            return None

        def copy(index: int, place: UInt8s) -> bool:
            place[:] = pages[index]
            return True

        return copy

    def close(self) -> None:
        """Nothing is read any more."""
        self._helpers.shutdown()

    def end(self, ticket: int) -> int | None:
        """Nothing more comes: how many pages have. None for a ticket that nobody waits for."""
        kept = self._kept.get(ticket)
        self.unexpect(ticket)
        return kept

    def counts(self) -> dict[str, int]:
        """Counters since the start, and what is expected now."""
        return {"hand_overs": len(self._expected), "refused_pages": self.refused}

    @property
    def idle(self) -> bool:
        """Nothing is expected."""
        return not self._expected
