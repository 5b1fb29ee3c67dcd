"""Pages between two storages: what is sent when, and what is kept of what comes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.messages.hand_over import HandedPages, PagesEnd, SendPages
from pawl.actors.tiers import hand_over
from pawl.actors.tiers.checksums import checksums
from pawl.actors.tiers.files import UInt8s
from pawl.actors.tiers.hand_over import Incoming, Outgoing
from pawl.actors.tiers.store import TierStore
from pawl.memory.tiers.host import HostPool

PAGE_BYTES = 64
KEYS = tuple(bytes([number]) * 16 for number in range(1, 7))


def page(key: bytes) -> UInt8s:
    return np.full(PAGE_BYTES, key[0], np.uint8)


def store(*keys: bytes, capacity: int = 16) -> TierStore:
    made = TierStore(HostPool(capacity, PAGE_BYTES), None, eager=True)
    fill(made, *keys)
    return made


def fill(made: TierStore, *keys: bytes) -> None:
    if keys:
        made.keep(keys, np.stack([page(key) for key in keys]))


class Sender:
    """An `Outgoing`, and what it has posted."""

    def __init__(self, *keys: bytes) -> None:
        self.store = store(*keys)
        self.posted: list[tuple[str, HandedPages | PagesEnd]] = []
        self.outgoing = Outgoing("p", self.store, self._post)

    def _post(self, to: str, message: HandedPages | PagesEnd) -> bool:
        self.posted.append((to, message))
        return True

    def open(self, job: int = 1, ticket: int = 7, storage: str = "d", keys: tuple[bytes, ...] = KEYS) -> None:
        self.outgoing.open(SendPages(job, ticket, storage, keys))
        self.outgoing.pump()

    def computed(self, *keys: bytes) -> None:
        fill(self.store, *keys)
        self.outgoing.kept(keys)
        self.outgoing.pump()

    def end(self, job: int = 1) -> None:
        self.outgoing.end(job, num_cached=3)
        self.outgoing.pump()

    @property
    def sent(self) -> list[bytes]:
        return [key for _, message in self.posted if isinstance(message, HandedPages) for key in message.keys]


def handed(*keys: bytes, ticket: int = 7) -> HandedPages:
    data = np.stack([page(key) for key in keys])
    return HandedPages(ticket, "p", 1, keys, checksums(keys, data), (data[:1], data[1:]))


def test_what_is_there_is_sent_at_once_and_the_rest_as_it_is_computed() -> None:
    sender = Sender(*KEYS[:2])
    sender.open()
    assert sender.sent == list(KEYS[:2])
    sender.computed(KEYS[2])
    sender.computed(KEYS[3])
    assert sender.sent == list(KEYS[:4])
    sender.end()
    assert sender.posted[-1][1] == PagesEnd(7, "p", num_cached=3)
    numbers = [message.number for _, message in sender.posted if isinstance(message, HandedPages)]
    for number in numbers:
        assert not sender.outgoing.idle
        sender.outgoing.taken("d", number)
    assert sender.outgoing.idle


def test_the_end_of_a_ticket_is_that_of_one_receiver_and_others_with_the_same_one_get_theirs() -> None:
    sender = Sender(*KEYS[:1])
    for job, storage in ((1, "d"), (2, "e")):
        sender.open(job=job, storage=storage)
    sender.outgoing.over("d", 7)
    sender.computed(KEYS[1])
    sender.end(job=1)
    sender.end(job=2)
    assert [(to, getattr(message, "keys", None)) for to, message in sender.posted[2:]] == [
        ("e", (KEYS[1],)),
        ("e", None),
    ]
    sender.outgoing.taken("e", 2)
    assert not sender.outgoing.idle
    sender.outgoing.taken("e", 3)
    assert sender.outgoing.idle, "what the other had not taken is waited for no more"


def test_pages_that_nobody_wants_are_not_sent_and_none_twice() -> None:
    sender = Sender(KEYS[0])
    sender.open(keys=KEYS[:2])
    sender.computed(KEYS[0], KEYS[5])
    assert sender.sent == [KEYS[0]]


def test_no_more_is_under_way_to_one_receiver_than_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "SLICE_BYTES", PAGE_BYTES)
    monkeypatch.setattr(hand_over, "WINDOW_BYTES", 2 * PAGE_BYTES)
    sender = Sender(*KEYS)
    sender.open()
    sender.end()
    assert sender.sent == list(KEYS[:2])
    sender.open(job=2, ticket=8, storage="e", keys=KEYS[4:])
    assert sender.sent == [*KEYS[:2], *KEYS[4:]], "another receiver does not wait for the first"
    sender.outgoing.taken("d", 1)
    sender.outgoing.pump()
    assert sender.sent[4:] == [KEYS[2]]


def test_what_is_lost_on_the_way_does_not_fill_the_window_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "WINDOW_BYTES", PAGE_BYTES * len(KEYS))
    sender = Sender(*KEYS)
    sender.open()
    sender.end()
    sender.outgoing.over("d", 7)
    assert sender.outgoing.idle
    sender.open(job=2, ticket=8)
    assert len(sender.sent) == 2 * len(KEYS)


def test_a_receiver_that_is_gone_is_sent_nothing_more() -> None:
    sender = Sender()
    sender.open()
    sender.outgoing.forget("d")
    sender.computed(*KEYS)
    sender.end()
    assert sender.posted == []
    assert sender.outgoing.idle


def test_a_page_that_has_left_the_store_meanwhile_is_left_out() -> None:
    sender = Sender(*KEYS)
    sender.store.host.clear()
    fill(sender.store, KEYS[0], KEYS[2])
    sender.outgoing.open(SendPages(1, 7, "d", (KEYS[0], KEYS[2])))
    sender.store.host.clear()
    fill(sender.store, KEYS[2])
    sender.outgoing.pump()
    sender.end()
    assert sender.sent == [KEYS[2]]
    assert sender.posted[-1][1] == PagesEnd(7, "p", num_cached=3)


def blocks_of(sender: Sender) -> list[UInt8s]:
    """Of all that was posted."""
    found = [message.data for _, message in sender.posted if isinstance(message, HandedPages)]
    return [block for data in found if data is not None for block in data]


def test_a_page_that_is_computed_goes_to_all_who_wait_for_it() -> None:
    sender = Sender()
    for job, storage in enumerate("def", 1):
        sender.open(job, 6 + job, storage, KEYS[:1])
    sender.computed(KEYS[0])
    assert [to for to, message in sender.posted if isinstance(message, HandedPages)] == ["d", "e", "f"]


def test_pages_are_sent_from_where_they_lie_as_few_blocks_and_what_takes_their_place_meanwhile_is_not_kept() -> None:
    sender = Sender(*KEYS[3:], *KEYS[:2])
    sender.open(keys=KEYS[:5])
    blocks = blocks_of(sender)
    assert [block[:, 0].tolist() for block in blocks] == [[1, 2], [4, 5]]
    assert all(np.shares_memory(block, sender.store.host.at(0).base) for block in blocks)
    blocks[1][0] = page(KEYS[5])
    incoming = Incoming(kept := store())
    incoming.expect(7, KEYS)
    for _, message in sender.posted:
        assert isinstance(message, HandedPages)
        incoming.keep(message)
    assert [key in kept for key in KEYS] == [True, True, False, False, True, False]
    assert incoming.refused == 1


def test_pages_that_lie_in_many_places_are_copied_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "MOST_BLOCKS", 1)
    sender = Sender(*KEYS[::-1])
    sender.open()
    (block,) = blocks_of(sender)
    assert block[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert not np.shares_memory(block, sender.store.host.at(0).base)


def test_pages_that_are_sent_are_the_last_to_leave() -> None:
    sender = Sender(*KEYS[:2])
    sender.open(keys=KEYS[:1])
    assert [key for key, _ in sender.store.host.items()] == [KEYS[0], KEYS[1]]
    assert sender.store.counts()["host_hits"] == 1


def test_what_was_expected_is_kept_once() -> None:
    incoming = Incoming(kept := store())
    incoming.expect(7, KEYS[:2])
    assert incoming.keep(handed(*KEYS[:2])) == KEYS[:2]
    assert incoming.keep(handed(*KEYS[:2])) == ()
    assert incoming.end(7) == 2
    assert all(key in kept for key in KEYS[:2])
    assert incoming.idle


def _with(message: HandedPages, change: Callable[[np.ndarray], np.ndarray]) -> HandedPages:
    assert message.data is not None
    return msgspec.structs.replace(message, data=tuple(change(block) for block in message.data))


BAD = {
    "damaged": lambda message: _with(message, lambda block: block ^ np.uint8(1)),
    "under another's key": lambda message: msgspec.structs.replace(message, keys=message.keys[::-1]),
    "of a ticket that is over": lambda message: msgspec.structs.replace(message, ticket=8),
    "not asked for": lambda message: handed(*KEYS[4:6]),
    "of another size": lambda message: _with(message, lambda block: block[:, :-1]),
    "of another kind": lambda message: _with(message, lambda block: block.astype(np.int32)),
    "without rows": lambda message: _with(message, lambda block: block[:0]),
    "without dimensions": lambda message: _with(message, lambda block: block.reshape(-1)[0:1].reshape(())),
    "one too few": lambda message: msgspec.structs.replace(message, data=message.data[:1]),
    "one too many": lambda message: msgspec.structs.replace(message, data=message.data * 2),
    "without sums": lambda message: msgspec.structs.replace(message, sums=message.sums[:0]),
}


@pytest.mark.parametrize("how", BAD)
def test_nothing_is_kept_that_is(how: str) -> None:
    incoming = Incoming(kept := store())
    incoming.expect(7, KEYS[:2])
    assert incoming.keep(BAD[how](handed(*KEYS[:2]))) == ()
    assert (len(kept.host), incoming.refused) == (0, 2)


def test_no_more_pages_are_read_in_place_than_a_message_names() -> None:
    class Reader:
        def read(self, row: int, into: np.ndarray) -> None:
            raise AssertionError(f"page {row} was read")

    incoming = Incoming(store())
    incoming._readers["p"] = Reader()  # type: ignore[assignment]
    incoming.expect(7, KEYS[:2])
    for rows in (np.zeros(1 << 20, np.int32), np.zeros((2, 2), np.int32)):
        message = msgspec.structs.replace(handed(*KEYS[:2]), storage="p", data=None, rows=rows)
        assert incoming.keep(message) == ()


class Meeting:
    """Reads two pages at the same time, as nobody gets further alone; that of row 0 cannot be had."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2, timeout=60.0)
        self.failed = threading.Event()
        self.read_last = False

    def read(self, row: int, into: UInt8s) -> bool:
        self.both.wait()
        if row == 0:
            self.failed.set()
            raise OSError("gone")
        self.failed.wait()
        into[:] = page(KEYS[row])
        self.read_last = True
        return True


