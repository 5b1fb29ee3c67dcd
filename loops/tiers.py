"""Cache tiers below the device as the loop knows them: how they are set up, and what it asks of them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from pawl.loops.saving import WritePolicy
from pawl.memory.arrays import Int32s
from pawl.memory.tiers.keys import PageKey


class TierConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What decides how pages move between the device and the tiers below."""

    layout: str
    """Says how the bytes of a page are to be read; part of every key."""
    write_policy: str = WritePolicy.WRITE_THROUGH
    durable: bool = False
    """Whether the tiers outlive the engine."""
    lease_s: float = 2.0
    """How long a request waits for a fetch."""
    save_pages: int = 32
    """Pages in one message on the way down."""
    max_saving_pages: int = 256
    """Pages on their way down at a time: bounds the memory that copies take."""
    max_fetch_pages: int = 512
    """Pages of one fetch."""


class PageFetch(NamedTuple):
    """An order for the tiers: bring `keys`, for the device pages `pages`."""

    ticket: int
    keys: tuple[PageKey, ...]
    pages: Int32s
    after: int
    """Saves up to this number read the pages' old content, and come first."""
    resolved: int
    """Newest step that is resolved now."""


class RemoteConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What decides which prompts are computed elsewhere."""

    max_pages: int
    """Pages that may be on their way at a time: room of the tier below the device."""
    lease_s: float = 30.0
    """How long a request waits for its prefill."""


class PrefillOrder(NamedTuple):
    """What one prefill replica is to compute and send."""

    ticket: int
    prefiller: int
    tokens: Int32s
    """Of the prompt, as far as its whole pages reach, and one more: that is never computed by whoever has the pages."""
    namespace: str
    keys: tuple[PageKey, ...]
    """Of the pages that are missing here, in order."""


class TierEffects(Protocol):
    """Where decisions about the tiers go, and about what fills them."""

    def save(self, number: int, pages: Int32s, keys: tuple[PageKey, ...]) -> None:
        """Copy pages to the tiers, before any step that is launched from now on."""

    def fetch(self, order: PageFetch) -> None:
        """Bring pages; answer with `filled`, and with `expired` when the lease has ended."""

    def fence(self, ticket: int) -> None:
        """Make sure that nothing of this fetch is written from now on; answer with `fenced`."""

    def empty_host(self, era: int) -> None:
        """Empty the host's memory."""

    def prefill(self, order: PrefillOrder) -> None:
        """Have a prompt computed elsewhere; answer with `received`, and with `overdue` when the lease has ended."""

    def cancel(self, ticket: int, prefiller: int) -> None:
        """Nobody waits for that any more; what still comes of it is not kept."""

    def end_of_pages(self, request: int, num_cached: int) -> None:
        """Nothing more is saved for this request, which was computed for somebody else but for its first `num_cached`
        tokens, which a cache had. Comes behind every `save`."""
