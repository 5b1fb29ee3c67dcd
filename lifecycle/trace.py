"""Traces on disk: framed blocks, each tied to the one before it by its SHA-256.

    DIRECTORY/run-000007/trace-000000.pawl      one run of the engine is one folder
                         trace-000001.pawl      its files are one chain

    file    | magic, version | run | file index | schema | SHA-256 of the block before | CRC |  block  |  block  | …
    block   | marker | actor | first record | count | length | schema | previous SHA-256 | SHA-256 | CRC |  payload

The payload is a msgpack array of records (`lifecycle/records.py`). A block's SHA-256 covers its header and payload;
the CRC covers the header alone, so that a damaged length is told from a file that ends early.

What survives: a block is handed to the operating system in one write, so a process that is killed loses at most the
block it was filling. Files are flushed to the device (fsync) when they are full and when the trace is closed, never
in between: a power failure may cost what the operating system had not written yet, and the reader will say so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import msgspec

from pawl.lifecycle.records import DECODER, ENCODER, Gap, Record, schema_hash

MAX_RECORDS = 4096
"""Records of one block at the most."""
MAX_PAYLOAD = 1 << 20
"""Bytes after which a block is written although it is not full."""
MAX_FILE = 64 << 20

_MAGIC = b"PAWLTRC"
_VERSION = 1
_MARKER = b"BLK1"
_NO_BLOCK = bytes(32)
_FILE = struct.Struct(">7sBII8s32s")
_BLOCK = struct.Struct(">4s16sQII8s32s")
_CRC = struct.Struct(">I")
_FILE_SIZE = _FILE.size + _CRC.size
_BLOCK_SIZE = _BLOCK.size + 32 + _CRC.size


def _sealed(header: bytes) -> bytes:
    return header + _CRC.pack(zlib.crc32(header))


def _intact(header: bytes) -> bool:
    return header[-_CRC.size :] == _CRC.pack(zlib.crc32(header[: -_CRC.size]))


def _runs(directory: Path) -> list[Path]:
    return sorted(directory.glob("run-*"))


def _files(run: Path) -> list[Path]:
    return sorted(run.glob("trace-*.pawl"))


class TraceWriter:
    """Writes one run. Records are encoded when they are appended, and written block by block.

    `limit_bytes` bounds the whole directory: the oldest runs go first, then the oldest files of this run, whose reader
    then finds a trace without its beginning. When the device refuses a block, its records are lost, and a `Gap` that
    counts them is the first record of the next block that it takes. One engine writes to a directory at a time.
    """

    def __init__(self, directory: Path, limit_bytes: int, *, actor: str = "recorder") -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._file_limit = min(MAX_FILE, max(1 << 16, limit_bytes // 8))
        self._actor = actor.encode()[:16]
        self._chain = _NO_BLOCK
        self._num_written = 0
        self._payload = bytearray()
        self._count = 0
        self._num_lost = 0
        self._loss = ""
        self._index = -1
        self._file: BinaryIO | None = None
        self._offset = 0
        directory.mkdir(parents=True, exist_ok=True)
        runs = _runs(directory)
        self._run = int(runs[-1].name.removeprefix("run-")) + 1 if runs else 1
        self.path = directory / f"run-{self._run:06}"
        """The folder of this run."""
        self.path.mkdir()
        self._next_file()

    @property
    def pending(self) -> int:
        """Records that were appended and are not written yet."""
        return self._count

    @property
    def num_lost(self) -> int:
        """Records that the device refused and that no Gap counts yet."""
        return self._num_lost

    def append(self, record: Record) -> None:
        """Encode one record; writes a block when one is full. Raises TypeError for a record that has no encoding."""
        length = len(self._payload)
        try:
            ENCODER.encode_into(record, self._payload, -1)
        except BaseException:
            del self._payload[length:]
            raise
        self._count += 1
        if self._count >= MAX_RECORDS or len(self._payload) >= MAX_PAYLOAD:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one block. Does not raise when the device refuses: see `num_lost`."""
        if not self._count:
            return
        count, records = self._count, bytes(self._payload)
        self._count = 0
        self._payload.clear()
        num_new = count
        if self._loss:
            count, records = count + 1, ENCODER.encode(Gap(self._num_lost, self._loss)) + records
        # 0xdd: a msgpack array with a 32-bit length.
        payload = b"\xdd" + count.to_bytes(4, "big") + records
        header = _BLOCK.pack(_MARKER, self._actor, self._num_written, count, len(payload), schema_hash(), self._chain)
        digest = hashlib.sha256(header + payload).digest()
        try:
            self._write(_sealed(header + digest) + payload)
        except OSError as error:
            self._num_lost += num_new
            self._loss = f"the trace could not be written: {error.strerror or error}"
            return
        self._num_lost, self._loss = 0, ""
        self._chain = digest
        self._num_written += count
        if self._offset >= self._file_limit:
            self._finish_file()

    def close(self) -> None:
        """Write what is pending and flush the file to the device. The caller has appended `Closed` before."""
        self.flush()
        self._finish_file()

    def _write(self, data: bytes) -> None:
        """Append to the file, whole or not at all."""
        if self._file is None:
            self._next_file()
        assert self._file is not None
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], self._offset + done)
        except OSError:
            os.ftruncate(self._file.fileno(), self._offset)
            raise
        self._offset += len(data)

    def _next_file(self) -> None:
        index = self._index + 1
        self._file = open(self.path / f"trace-{index:06}.pawl", "wb", buffering=0)  # noqa: SIM115
        self._offset = 0
        try:
            self._write(_sealed(_FILE.pack(_MAGIC, _VERSION, self._run, index, schema_hash(), self._chain)))
        except OSError:
            self._file.close()
            self._file = None
            raise
        self._index = index
        self._make_room()

    def _finish_file(self) -> None:
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            # Which records the device dropped is unknown; that it may have dropped some is said in the next block.
            self._loss = f"the trace could not be flushed to the device: {error.strerror or error}"
        self._file.close()
        self._file = None

    def _make_room(self) -> None:
        """Delete the oldest runs, then this run's oldest files, until one more file fits the limit."""
        sizes = {run: {file: file.stat().st_size for file in _files(run)} for run in _runs(self._directory)}
        excess = sum(sum(files.values()) for files in sizes.values()) + self._file_limit - self._limit
        for run, files in sizes.items():
            if excess <= 0:
                return
            if run != self.path:
                shutil.rmtree(run, ignore_errors=True)
                excess -= sum(files.values())
        for file, size in list(sizes[self.path].items())[:-1]:
            if excess <= 0:
                return
            file.unlink(missing_ok=True)
            excess -= size


