"""How fast pages go from a prefill replica's storage to a decode replica's, in another process of this machine.

    python -m benchmarks.hand_over [--mib 256] [--page-kib 720] [--rounds 5]

Beside each way stands what the way does by itself for the same bytes: reading the other process's memory, or sending
messages of the same size to somebody who drops them.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from benchmarks.harness import Spread
from pawl.actors.codec import make_codec
from pawl.actors.messages.hand_over import EndOfPages, Expect, Received, SendPages
from pawl.actors.messages.transfer import EmptyHost, FromStorage
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.actors.storage import Storage
from pawl.actors.tiers.hand_over import SLICE_BYTES
from pawl.actors.tiers.shared_pages import NixlMemory, Reader, SharedMemory, SharedPages
from pawl.actors.tiers.store import TierStore
from pawl.build.nixl_pages import NixlPages, installed, reader_of
from pawl.memory.tiers.host import HostPool

PREFILL = Names(scheduler="p.scheduler", worker="p.worker", storage="p.storage")
DECODE = Names(scheduler="d.scheduler", worker="d.worker", storage="d.storage")


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Ask for all pages as this ticket."""

    ticket: int


class Load(msgspec.Struct, frozen=True, tag=True):
    """Bytes that nobody wants."""

    data: NDArray[np.uint8]
    last: bool


class Dropped(msgspec.Struct, frozen=True, tag=True):
    """They have all come."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Read these pages where they are, and drop them."""

    memory: SharedMemory | NixlMemory
    num_pages: int
    page_bytes: int


class Sink(Actor):
    """In the decode replica's process: drops what comes."""

    accepts = Load | Ask
    _room: NDArray[np.uint8] | None = None
    """For as many pages, each of which has its place; memory is mapped in the round that does not count."""
    _reader: Reader | None = None

    def receive(self, message: Any) -> None:
        if isinstance(message, Ask):
            if self._reader is None:
                self._reader = reader_of(message.memory, message.page_bytes)
            if self._room is None:
                self._room = np.zeros((message.num_pages, message.page_bytes), np.uint8)
            for row, place in enumerate(self._room):
                self._reader.read(row, place)
        if isinstance(message, Ask) or message.last:
            self.context.send("meter", Dropped())


class Decoder(Actor):
    """In the decode replica's process: its scheduler, as far as it matters here."""

    accepts = Begin | Received | FromStorage

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self._keys = keys

    def receive(self, message: Any) -> None:
        if isinstance(message, Begin):
            # Pages that are there keep their bytes, and cost nothing.
            self.context.send(DECODE.storage, EmptyHost(0), Lane.CONTROL)
            self.context.send(DECODE.storage, Expect(message.ticket, self._keys), Lane.CONTROL)
            self.context.send("meter", message, Lane.CONTROL)
        elif isinstance(message, Received):
            self.context.send("meter", message, Lane.CONTROL)


class Meter(Actor):
    """In the prefill replica's process: tells whoever waits what has come back."""

    accepts = Begin | Received | Dropped

    def __init__(self) -> None:
        self.told: Any = None
        self.came = threading.Event()

    def receive(self, message: Any) -> None:
        self.told = message
        self.came.set()

    def wait(self) -> Any:
        self.came.wait()
        self.came.clear()
        return self.told


def names(num_pages: int) -> tuple[bytes, ...]:
    """Keys of all pages."""
    return tuple(number.to_bytes(16, "little") for number in range(num_pages))


def decode_side(address: str, num_pages: int, page_bytes: int) -> None:
    """The other process."""
    system, sockets = ProcessSystem(Process("decode", make_codec)), Sockets()
    system.spawn(Decoder(names(num_pages)), DECODE.scheduler)
    store = TierStore(HostPool(num_pages, page_bytes), None, eager=True)
    system.spawn(Storage(store, DECODE, readers=reader_of), DECODE.storage)
    system.spawn(Sink(), "sink")
    system.connect("prefill", sockets.join(address))
    system.start()
    sys.stdin.read()
    system.stop()
    sockets.close()


