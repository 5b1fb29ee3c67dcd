"""Pages between the device and the tiers below it: scheduler, worker and storage.

    down    scheduler ── Save ──► worker ── Blocks ──► storage ── Saved ──► scheduler
    up      scheduler ── Fetch ─► storage ── Fill ───► worker ── Filled ──► scheduler
    undo    scheduler ── Fence ─► worker ── Fenced ──► scheduler

Every Save is answered by one Saved and every Fetch by one Filled, whatever fails on the way: what could not be had is
just not in it. Only the worker writes device pages, so it alone can promise that a fetch writes no more (`Fenced`).
Keys are 16 bytes each (`pawl.memory.tiers.keys`); nothing here is ever unpickled.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.actors.messages.hand_over import EndOfPages, HandOverToStorage


class Save(msgspec.Struct, frozen=True, tag=True, eq=False):
    """scheduler -> worker, among the steps: copy these pages as they are now. Sent before any step that reuses them."""

    number: int
    """Rises by one with each Save."""
    pages: NDArray[np.int32]
    keys: tuple[bytes, ...]


class Blocks(msgspec.Struct, frozen=True, tag=True, eq=False):
    """worker -> storage: the bytes of a Save's pages, uint8 [len(keys), page_bytes]."""

    number: int
    keys: tuple[bytes, ...]
    data: NDArray[np.uint8]


class Saved(msgspec.Struct, frozen=True, tag=True):
    """storage (or the worker, when there is nothing to keep) -> scheduler: the Save is over; `keys` are kept."""

    number: int
    keys: tuple[bytes, ...] = ()


class Found(msgspec.Struct, frozen=True, tag=True):
    """storage -> scheduler: these were here before the engine started. `era` as in `EmptyHost`."""

    era: int
    keys: tuple[bytes, ...]


class Dropped(msgspec.Struct, frozen=True, tag=True):
    """storage -> scheduler: no tier has these any more."""

    keys: tuple[bytes, ...]


class Fetch(msgspec.Struct, frozen=True, tag=True, eq=False):
    """scheduler -> storage (CONTROL): bring the pages called `keys` to the worker, for the reserved pages `pages`."""

    ticket: int
    """Rises by one with each Fetch."""
    keys: tuple[bytes, ...]
    pages: NDArray[np.int32]
    after: int
    """Saves up to this number may read the pages' old content: they come first."""


class Fill(msgspec.Struct, frozen=True, tag=True, eq=False):
    """storage -> worker (CONTROL): the answer to a Fetch, as far as there was something: data[i] belongs into pages[i].

    `data`: uint8 [k, page_bytes], k <= len(pages); without a gap from the first page on.
    """

    ticket: int
    pages: NDArray[np.int32]
    data: NDArray[np.uint8]
    after: int


class Filled(msgspec.Struct, frozen=True, tag=True):
    """worker -> scheduler: the first `count` pages of the Fetch are written; nothing more comes of it."""

    ticket: int
    count: int


class Fence(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> worker (CONTROL): nobody waits for this Fetch any more; whatever comes of it must not be written."""

    ticket: int


class Fenced(msgspec.Struct, frozen=True, tag=True):
    """worker -> scheduler: what the Fetch wrote is written, and it will write no more."""

    ticket: int


class EmptyHost(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> storage: a flush. Host memory is emptied; files stay, for the next start. Counts flushes."""

    era: int


class SchedulerStops(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> storage: keep what still comes, and tell nobody."""


class TierReport(msgspec.Struct, frozen=True, tag=True):
    """storage -> scheduler: its counters and gauges, after a change."""

    counts: dict[str, int]


ToStorage: TypeAlias = Blocks | Fetch | EmptyHost | SchedulerStops | HandOverToStorage
FromStorage: TypeAlias = Saved | Found | Dropped | TierReport
PagesToWorker: TypeAlias = Save | Fill | Fence | EndOfPages
PagesFromWorker: TypeAlias = Saved | Filled | Fenced
