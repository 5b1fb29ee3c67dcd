"""Reading a trace: its records, and what is wrong with its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from pawl.lifecycle.records import DECODER, Record, schema_hash
from pawl.lifecycle.trace.format import (
    BLOCK,
    BLOCK_SIZE,
    FILE,
    FILE_SIZE,
    MAGIC,
    MARKER,
    VERSION,
    intact,
    run_folders,
    trace_files,
)


class DamageKind(StrEnum):
    """What can be wrong with a trace as a file."""

    TRUNCATED = "truncated"
    """Its beginning was dropped to stay within the size limit."""
    TORN = "torn"
    """It ends inside a block: the writer was killed, or the machine stopped."""
    FOREIGN = "foreign"
    """It was written by another version of Pawl, with other records."""
    CORRUPT = "corrupt"
    """It was changed after it was written, or the device lies."""


class Damage(msgspec.Struct, frozen=True):
    """Something wrong with a trace as a file, and where. Blocks are counted from 0 over all files of the run."""

    kind: DamageKind
    block: int
    reason: str


class Reader(Protocol):
    """Where records come from: a trace, or the events of a scheduler that is not ours. See `TraceReader`."""

    num_blocks: int
    num_records: int

    @property
    def damage(self) -> Sequence[Damage]: ...

    @property
    def share(self) -> float: ...

    def blocks(self) -> Iterator[list[Record]]: ...


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
        self._num_bytes = 0
        self._expected: int | None = 0
        """Number of the next record; None when the beginning of the trace is missing."""
        self.files = self._find(path)
        self._all_bytes = sum(file.stat().st_size for file in self.files)

    @property
    def share(self) -> float:
        """Which part of the files is read, 0 to 1."""
        return min(1.0, self._num_bytes / max(self._all_bytes, 1))

    @staticmethod
    def _find(path: Path) -> list[Path]:
        """The files of the run at `path`. Raises FileNotFoundError when there is no trace."""
        if path.is_file():
            return [path]
        runs = run_folders(path)
        files = trace_files(runs[-1] if runs else path)
        if not files:
            raise FileNotFoundError(f"no trace at {path}")
        return files

    def damage_but(self, *kinds: DamageKind) -> tuple[Damage, ...]:
        """What is wrong beside these kinds."""
        return tuple(each for each in self.damage if each.kind not in kinds)

    def check_start(self) -> list[Damage]:
        """What is wrong with the trace as far as its first block tells."""
        first = TraceReader(self.files[0])
        next(first.blocks(), None)
        return first.damage

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
                    while (header := stream.read(BLOCK_SIZE)) != b"":
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
        header = stream.read(FILE_SIZE)
        if len(header) < FILE_SIZE or not any(header):
            raise _ends_early(last, f"{file.name} ends inside its header")
        if not intact(header) or header[:7] != MAGIC:
            raise _Stop(DamageKind.CORRUPT, f"the header of {file.name} is damaged")
        _, version, _, index, schema, previous = FILE.unpack(header[: FILE.size])
        if version != VERSION:
            text = f"{file.name} is a trace of version {version}; this Pawl reads version {VERSION}"
            raise _Stop(DamageKind.FOREIGN, text)
        if schema != schema_hash():
            raise _Stop(DamageKind.FOREIGN, f"{file.name} was written with other records than this Pawl reads")
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
        if len(header) < BLOCK_SIZE or not any(header):
            raise _ends_early(last, f"{file.name} ends inside the header of block {self.num_blocks}")
        if not intact(header) or header[:4] != MARKER:
            raise _Stop(DamageKind.CORRUPT, "its header is damaged")
        fields, digest = header[: BLOCK.size], header[BLOCK.size : BLOCK.size + 32]
        _, _, first, count, length, schema, previous = BLOCK.unpack(fields)
        payload = stream.read(length)
        self._num_bytes += BLOCK_SIZE + len(payload)
        if len(payload) < length:
            raise _ends_early(last, f"{file.name} ends inside block {self.num_blocks}")
        if hashlib.sha256(fields + payload).digest() != digest:
            raise _Stop(DamageKind.CORRUPT, "its content does not have the SHA-256 that its header states")
        self._check_place(first, previous, chain)
        if schema != schema_hash():
            raise _Stop(DamageKind.FOREIGN, "it was written with other records than this Pawl reads")
        try:
            records = DECODER.decode(payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
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
