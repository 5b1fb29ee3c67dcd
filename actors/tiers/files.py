"""Pages in files: one file a page, named by its key, trusted only after it was checked.

    FOLDER/LAYOUT/lock                   one server at a time
    FOLDER/LAYOUT/ab/ab12….page          header (magic, version, layout, key, length, checksum), then the bytes

A file is written under another name and moved to its own, so a server that is killed leaves whole files or none. A
file that cannot be read, is too short, or is not what its name says costs a miss: it is deleted and counted. Nothing
here raises for what a disk does; a disk that fails again and again is not written to any more.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Protocol, TypeAlias

import numpy as np
import structlog
from numpy.typing import NDArray

from pawl.memory.tiers.keys import KEY_BYTES, PageKey

log = structlog.get_logger("pawl.storage")

UInt8s: TypeAlias = NDArray[np.uint8]

MAGIC = b"PAWLPAGE"
VERSION = 1
HEADER = struct.Struct("<8sIQ16s16s16s")
"""Magic, version, length of what follows, fingerprint of the layout, key, checksum of what follows."""
MAX_WRITE_ERRORS = 8
"""Failed writes in a row after which the store only reads."""
_SUFFIX, _UNFINISHED = ".page", ".part"


class StorageUnusable(Exception):
    """The folder cannot be used as page storage."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder} cannot be used as page storage: {reason}")


class Disk(Protocol):
    """What the store needs from a file system. Every method may raise OSError."""

    def names(self, folder: Path) -> list[str]:
        """Names in a folder; none when it does not exist."""

    def read(self, path: Path, limit: int) -> bytes:
        """At most `limit` bytes from the beginning."""

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """A new file; folders above it are made."""

    def move(self, source: Path, target: Path) -> None:
        """Within a folder, at once, over what is there."""

    def remove(self, path: Path) -> None:
        """A file; nothing when it does not exist."""


