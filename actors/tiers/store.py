"""The tiers below the device together: host memory above files. Blocking; lives in the storage actor's thread.

A page that is kept is in host memory, in a file, or in both. `eager` files it at once; otherwise a file is written when
host memory needs the page's place, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from pawl.actors.tiers.files import FileStore, UInt8s
from pawl.memory.tiers.host import HostPool
from pawl.memory.tiers.keys import PageKey

Write: TypeAlias = Callable[[Sequence[PageKey], Sequence[UInt8s]], Sequence[bool]]
"""Makes these pages in these places, uint8 [page_bytes] each, and says of each whether it is there now."""


class TierStore:
    """`host` may have no room and `files` may be None, but not both."""

    def __init__(self, host: HostPool, files: FileStore | None, *, eager: bool) -> None:
        if not host.capacity and files is None:
            raise ValueError("a store needs host memory, files, or both")
        self.host = host
        self.files = files
        self.eager = eager
        self.host_hits = 0
        self.file_hits = 0
        self.misses = 0
        """Pages that were asked for and could not be had."""
        self.kept = 0
        """Pages that were taken."""
        self._dropped: dict[PageKey, None] = {}
        """Keys that may have left since `take_dropped`."""

    def __contains__(self, key: PageKey) -> bool:
        return key in self.host or (self.files is not None and key in self.files)

    def scan(self) -> list[PageKey]:
        """Pages from before the start."""
        return [] if self.files is None else self.files.scan()

    def keep(self, keys: Sequence[PageKey], data: UInt8s) -> tuple[PageKey, ...]:
        """Keep pages, data uint8 [len(keys), page_bytes]; those that are here now."""
        for key, block in zip(keys, data, strict=True):
            self._host(key, block)
            if self.eager or not self.host.capacity:
                self._file(key, block)
        here = tuple(key for key in keys if key in self)
        self.kept += len(here)
        return here

    def fill(self, keys: Sequence[PageKey], write: Write) -> tuple[PageKey, ...]:
        """Keep pages that are made in their places in host memory; those that are here now. No key comes twice."""
        missing = [key for key in keys if key not in self]
        if self.host.capacity:
            self._fill_host(missing, write)
        else:
            blocks = np.empty((len(missing), self.host.page_bytes), np.uint8)
            for key, block, there in zip(missing, blocks, write(missing, list(blocks)), strict=True):
                if there:
                    self._file(key, block)
        here = tuple(key for key in keys if key in self)
        self.kept += len(here)
        return here

    def _fill_host(self, missing: Sequence[PageKey], write: Write) -> None:
        rows: dict[PageKey, int] = {}
        made: Sequence[bool] = ()
        try:
            for key in missing:
                self._make_room()
                row = self.host.take()
                if row is None:
                    break
                rows[key] = row
            made = write(list(rows), [self.host.at(row) for row in rows.values()])
        finally:
            done = [*made, *[False] * (len(rows) - len(made))]
            for (key, row), there in zip(rows.items(), done, strict=True):
                self.host.settle(row, key if there else None)
        if self.eager:
            for key in rows:
                if key in self.host:
                    self._file(key, self.host.block(key))

    def read(self, keys: Sequence[PageKey]) -> UInt8s:
        """The pages called `keys` up to the first that cannot be had, uint8 [k, page_bytes]."""
        data = np.empty((len(keys), self.host.page_bytes), np.uint8)
        for count, key in enumerate(keys):
            block = self._find(key)
            if block is None:
                self.misses += 1
                self._dropped[key] = None
                return data[:count]
            # Copied before anything else happens: the block is a view that the next page may take the place of.
            data[count] = block
            self._host(key, data[count])
        return data

    def views(self, keys: Sequence[PageKey], most: int) -> list[UInt8s] | None:
        """These pages where they are in host memory, at most `most` views uint8 [k, page_bytes] of pages side by side;
        what is kept next may overwrite them. None where that cannot be."""
        blocks = self.host.blocks(keys)
        if blocks is None or len(blocks) > most:
            return None
        self.host_hits += len(keys)
        return blocks

    def _find(self, key: PageKey) -> UInt8s | None:
        block = self.host.get(key)
        if block is not None:
            self.host_hits += 1
            return block
        block = None if self.files is None else self.files.get(key)
        if block is not None:
            self.file_hits += 1
        return block

    def _host(self, key: PageKey, block: UInt8s) -> None:
        """Into host memory; what has to leave it for that is filed, unless it is already."""
        if key not in self.host:
            self._make_room()
        self.host.put(key, block)

    def _make_room(self) -> None:
        oldest = self.host.oldest()
        if oldest is not None:
            self._file(oldest.key, oldest.block)
            self._dropped[oldest.key] = None

    def _file(self, key: PageKey, block: UInt8s) -> None:
        if self.files is not None:
            self._dropped.update(dict.fromkeys(self.files.put(key, block)))

    def take_dropped(self) -> tuple[PageKey, ...]:
        """Keys that no tier has any more, once."""
        dropped, self._dropped = self._dropped, {}
        return tuple(key for key in dropped if key not in self)

    def empty_host(self) -> None:
        """Forget host memory; files stay."""
        self._dropped.update(dict.fromkeys(self.host.clear()))

    def close(self, may_go_on: Callable[[], bool]) -> None:
        """File what is only in host memory, newest first, as long as `may_go_on`; then let go of the folder."""
        if self.files is None:
            return
        for key, block in self.host.items():
            if not may_go_on():
                break
            self._file(key, block)
        self.files.close()

    def counts(self) -> dict[str, int]:
        """Counters since the start, and sizes now."""
        files = self.files
        return {
            "host_pages": len(self.host),
            "host_capacity": self.host.capacity,
            "host_bytes": len(self.host) * self.host.page_bytes,
            "host_hits": self.host_hits,
            "storage_pages": 0 if files is None else len(files),
            "storage_capacity": 0 if files is None else files.capacity,
            "storage_bytes": 0 if files is None else len(files) * files.file_bytes,
            "storage_hits": self.file_hits,
            "storage_errors": 0 if files is None else files.errors,
            "storage_corrupt": 0 if files is None else files.corrupt,
            "storage_writable": int(files is not None and files.writable),
            "kept_pages": self.kept,
            "missed_pages": self.misses,
        }