def test_large_pages_are_read_side_by_side_and_whoever_fails_waits_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hand_over, "SIDE_BY_SIDE_BYTES", 2 * PAGE_BYTES)
    monkeypatch.setattr(hand_over, "NUM_HELPERS", 1)
    incoming, reader = Incoming(kept := store()), Meeting()
    incoming._readers["p"] = reader  # type: ignore[assignment]
    incoming.expect(7, KEYS[:2])
    message = msgspec.structs.replace(handed(*KEYS[:2]), data=None, rows=np.arange(2, dtype=np.int32))
    with pytest.raises(OSError, match="gone"):
        incoming.keep(message)
    assert reader.read_last, "its place would be another page's while it is still written to"
    kept.host.check_all()
    assert len(kept.host) == 0


def test_a_message_of_more_pages_than_there_is_room_for_fills_what_there_is() -> None:
    incoming = Incoming(kept := store(KEYS[4], capacity=2))
    incoming.expect(7, KEYS[:3])
    assert incoming.keep(handed(*KEYS[:3])) == KEYS[:2]
    assert kept.take_dropped() == (KEYS[4],)
    kept.host.check_all()


def test_a_page_that_is_here_already_is_not_read_and_one_that_comes_twice_is_kept_once() -> None:
    incoming = Incoming(kept := store(KEYS[0]))
    incoming.expect(7, KEYS[:2])
    message = handed(KEYS[0], KEYS[1], KEYS[1])
    assert message.data is not None
    message.data[0][0] ^= 1
    assert incoming.keep(message) == KEYS[:2]
    assert (kept.host.block(KEYS[0]) == page(KEYS[0])).all()
    assert (incoming.refused, incoming.end(7)) == (1, 2)


