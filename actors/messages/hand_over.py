"""Prefill and decode apart: what a decode replica asks of a prefill replica, and the pages that come of it.

    decode scheduler ── Expect ──► decode storage
    decode scheduler ── Prefill ──► desk ── SendPages ──► prefill storage
                                     └───── Generate ───► prefill scheduler ─ EndOfPages ─► worker ─► storage
    prefill storage ── HandedPages ... PagesEnd ──► decode storage ── Received ──► decode scheduler
                   ◄── Taken ──

Who is there the router tells both sides (`PrefillerUp`, `DecoderUp`, ...). Every Prefill ends in one PagesEnd, unless
it is refused (a Received from the desk) or cancelled, or somebody dies: then `PrefillerDown` says so, or its lease
ends. Pages are copies, and named by all that they depend on, so what comes late or twice is refused by the ticket, and
what is damaged by its checksum.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.actors.tiers.shared_pages import NixlMemory, SharedMemory


class Prefill(msgspec.Struct, frozen=True, tag=True, kw_only=True, eq=False):
    """decode scheduler -> desk (CONTROL): compute this prompt, and send the pages called `keys` to its storage."""

    ticket: int
    scheduler: str
    tokens: NDArray[np.int32]
    salt: str
    keys: tuple[bytes, ...]


class CancelPrefill(msgspec.Struct, frozen=True, tag=True):
    """decode scheduler -> desk (CONTROL): nobody waits for it any more."""

    ticket: int
    scheduler: str


class DecoderUp(msgspec.Struct, frozen=True, tag=True):
    """router -> desk (CONTROL): the decode replica with this scheduler and this storage may ask from now on."""

    scheduler: str
    storage: str


class DecoderDown(msgspec.Struct, frozen=True, tag=True):
    """router -> desk (CONTROL): it is gone, and waits for nothing."""

    scheduler: str


class PrefillerUp(msgspec.Struct, frozen=True, tag=True):
    """router -> decode scheduler (CONTROL): the prefill replica with the desk of this name may be asked from now on.
    A replica that is started again has another name; one to which the link was lost comes back under its own."""

    name: str


class PrefillerDown(msgspec.Struct, frozen=True, tag=True):
    """router -> decode scheduler (CONTROL): it is gone, or cannot be reached, with all that it was asked."""

    name: str
    storage: str


class SendPages(msgspec.Struct, frozen=True, tag=True):
    """desk -> prefill storage (CONTROL): send these to `storage` as `ticket`, those that come later as they come."""

    job: int
    """Rises by one with each; the number of the request that computes them."""
    ticket: int
    storage: str
    keys: tuple[bytes, ...]


class ForgetReceiver(msgspec.Struct, frozen=True, tag=True):
    """desk -> prefill storage (CONTROL): this storage is gone, or new; nothing is under way to it."""

    storage: str


class EndOfPages(msgspec.Struct, frozen=True, tag=True):
    """prefill scheduler -> worker -> prefill storage, behind the last Save: nothing more comes for this job."""

    job: int
    num_cached: int
    """Tokens of its prompt that a cache of the prefill replica had."""


class Expect(msgspec.Struct, frozen=True, tag=True):
    """decode scheduler -> decode storage (CONTROL): a prefill replica will send these as `ticket`."""

    ticket: int
    keys: tuple[bytes, ...]


class Unexpect(msgspec.Struct, frozen=True, tag=True):
    """decode scheduler -> decode storage (CONTROL): nothing that still comes as `ticket` is kept."""

    ticket: int


class ForgetSender(msgspec.Struct, frozen=True, tag=True):
    """decode scheduler -> decode storage (CONTROL): this storage is gone, and its pages cannot be read any more."""

    storage: str


class OfferPages(msgspec.Struct, frozen=True, tag=True):
    """prefill storage -> decode storage (CONTROL): my pages may be readable where you are."""

    storage: str
    memory: SharedMemory | NixlMemory


class OfferAnswer(msgspec.Struct, frozen=True, tag=True):
    """decode storage -> prefill storage (CONTROL): whether they are, or are no more."""

    storage: str
    readable: bool


class HandedPages(msgspec.Struct, frozen=True, tag=True, eq=False):
    """prefill storage -> decode storage: pages, or where these can be read, and a checksum of each, taken before. Bytes
    that have changed since are no page of that name."""

    ticket: int
    storage: str
    """Who sends."""
    number: int
    """Rises by one with each message from `storage`."""
    keys: tuple[bytes, ...]
    sums: NDArray[np.uint64]
    data: tuple[NDArray[np.uint8], ...] | None
    """Blocks uint8 [k, page_bytes], one behind the other: a page for each key."""
    rows: NDArray[np.int32] | None = None
    """Of the sender's memory, in place of `data`."""


class Taken(msgspec.Struct, frozen=True, tag=True):
    """decode storage -> prefill storage (CONTROL): the pages of this number are kept or refused."""

    storage: str
    """Who has taken them."""
    number: int


class TicketOver(msgspec.Struct, frozen=True, tag=True):
    """decode storage, or the desk -> prefill storage (CONTROL): nothing is expected as `ticket` (any more)."""

    storage: str
    """Who has expected it."""
    ticket: int


class PagesEnd(msgspec.Struct, frozen=True, tag=True):
    """prefill storage -> decode storage, behind the last pages: nothing more comes as `ticket`."""

    ticket: int
    storage: str
    """Who has sent."""
    num_cached: int
    """As in `EndOfPages`."""


class Received(msgspec.Struct, frozen=True, tag=True):
    """decode storage (or a desk that cannot) -> decode scheduler: `ticket` has ended, `count` of its pages are kept."""

    ticket: int
    count: int
    num_cached: int = 0
    """As in `EndOfPages`; 0 where the prefill replica has not said."""


ToDesk: TypeAlias = Prefill | CancelPrefill | DecoderUp | DecoderDown
ToDecoder: TypeAlias = PrefillerUp | PrefillerDown | Received
HandOverToStorage: TypeAlias = (
    SendPages
    | ForgetReceiver
    | EndOfPages
    | Expect
    | Unexpect
    | ForgetSender
    | OfferPages
    | OfferAnswer
    | HandedPages
    | Taken
    | TicketOver
    | PagesEnd
)
