"""Pages in memory that another process of this machine can read, where both belong to one user.

The memory is a file without a name (`memfd_create`), so it is gone when its owner is, however that ends. A reader opens
it through the owner's entry in /proc and reads: it maps nothing, so no reader dies of what an owner does. What it reads
may be overwritten meanwhile; a checksum tells.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from typing import Protocol, TypeAlias

import msgspec
import numpy as np

from pawl.memory.arrays import UInt8s

HEADER_BYTES = 4096
"""Before the pages: the beginning is a secret, by which a reader knows that it has found what it was offered."""
SECRET_BYTES = 16
_NAME = "pawl-pages"


class SharedMemory(msgspec.Struct, frozen=True, tag=True):
    """Where the pages of one process are."""

    process: int
    handle: int
    secret: bytes


class NixlMemory(msgspec.Struct, frozen=True, tag=True):
    """Where the pages of one process are, for a library that reads them from anywhere (`pawl.build.nixl_pages`)."""

    agent: bytes
    """By which it finds their owner."""
    address: int
    """Of the first page, there."""


Memory: TypeAlias = SharedMemory | NixlMemory


class SharedPages:
    """Room for `capacity` pages of `page_bytes` bytes, zero. Raises OSError where the system has no such memory."""

    def __init__(self, capacity: int, page_bytes: int, secret: bytes) -> None:
        """`secret`: 16 random bytes."""
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memory files")
        self._handle = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        os.ftruncate(self._handle, HEADER_BYTES + capacity * page_bytes)
        # Kept by the array; the file is, by this object.
        mapped = mmap.mmap(self._handle, HEADER_BYTES + capacity * page_bytes)
        self.memory = SharedMemory(os.getpid(), self._handle, secret)
        mapped[:SECRET_BYTES] = self.memory.secret
        self.blocks: UInt8s = np.frombuffer(mapped, np.uint8, offset=HEADER_BYTES).reshape(capacity, page_bytes)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)


class SharedReader:
    """The pages of another process. Raises OSError where they cannot be had, or are not what was offered."""

    over = False
    """Nothing is read from it any more."""

    def __init__(self, memory: SharedMemory) -> None:
        if memory.process == os.getpid():
            raise OSError("this process itself: there is nothing to be shared")
        path = f"/proc/{memory.process:d}/fd/{memory.handle:d}"
        # Looked at before it is opened: to open a device or a pipe may do something.
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            raise OSError("not the pages of an engine")
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._handle).st_mode) or self._read(0, SECRET_BYTES).tobytes() != memory.secret:
            raise OSError("not the pages that were offered")

    def read(self, row: int, into: UInt8s) -> bool:
        """Copy a page, uint8 [page_bytes]; False where there is none such, and then part of `into` may be changed."""
        count = len(into)
        return row >= 0 and os.preadv(self._handle, [into.data], HEADER_BYTES + row * count) == count

    def close(self) -> None:
        """Nothing is read any more."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def _read(self, offset: int, count: int) -> UInt8s:
        return np.frombuffer(os.pread(self._handle, count, offset), np.uint8)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self.close()


class Reader(Protocol):
    """Pages of one sender that can be read from here."""

    @property
    def over(self) -> bool:
        """Nothing is read any more."""

    def read(self, row: int, into: UInt8s) -> bool:
        """Copy a page, uint8 [page_bytes]; False where it cannot be had, and then `into` may be changed."""

    def close(self) -> None:
        """Its sender is gone."""


Readers: TypeAlias = Callable[[Memory, int], Reader]
"""Who reads that memory, of pages of so many bytes. Raises OSError or ValueError where nobody can."""


def shared_reader(memory: Memory, page_bytes: int) -> Reader:
    """Of memory that is shared on this machine. Raises as `Readers` do."""
    if isinstance(memory, SharedMemory):
        return SharedReader(memory)
    raise OSError("nobody here reads memory of that kind")
