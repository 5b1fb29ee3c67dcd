"""Every way of pages between two storages, over a network that cuts, stalls, doubles, damages and reorders."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.codec import make_codec
from pawl.actors.messages.hand_over import HandedPages, OfferPages, PagesEnd, SendPages
from pawl.actors.messages.transfer import ToStorage
from pawl.actors.tiers import hand_over, shared_pages
from pawl.actors.tiers.hand_over import Incoming, Outgoing
from pawl.actors.tiers.shared_pages import NixlMemory, SharedMemory, SharedPages, SharedReader
from pawl.actors.tiers.store import TierStore
from pawl.build import nixl_pages
from pawl.build.nixl_pages import NixlPages, NixlReader, reader_of
from pawl.memory.tiers.host import HostPool

PAGE_BYTES = 64
KEYS = tuple(bytes([number]) * 16 for number in range(1, 13))
SECRET = bytes(range(1, 17))
NEEDS_NIXL = pytest.mark.skipif(
    not nixl_pages.installed(), reason="NIXL is not installed: pip install 'pawl-engine[nixl]'"
)
WAYS = ["as it is", "as bytes", "shared", pytest.param("nixl", marks=NEEDS_NIXL)]
READ_IN_PLACE = ["shared", pytest.param("nixl", marks=NEEDS_NIXL)]


@cache
def nixl_owner() -> NixlPages:
    """Made once, as that takes a while; every test writes into all of it."""
    return NixlPages(len(KEYS), PAGE_BYTES)


def page(key: bytes) -> Any:
    return np.full(PAGE_BYTES, key[0], np.uint8)


class Ends:
    """A sender with all pages, a receiver without any, and what is on its way between them."""

    def __init__(self, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.way = way
        sizes = {"SLICE_BYTES": 2, "READ_BYTES": 3, "WINDOW_BYTES": 4, "SIDE_BY_SIDE_BYTES": 2}
        for name, pages in sizes.items():
            monkeypatch.setattr(hand_over, name, pages * PAGE_BYTES)
        self.codec = make_codec(ToStorage)
        self.pages = nixl_owner() if way == "nixl" else SharedPages(len(KEYS), PAGE_BYTES, SECRET)
        source = TierStore(HostPool(len(KEYS), PAGE_BYTES, self.pages.blocks), None, eager=True)
        source.keep(KEYS, np.stack([page(key) for key in KEYS]))
        self.target = TierStore(HostPool(len(KEYS), PAGE_BYTES), None, eager=True)
        self.on_the_way: list[Any] = []
        memory = self.pages.memory if way in ("shared", "nixl") else None
        self.outgoing = Outgoing("p", source, self._post, memory)
        self.incoming = Incoming(self.target, reader_of)
        # The reader of another process, in this one.
        monkeypatch.setattr(shared_pages.os, "getpid", lambda: 1)

    def _post(self, to: str, message: HandedPages | PagesEnd | OfferPages) -> bool:
        self.on_the_way.append(message)
        return True

    def begin(self, ticket: int, keys: tuple[bytes, ...] = KEYS) -> None:
        self.incoming.expect(ticket, keys)
        self.outgoing.open(SendPages(ticket, ticket, "d", keys))
        self.outgoing.end(ticket, num_cached=0)
        self.outgoing.pump()

    def arrive(self, index: int = 0, *, keep: bool = False) -> None:
        message = self.on_the_way[index] if keep else self.on_the_way.pop(index)
        if self.way == "as bytes":
            message = self.codec.decode(self.codec.encode(message))
        match message:
            case OfferPages():
                self.outgoing.answered("d", self.incoming.offered(message))
            case HandedPages(ticket, sender, number):
                self.incoming.keep(message)
                if self.incoming.gave_up(sender):
                    self.outgoing.answered("d", False)
                if self.incoming.wanted(ticket):
                    self.outgoing.taken("d", number)
                else:
                    self.outgoing.over("d", ticket)
            case PagesEnd(ticket):
                self.incoming.end(ticket)
                self.outgoing.over("d", ticket)
        self.outgoing.pump()

    def all_arrive(self) -> None:
        while self.on_the_way:
            self.arrive()

    def check(self) -> None:
        """What the receiver has is what its name says."""
        for key, block in self.target.host.items():
            assert (block == page(key)).all()


@pytest.fixture(params=WAYS)
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(request.param, monkeypatch)


def test_all_pages_arrive(ends: Ends) -> None:
    ends.begin(1, KEYS[:2])
    ends.all_arrive()
    ends.begin(2, KEYS[2:])
    ends.all_arrive()
    ends.check()
    assert len(ends.target.host) == len(KEYS)
    assert ends.outgoing.idle
    assert ends.incoming.idle
    assert ends.outgoing.shared_pages == (len(KEYS) - 2 if ends.way in ("shared", "nixl") else 0)


def damaged(message: Any, place: int) -> Any:
    """The same message with something wrong in it."""
    if not isinstance(message, HandedPages):
        return message
    fields: dict[str, Any] = {}
    match place % 4:
        case 0 if message.data is not None:
            data = [block.copy() for block in message.data]
            block = data[place % len(data)].reshape(-1)
            block[place % block.size] ^= 1
            fields["data"] = tuple(data)
        case 0 | 1 if message.rows is not None:
            fields["rows"] = (message.rows + place) % (len(KEYS) + 3)
        case 2:
            fields["keys"] = message.keys[::-1]
        case _:
            fields["sums"] = message.sums + np.uint64(1)
    return msgspec.structs.replace(message, **fields)


STEPS = st.lists(st.tuples(st.sampled_from(["arrive", "lose", "double", "damage", "reorder"]), st.integers(0, 999)))


@pytest.mark.parametrize("way", WAYS)
@given(steps=STEPS)
def test_whatever_the_network_does_no_wrong_page_is_kept_and_all_is_well_once_it_heals(way: str, steps: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ends = Ends(way, patch)
        ends.begin(1)
        for what, place in steps:
            if not ends.on_the_way:
                break
            index = place % len(ends.on_the_way) if what == "reorder" else 0
            if what == "lose":
                ends.on_the_way.pop(index)
                continue
            if what == "damage":
                ends.on_the_way[index] = damaged(ends.on_the_way[index], place)
            ends.arrive(index, keep=what == "double")
            ends.check()
        # The lease ends: the receiver asks for the rest.
        ends.incoming.unexpect(1)
        ends.outgoing.over("d", 1)
        ends.all_arrive()
        missing = tuple(key for key in KEYS if key not in ends.target)
        ends.begin(2, missing)
        ends.all_arrive()
        ends.check()
        assert len(ends.target.host) == len(KEYS)
        assert ends.outgoing.idle
        assert ends.incoming.idle


@pytest.mark.parametrize("way", READ_IN_PLACE)
def test_a_page_that_is_overwritten_before_it_is_read_is_refused(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(way, monkeypatch)
    ends.begin(1, KEYS[:1])
    ends.all_arrive()
    ends.begin(2, KEYS[1:3])
    ends.pages.blocks[1] ^= 1
    ends.all_arrive()
    ends.check()
    assert KEYS[1] not in ends.target
    assert KEYS[2] in ends.target


def test_pages_without_shared_memory_travel_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends("shared", monkeypatch)
    monkeypatch.setattr(shared_pages.os, "readlink", lambda path: "/dev/zero")
    ends.begin(1, KEYS[:2])
    ends.all_arrive()
    ends.begin(2, KEYS[2:])
    ends.all_arrive()
    assert len(ends.target.host) == len(KEYS)
    assert ends.outgoing.shared_pages == 0


def test_who_cannot_read_where_pages_are_any_more_says_so_once_and_is_sent_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = Ends("shared", monkeypatch)
    ends.begin(1, KEYS[:1])
    ends.all_arrive()
    ((sender, reader),) = ends.incoming._readers.items()
    assert not ends.incoming.gave_up(sender)
    monkeypatch.setattr(type(reader), "over", True, raising=False)
    monkeypatch.setattr(type(reader), "read", lambda *_: False)
    assert [ends.incoming.gave_up(sender) for _ in range(2)] == [True, False]
    ends.outgoing.answered("d", False)
    ends.begin(2, KEYS[1:])
    ends.all_arrive()
    ends.check()
    assert len(ends.target.host) == len(KEYS)
    assert ends.outgoing.shared_pages == 0


def test_a_reader_opens_nothing_but_the_pages_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(8192))
    process = os.getpid()
    monkeypatch.setattr(shared_pages.os, "getpid", lambda: 1)
    with other.open() as file, pytest.raises(OSError, match="not the pages of an engine"):
        SharedReader(SharedMemory(process, file.fileno(), bytes(16)))
    # Whatever has taken its place since it was looked at.
    monkeypatch.setattr(shared_pages.os, "readlink", lambda _: f"/memfd:{shared_pages._NAME}")
    for taken in ("/dev/zero", other):
        with open(taken) as file, pytest.raises(OSError, match="not the pages that were offered"):
            SharedReader(SharedMemory(process, file.fileno(), bytes(16) if taken != other else b"x" * 16))


def test_pages_that_nobody_has_any_more_keep_no_file_open() -> None:
    before = os.listdir("/proc/self/fd")
    pages = SharedPages(1, PAGE_BYTES, SECRET)
    assert os.listdir("/proc/self/fd") != before
    del pages
    assert os.listdir("/proc/self/fd") == before


def test_a_reader_that_is_closed_keeps_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = SharedPages(1, PAGE_BYTES, SECRET)
    monkeypatch.setattr(shared_pages.os, "getpid", lambda: 1)
    before = os.listdir("/proc/self/fd")
    reader = SharedReader(pages.memory)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    for _ in range(2):
        reader.close()
    assert os.listdir("/proc/self/fd") == before


READER = """
import sys
import numpy as np
from pawl.actors.tiers.shared_pages import SharedMemory, SharedReader
process, handle, secret = sys.argv[1:]
reader = SharedReader(SharedMemory(int(process), int(handle), bytes.fromhex(secret)))
place = np.zeros(64, np.uint8)
print([(reader.read(row, place), int(place.sum())) for row in (2, 0, 9, -1)])
"""


def test_another_process_reads_the_pages_where_they_are() -> None:
    pages = SharedPages(3, PAGE_BYTES, SECRET)
    pages.blocks[:] = np.arange(3, dtype=np.uint8)[:, None]
    memory = pages.memory
    arguments = [str(memory.process), str(memory.handle), memory.secret.hex()]
    told = subprocess.run([sys.executable, "-c", READER, *arguments], capture_output=True, text=True, check=True)
    assert told.stdout == "[(True, 128), (True, 0), (False, 0), (False, 0)]\n"
    wrong = subprocess.run(
        [sys.executable, "-c", READER, *arguments[:2], bytes(16).hex()], capture_output=True, text=True, check=False
    )
    assert "not the pages that were offered" in wrong.stderr


NIXL_OWNER = """
import sys
from pawl.build.nixl_pages import NixlPages
pages = NixlPages(3, 64)
pages.blocks[:] = [[0], [1], [2]]
print(pages.memory.agent.hex(), pages.memory.address, flush=True)
sys.stdin.read()
"""


@NEEDS_NIXL
def test_with_nixl_another_process_is_read_until_it_dies_and_nothing_outside_its_pages() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", NIXL_OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    agent, address = owner.stdout.readline().split()
    reader = NixlReader(NixlMemory(bytes.fromhex(agent), int(address)), PAGE_BYTES)
    place = np.zeros(PAGE_BYTES, np.uint8)
    assert [(reader.read(row, place), int(place.sum())) for row in (2, 0, 9, -1)] == [
        (True, 128),
        (True, 0),
        (False, 0),
        (False, 0),
    ]
    owner.kill()
    owner.wait()
    assert not reader.read(2, place)
    assert place.sum() == 0
    reader.close()


@NEEDS_NIXL
def test_where_a_page_does_not_come_in_time_nothing_is_read_again_and_the_rest_travels_in_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = Ends("nixl", monkeypatch)
    ends.begin(1, KEYS[:1])
    ends.all_arrive()
    ends.begin(2, KEYS[1:])
    (reader,) = ends.incoming._readers.values()
    assert isinstance(reader, NixlReader)
    with monkeypatch.context() as stalled:
        stalled.setattr(nixl_pages, "READ_S", 0.0)
        stalled.setattr(reader._agent, "transfer", lambda transfer: "PROC")
        ends.arrive()
    assert any(lost is reader._place for lost in nixl_pages._LOST), "it may still be written to"
    assert not reader.read(0, np.zeros(PAGE_BYTES, np.uint8))
    ends.all_arrive()
    missing = tuple(key for key in KEYS if key not in ends.target)
    assert missing
    ends.begin(3, missing)
    ends.all_arrive()
    ends.check()
    assert len(ends.target.host) == len(KEYS)


@NEEDS_NIXL
def test_what_names_no_owner_is_no_memory_to_read() -> None:
    with pytest.raises(OSError, match="NIXL"):
        NixlReader(NixlMemory(b"nobody", 1), PAGE_BYTES)