class DamageKind(StrEnum):
    """What can be wrong with a trace as a file."""

    TRUNCATED = "truncated"
    """Its beginning was dropped to stay within the size limit."""
    TORN = "torn"
    """It ends inside a block: the writer was killed, or the machine stopped."""
    FOREIGN = "foreign"
    """It was written with another version of the records."""
    CORRUPT = "corrupt"
    """It was changed after it was written, or the device lies."""


class Damage(msgspec.Struct, frozen=True):
    """Something wrong with a trace as a file, and where. Blocks are counted from 0 over all files of the run."""

    kind: DamageKind
    block: int
    reason: str


class _Stop(Exception):
    def __init__(self, kind: DamageKind, reason: str) -> None:
        self.kind = kind
        self.reason = reason


class TraceReader:
    """Streams the records of one run, and says what is wrong with its files.

    `path` is a file, a run's folder, or a directory of runs (the newest is read). Iterate once; then `damage` is
    complete. Reading stops at the first torn, foreign or corrupt block; what was yielded before it is sound.
    """

    def __init__(self, path: Path) -> None:
        self.damage: list[Damage] = []
        self.num_blocks = 0
        self.num_records = 0
        self._expected: int | None = 0
        """Number of the next record; None when the beginning of the trace is missing."""
        self.files = self._find(path)

    @staticmethod
    def _find(path: Path) -> list[Path]:
        """The files of the run at `path`. Raises FileNotFoundError when there is no trace."""
        if path.is_file():
            return [path]
        runs = _runs(path)
        files = _files(runs[-1] if runs else path)
        if not files:
            raise FileNotFoundError(f"no trace at {path}")
        return files

    def __iter__(self) -> Iterator[Record]:
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[list[Record]]:
        """The records, block by block."""
        chain: bytes | None = None
        index: int | None = None
        for file in self.files:
            last = file == self.files[-1]
            with file.open("rb") as stream:
                try:
                    index, chain = self._open(stream, file, last, index, chain)
                    while (header := stream.read(_BLOCK_SIZE)) != b"":
                        chain, records = self._block(stream, header, file, last, chain)
                        self.num_blocks += 1
                        self.num_records += len(records)
                        yield records
                except _Stop as stop:
                    self.damage.append(Damage(stop.kind, self.num_blocks, stop.reason))
                    return

    def _open(
        self, stream: BinaryIO, file: Path, last: bool, before: int | None, chain: bytes | None
    ) -> tuple[int, bytes]:
        """Check a file's header; its index, and the digest that its first block must continue."""
        header = stream.read(_FILE_SIZE)
        if len(header) < _FILE_SIZE or not any(header):
            raise _ends_early(last, f"{file.name} ends inside its header")
        if not _intact(header) or header[:7] != _MAGIC:
            raise _Stop(DamageKind.CORRUPT, f"the header of {file.name} is damaged")
        _, version, _, index, schema, previous = _FILE.unpack(header[: _FILE.size])
        if version != _VERSION or schema != schema_hash():
            raise _Stop(DamageKind.FOREIGN, f"{file.name} was written with another version of the records")
        if before is None and index > 0:
            reason = f"the trace begins with {file.name}; what came before was dropped or is elsewhere"
            self.damage.append(Damage(DamageKind.TRUNCATED, 0, reason))
            self._expected = None
        elif before is not None and index != before + 1:
            raise _Stop(DamageKind.CORRUPT, f"file {before + 1} of the run is missing before {file.name}")
        if chain is not None and previous != chain:
            raise _Stop(DamageKind.CORRUPT, f"{file.name} does not continue the file before it")
        return index, previous

    def _block(
        self, stream: BinaryIO, header: bytes, file: Path, last: bool, chain: bytes
    ) -> tuple[bytes, list[Record]]:
        """Read and check one block; its digest and its records."""
        if len(header) < _BLOCK_SIZE or not any(header):
            raise _ends_early(last, f"{file.name} ends inside the header of block {self.num_blocks}")
        if not _intact(header) or header[:4] != _MARKER:
            raise _Stop(DamageKind.CORRUPT, "its header is damaged")
        fields, digest = header[: _BLOCK.size], header[_BLOCK.size : _BLOCK.size + 32]
        _, _, first, count, length, schema, previous = _BLOCK.unpack(fields)
        payload = stream.read(length)
        if len(payload) < length:
            raise _ends_early(last, f"{file.name} ends inside block {self.num_blocks}")
        if hashlib.sha256(fields + payload).digest() != digest:
            raise _Stop(DamageKind.CORRUPT, "its content does not have the SHA-256 that its header states")
        self._check_place(first, previous, chain)
        if schema != schema_hash():
            raise _Stop(DamageKind.FOREIGN, "it was written with another version of the records")
        try:
            records = DECODER.decode(payload)
        except msgspec.MsgspecError as error:
            raise _Stop(DamageKind.CORRUPT, f"its content is no list of records: {error}") from None
        if len(records) != count:
            raise _Stop(DamageKind.CORRUPT, f"it has {len(records)} records and its header says {count}")
        self._expected = first + count
        return digest, records

    def _check_place(self, first: int, previous: bytes, chain: bytes) -> None:
        """The block must follow the one read before it."""
        if previous == chain and self._expected in (first, None):
            return
        expected = self._expected or 0
        if first > expected:
            raise _Stop(DamageKind.CORRUPT, f"records {expected} to {first - 1} are missing before it")
        if first < expected:
            raise _Stop(DamageKind.CORRUPT, f"it starts at record {first} again: a block is repeated or out of order")
        raise _Stop(DamageKind.CORRUPT, "it does not name the block before it: one of the two was exchanged")


def _ends_early(last: bool, reason: str) -> _Stop:
    return _Stop(DamageKind.TORN if last else DamageKind.CORRUPT, reason)