class Bench:
    """The prefill replica's process."""

    def __init__(self, num_pages: int, page_bytes: int, way: str) -> None:
        self.keys, self.size, self.way = names(num_pages), (num_pages, page_bytes), way
        self.pages: SharedPages | NixlPages
        if way == "nixl":
            self.pages = NixlPages(num_pages, page_bytes)
        else:
            self.pages = SharedPages(num_pages, page_bytes, secrets.token_bytes(16))
        self.pages.blocks[:] = np.random.default_rng(0).integers(0, 256, self.size, dtype=np.uint8)
        store = TierStore(HostPool(num_pages, page_bytes, np.zeros(self.size, np.uint8)), None, eager=True)
        if way != "messages":
            store = TierStore(HostPool(num_pages, page_bytes, self.pages.blocks), None, eager=True)
        store.keep(self.keys, self.pages.blocks.copy())
        met = threading.Event()
        self.system = ProcessSystem(Process("prefill", make_codec, on_met=lambda _: met.set()))
        self.meter, self.tickets = Meter(), 0
        self.system.spawn(self.meter, "meter")
        self.system.spawn(Storage(store, PREFILL, self.pages if way != "messages" else None), PREFILL.storage)
        self.folder = tempfile.TemporaryDirectory()
        self.sockets = Sockets()
        address = f"ipc://{self.folder.name}/link"
        self.system.connect("decode", self.sockets.bind(address))
        self.system.start()
        words = [sys.executable, "-m", "benchmarks.hand_over", "--decode", address, *map(str, self.size)]
        self.other = subprocess.Popen(words, stdin=subprocess.PIPE)
        met.wait()

    def hand_over(self) -> float:
        """Seconds until all pages are kept on the other side."""
        self.tickets += 1
        self.system.send(DECODE.scheduler, Begin(self.tickets))
        self.meter.wait()
        began = time.perf_counter()
        self.system.send(
            PREFILL.storage, SendPages(self.tickets, self.tickets, DECODE.storage, self.keys), Lane.CONTROL
        )
        self.system.send(PREFILL.storage, EndOfPages(self.tickets, num_cached=0))
        told = self.meter.wait()
        seconds = time.perf_counter() - began
        assert told.count == len(self.keys), f"{told.count} of {len(self.keys)} pages have come"
        return seconds

    def alone(self) -> float:
        """Seconds in which the way alone takes as many bytes there: read, or in messages that are dropped."""
        return self._load() if self.way == "messages" else self._read()

    def _read(self) -> float:
        began = time.perf_counter()
        self.system.send("sink", Ask(self.pages.memory, *self.size))
        self.meter.wait()
        return time.perf_counter() - began

    def _load(self) -> float:
        some, blocks = max(1, SLICE_BYTES // self.size[1]), self.pages.blocks
        began = time.perf_counter()
        for start in range(0, len(blocks), some):
            self.system.send("sink", Load(blocks[start : start + some], start + some >= len(blocks)))
        self.meter.wait()
        return time.perf_counter() - began

    def close(self) -> None:
        self.other.communicate(b"")
        self.system.stop()
        self.sockets.close()
        self.folder.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="GB/s of pages between two replicas")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--page-kib", type=int, default=720, help="720: 16 tokens of SmolLM2 in bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if arguments.decode:
        address, num_pages, page_bytes = arguments.decode
        decode_side(address, int(num_pages), int(page_bytes))
        return
    page_bytes = arguments.page_kib << 10
    num_pages = (arguments.mib << 20) // page_bytes
    for name in ("shared memory", "messages", *(["nixl"] if installed() else [])):
        bench = Bench(num_pages, page_bytes, name)
        pairs = [(bench.hand_over(), bench.alone()) for _ in range(arguments.rounds + 1)][1:]
        bench.close()
        gigabytes = num_pages * page_bytes / 1e9
        rates = [Spread.of([gigabytes / seconds for seconds in column]) for column in zip(*pairs, strict=True)]
        share = Spread.of([by_itself / handed for handed, by_itself in pairs])
        print(
            f"{name:14} {rates[0].median:6.2f} GB/s ({rates[0].low:.2f}-{rates[0].high:.2f})   by itself "
            f"{rates[1].median:6.2f} ({rates[1].low:.2f}-{rates[1].high:.2f})   share {share.median:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
