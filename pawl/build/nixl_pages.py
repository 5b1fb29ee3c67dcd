"""Pages that other processes read through NIXL, a library of its own (the extra `nixl`), here between host memories.

An owner registers its pages, and says by which bytes its agent is found; these come over our links, and the library
reads them. It asks nobody for keys: whoever reaches its ports may talk to it. So it listens on loopback alone, unless
UCX_NET_DEVICES names other devices.

What is read comes into memory of the reader's own first. A transfer that does not end in time may still be written to,
for ever; so that memory is never used again, nor given back.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import structlog

from pawl.actors.tiers.shared_pages import Memory, NixlMemory, Reader, shared_reader
from pawl.memory.arrays import UInt8s

log = structlog.get_logger("pawl.build.nixl")

PACKAGE = "nixl_cu12"
READ_S = 10.0
"""In which a page has come, or its owner is not read from any more."""
_LOST: list[UInt8s] = []
"""Memory that may be written to by what did not end."""


def installed() -> bool:
    """Whether there is such a library; it is not loaded."""
    return find_spec(PACKAGE) is not None


def reader_of(memory: Memory, page_bytes: int) -> Reader:
    """Of pages of so many bytes. Raises OSError where they cannot be had."""
    return NixlReader(memory, page_bytes) if isinstance(memory, NixlMemory) else shared_reader(memory, page_bytes)


def _new_agent() -> Any:
    """Raises OSError where there can be none."""
    os.environ.setdefault("UCX_NET_DEVICES", "lo")
    os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")
    try:
        from nixl_cu12._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t

        sync = nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        return nixl_agent(secrets.token_hex(8), nixl_agent_config(backends=["UCX"], sync_mode=sync))
    except Exception as error:  # a library of C++, which raises what it likes
        raise OSError(f"NIXL: {error}") from error


@cache
def _reading() -> Any:
    """The agent of all readers of this process."""
    return _new_agent()


class NixlPages:
    """Room for `capacity` pages of `page_bytes` bytes, zero. Raises OSError where they cannot be read by others."""

    def __init__(self, capacity: int, page_bytes: int) -> None:
        self.blocks: UInt8s = np.zeros((capacity, page_bytes), np.uint8)
        self._agent = _new_agent()
        address = self.blocks.ctypes.data
        try:
            self._agent.register_memory([(address, self.blocks.nbytes, 0, "")], "DRAM")
            self.memory = NixlMemory(self._agent.get_agent_metadata(), address)
        except Exception as error:
            raise OSError(f"NIXL: {error}") from error


class NixlReader:
    """The pages of another process, of `page_bytes` bytes each. Raises OSError where they cannot be had."""

    def __init__(self, memory: NixlMemory, page_bytes: int) -> None:
        self._address = memory.address
        self._place: UInt8s = np.zeros(page_bytes, np.uint8)
        self._lock = threading.Lock()
        self.over = False
        """Nothing is read from it any more."""
        self._agent = _reading()
        try:
            self._registered = self._agent.register_memory([(self._place.ctypes.data, page_bytes, 0, "")], "DRAM")
            self._owner = self._agent.add_remote_agent(memory.agent)
        except Exception as error:
            raise OSError(f"NIXL: {error}") from error

    def read(self, row: int, into: UInt8s) -> bool:
        """Copy a page, uint8 [page_bytes]; False where there is none such, or it does not come in time."""
        with self._lock:
            if self.over or row < 0 or not self._fetched(row):
                return False
            into[:] = self._place
            return True

    def _fetched(self, row: int) -> bool:
        agent, count, ends_at = self._agent, len(self._place), time.monotonic() + READ_S
        try:
            there = agent.get_xfer_descs([(self._address + row * count, count, 0)], "DRAM")
            here = agent.get_xfer_descs([(self._place.ctypes.data, count, 0)], "DRAM")
            transfer = agent.initialize_xfer("READ", here, there, self._owner)
            state = agent.transfer(transfer)
            while state == "PROC" and time.monotonic() < ends_at:
                state = agent.check_xfer_state(transfer)
            if state == "PROC":
                self.over = True
                _LOST.append(self._place)
                log.error("a page did not come in time; its owner is not read from any more", seconds=READ_S)
            else:
                agent.release_xfer_handle(transfer)
            return bool(state == "DONE")
        except Exception as error:
            log.info("a page cannot be read", reason=str(error))
            return False

    def close(self) -> None:
        """Its owner is gone, or says anew where it is."""
        with self._lock:
            if not self.over:
                self._agent.deregister_memory(self._registered)
            self.over = True
            self._agent.remove_remote_agent(self._owner)