class LocalDisk:
    """The file system of this machine. Files are not forced to the device: losing some costs misses."""

    def names(self, folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def read(self, path: Path, limit: int) -> bytes:
        with open(path, "rb", buffering=0) as file:
            pieces = [file.read(limit)]
            while pieces[-1] and sum(map(len, pieces)) < limit:
                pieces.append(file.read(limit - sum(map(len, pieces))))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        try:
            file = open(path, "wb")  # noqa: SIM115  # closed below; the folder may have to be made first
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "wb")  # noqa: SIM115
        with file:
            for part in parts:
                file.write(part)

    def move(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


class FileStore:
    """At most `limit_bytes` of pages of one layout, least recently used first out; after a start, unused ones first."""

    def __init__(self, folder: Path, layout: str, page_bytes: int, limit_bytes: int, disk: Disk | None = None) -> None:
        self._fingerprint = blake2b(layout.encode(), digest_size=16).digest()
        self.folder = folder / self._fingerprint.hex()
        self.page_bytes = page_bytes
        self.file_bytes = HEADER.size + page_bytes
        self.capacity = limit_bytes // self.file_bytes
        if self.capacity < 1:
            raise StorageUnusable(folder, f"{limit_bytes:,} bytes do not hold one page of {page_bytes:,} bytes")
        self.disk: Disk = disk if disk is not None else LocalDisk()
        self.writable = True
        self.errors = 0
        """Operations the disk refused."""
        self.corrupt = 0
        """Files that were not what their names said."""
        self._failures = 0
        self._known: dict[PageKey, None] = {}
        """Least recently used first."""
        self._lock: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: PageKey) -> bool:
        return key in self._known

    # ---- life ----

    def acquire(self) -> None:
        """Make the folder and take it for this process. Raises StorageUnusable."""
        try:
            # Keys and values tell much of the prompts they were made from: they are nobody else's business.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open(self.folder / "lock", "wb")  # noqa: SIM115  # held until `close`
        except OSError as error:
            raise StorageUnusable(self.folder, error.strerror or str(error)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StorageUnusable(self.folder, "another server uses it") from error
        self._lock = lock

    def scan(self) -> list[PageKey]:
        """Learn by name what is there; the keys. Files are checked when they are read. Left-overs are removed."""
        for parent, name in self._names():
            key = _key_of(name)
            if key is not None and len(self._known) < self.capacity:
                self._known[key] = None
            elif key is not None or name.endswith(_UNFINISHED):
                self._remove(parent / name)
        return list(self._known)

    def _names(self) -> Iterator[tuple[Path, str]]:
        for first in range(256):
            parent = self.folder / f"{first:02x}"
            try:
                names = self.disk.names(parent)
            except OSError as error:
                self._failed("list", parent, error)
                continue
            for name in sorted(names):
                yield parent, name

    def close(self) -> None:
        """Let another server have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ---- pages ----

    def put(self, key: PageKey, block: UInt8s) -> list[PageKey]:
        """Write a page, uint8 [page_bytes], unless it is here; the keys that had to make room. After an error the
        page is not in the store."""
        if key in self._known:
            self._touch(key)
            return []
        if not self.writable:
            return []
        displaced = []
        while len(self._known) >= self.capacity:
            oldest = next(iter(self._known))
            self._forget(oldest)
            displaced.append(oldest)
        path = self._path(key)
        unfinished = path.with_suffix(_UNFINISHED)
        content = np.ascontiguousarray(block).data
        checksum = blake2b(content, digest_size=16).digest()
        header = HEADER.pack(MAGIC, VERSION, self.page_bytes, self._fingerprint, key, checksum)
        try:
            self.disk.write(unfinished, (header, content))
            self.disk.move(unfinished, path)
        except OSError as error:
            self._failed("write", path, error)
            self._remove(unfinished)
            self._failures += 1
            if self._failures >= MAX_WRITE_ERRORS:
                self.writable = False
                log.error("page storage is only read from now on", folder=str(self.folder), errors=self.errors)
            return displaced
        self._failures = 0
        self._known[key] = None
        return displaced

    def get(self, key: PageKey) -> UInt8s | None:
        """The page's bytes, uint8 [page_bytes], read-only; None, and the page is gone, when they cannot be had."""
        if key not in self._known:
            return None
        path = self._path(key)
        try:
            content = self.disk.read(path, self.file_bytes + 1)
        except FileNotFoundError:
            del self._known[key]
            return None
        except OSError as error:
            self._failed("read", path, error)
            self._forget(key)
            return None
        fault = self._fault(key, content)
        if fault is not None:
            self.corrupt += 1
            if _worth_a_line(self.corrupt):
                log.warning("a stored page is not usable", path=str(path), fault=fault, count=self.corrupt)
            self._forget(key)
            return None
        self._touch(key)
        return np.frombuffer(content, np.uint8, offset=HEADER.size)

    def _fault(self, key: PageKey, content: bytes) -> str | None:
        """What is wrong with a file's content, if anything."""
        if len(content) != self.file_bytes:
            return f"{len(content)} bytes instead of {self.file_bytes}"
        magic, version, length, fingerprint, name, checksum = HEADER.unpack_from(content)
        if magic != MAGIC or version != VERSION or length != self.page_bytes:
            return "not a page file of this version"
        if fingerprint != self._fingerprint:
            return "a page of another layout"
        if name != key:
            return "another page"
        if blake2b(memoryview(content)[HEADER.size :], digest_size=16).digest() != checksum:
            return "checksum"
        return None

    def _path(self, key: PageKey) -> Path:
        name = key.hex()
        return self.folder / name[:2] / (name + _SUFFIX)

    def _touch(self, key: PageKey) -> None:
        del self._known[key]
        self._known[key] = None

    def _forget(self, key: PageKey) -> None:
        del self._known[key]
        self._remove(self._path(key))

    def _remove(self, path: Path) -> None:
        try:
            self.disk.remove(path)
        except OSError as error:
            self._failed("remove", path, error)

    def _failed(self, what: str, path: Path, error: OSError) -> None:
        self.errors += 1
        if _worth_a_line(self.errors):
            log.warning("page storage failed", what=what, path=str(path), error=str(error), count=self.errors)


def _key_of(name: str) -> PageKey | None:
    """The key that a file is named by; None for another kind of file."""
    stem, dot, suffix = name.partition(".")
    if dot + suffix != _SUFFIX or len(stem) != 2 * KEY_BYTES:
        return None
    try:
        key = bytes.fromhex(stem)
    except ValueError:
        return None
    return key if key.hex() == stem else None


def _worth_a_line(count: int) -> bool:
    """The 1st, 2nd, 4th, 8th …: a broken disk must not flood the log."""
    return count & (count - 1) == 0