def test_the_whole_pages_of_a_message_are_kept_beside_a_damaged_one() -> None:
    incoming = Incoming(kept := store())
    incoming.expect(7, KEYS[:3])
    message = handed(*KEYS[:3])
    assert message.data is not None
    message.data[1][0, 5] ^= 1
    assert incoming.keep(message) == (KEYS[0], KEYS[2])
    assert KEYS[1] not in kept


def test_nothing_is_kept_of_a_ticket_that_was_given_up() -> None:
    incoming = Incoming(store())
    incoming.expect(7, KEYS)
    incoming.unexpect(7)
    assert incoming.keep(handed(*KEYS[:2])) == ()
    assert incoming.end(7) is None


@given(st.integers(1, 40), st.integers(0, 2**32), st.data())
def test_no_damage_goes_unseen(page_bytes: int, seed: int, data: st.DataObject) -> None:
    pages = np.random.default_rng(seed).integers(0, 256, (3, page_bytes), dtype=np.uint8)
    sums = checksums(KEYS[:3], pages)
    row = data.draw(st.integers(0, 2))
    damaged = pages.copy()
    for place in data.draw(st.lists(st.integers(0, page_bytes - 1), min_size=1, unique=True)):
        damaged[row, place] ^= data.draw(st.integers(1, 255))
    assert ((checksums(KEYS[:3], damaged) == sums) == (np.arange(3) != row)).all()


def test_a_page_under_another_name_has_another_checksum() -> None:
    pages = np.zeros((1, PAGE_BYTES), np.uint8)
    assert checksums(KEYS[:1], pages) != checksums(KEYS[1:2], pages)


@pytest.mark.parametrize("length", range(1, 80))
def test_a_page_of_any_length_has_a_checksum_of_all_its_bytes_and_of_its_name(length: int) -> None:
    page = np.arange(1, length + 1, dtype=np.uint8)
    sums = {int(checksums([key], [page])[0]) for key in KEYS[:2]}
    for place in range(length):
        changed = page.copy()
        changed[place] += 100
        sums.add(int(checksums(KEYS[:1], [changed])[0]))
    assert len(sums) == 2 + length
    padded = np.concatenate((page, np.zeros(-length % 8, np.uint8)))
    assert checksums(KEYS[:1], [padded]) == checksums(KEYS[:1], [page])
