"""Writing a trace: blocks to the files of one run, within a limit, whatever the device does."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from pawl.lifecycle.records import ENCODER, Checkpoint, Gap, Record, schema_hash
from pawl.lifecycle.trace.format import (
    BLOCK,
    FILE,
    MAGIC,
    MARKER,
    NO_BLOCK,
    VERSION,
    file_name,
    run_folders,
    run_number,
    sealed,
    trace_files,
)

MAX_RECORDS = 4096
"""Records of one block at the most."""
MAX_PAYLOAD = 1 << 20
"""Bytes after which a block is written although it is not full."""
MAX_FILE = 64 << 20


def file_bytes(limit_bytes: int) -> int:
    """How large one file grows at the most, of a directory that may have so many bytes."""
    return min(MAX_FILE, max(1 << 16, limit_bytes // 8))


class NoEncoding(Exception):
    """A record that no file can hold, whatever the device does."""


class TraceWriter:
    """Writes one run. Records are encoded when they are appended, and written block by block.

    `limit_bytes` bounds the whole directory: the oldest runs go first, then the oldest files of this run, whose reader
    then finds a trace without its beginning. What is left can be judged: the newest checkpoint and what follows it
    stay, though a checkpoint alone be larger than the limit. A run that another writer still writes is never touched:
    each holds its folder's lock, which the system lets go of when the process ends, however it ends.

    When the device refuses a block, or somebody has removed the file, records are lost: `trouble` says why, and a `Gap`
    that counts them is the first record of the next block that is taken. Folders are for the owner alone (0700), and so
    are files (0600): they hold prompts.
    """

    def __init__(self, directory: Path, limit_bytes: int, *, actor: str = "recorder") -> None:
        """Raises OSError when the folder of the run cannot be made."""
        self._directory = directory
        self._limit = limit_bytes
        self._file_limit = file_bytes(limit_bytes)
        self._actor = actor.encode()[:16]
        self._chain = NO_BLOCK
        self._num_written = 0
        self._num_in_file = 0
        self._payload = bytearray()
        self._count = 0
        self._num_lost = 0
        self._num_lost_before = 0
        self.trouble = ""
        """Why the newest records could not be written; empty when they were."""
        self._index = -1
        self._from: int | None = None
        """The file that has the newest checkpoint; None: there was none."""
        self._file: int | None = None
        self._lock: int | None = None
        self._offset = 0
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._run = self._new_run()
        self.path = directory / f"run-{self._run:06}"
        """The folder of this run."""
        self._take_lock()
        self._next_file()

    @property
    def pending(self) -> int:
        """Records that were appended and are not written yet."""
        return self._count

    @property
    def num_lost(self) -> int:
        """Records that were lost and that no Gap counts yet."""
        return self._num_lost

    @property
    def num_lost_total(self) -> int:
        """Records that were lost since the start."""
        return self._num_lost_before + self._num_lost

    def append(self, record: Record) -> None:
        """Encode one record; writes a block when one is full. Raises NoEncoding; whatever it raises, nothing of the
        record is there."""
        if isinstance(record, Checkpoint):
            # Whatever files are dropped one day, what is left begins with a checkpoint.
            self.flush()
            if self._offset >= self._file_limit // 4:
                self._finish_file()
            self._from = self._index + (self._file is None)
        length, count = len(self._payload), self._count + 1
        try:
            ENCODER.encode_into(record, self._payload, -1)
            full = count >= MAX_RECORDS or len(self._payload) >= MAX_PAYLOAD
        except BaseException as error:
            del self._payload[length:]
            if isinstance(error, TypeError | ValueError | OverflowError):
                raise NoEncoding(f"a {type(record).__name__} has no encoding: {error}") from error
            raise
        self._count = count
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one block, or where nothing is but records were lost, the Gap that says so. Does not
        raise when the block cannot be made or the device refuses it: see `trouble`."""
        if not self._count and not self.trouble:
            return
        try:
            self._write_block()
        except Exception as error:
            self._num_lost += self._count
            reason = getattr(error, "strerror", None) or type(error).__name__
            self.trouble = f"the trace could not be written: {reason}"
        finally:
            self._count = 0
            self._payload.clear()
        if self._offset >= self._file_limit:
            self._finish_file()

    def _write_block(self) -> None:
        """What is pending is in the file when this returns; if it raises, nothing of it is."""
        count, records = self._count, bytes(self._payload)
        if self.trouble:
            count, records = count + 1, ENCODER.encode(Gap(self._num_lost, self.trouble)) + records
        # 0xdd: a msgpack array with a 32-bit length.
        payload = b"\xdd" + count.to_bytes(4, "big") + records
        header = BLOCK.pack(MARKER, self._actor, self._num_written, count, len(payload), schema_hash(), self._chain)
        digest = hashlib.sha256(header + payload).digest()
        self._write(sealed(header + digest) + payload)
        self._chain = digest
        self._num_written += count
        self._num_in_file += count
        self._num_lost_before += self._num_lost
        self._num_lost, self.trouble = 0, ""

    def close(self) -> None:
        """Write what is pending and flush the file to the device. The caller has appended `Closed` before."""
        self.flush()
        self._finish_file()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, data: bytes) -> None:
        """Append to the file, whole or not at all. Raises OSError, also when the file is no longer in its folder."""
        if self._file is None:
            self._next_file()
        assert self._file is not None
        if not os.fstat(self._file).st_nlink:
            # The device takes bytes for a file without a name as well; nobody could ever read them.
            os.close(self._file)
            self._file = None
            self._num_lost += self._num_in_file
            raise OSError(errno.ENOENT, "its file was removed")
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._file, view[done:], self._offset + done)
        except BaseException:
            os.ftruncate(self._file, self._offset)
            raise
        self._offset += len(data)

    def _next_file(self) -> None:
        index = self._index + 1
        if not self.path.is_dir():
            self.path.mkdir(mode=0o700, parents=True)
            self._take_lock()
        self._file = os.open(self.path / file_name(index), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._offset = self._num_in_file = 0
        try:
            self._write(sealed(FILE.pack(MAGIC, VERSION, self._run, index, schema_hash(), self._chain)))
        except BaseException:
            os.close(self._file)
            self._file = None
            raise
        self._index = index
        # Where others remove the same files, or will not have theirs removed, this trace goes on all the same.
        with contextlib.suppress(OSError):
            self._make_room()

    def _finish_file(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            try:
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            # Which records the device dropped is unknown; that it may have dropped some is said in the next block.
            self.trouble = f"the trace could not be flushed to the device: {error.strerror or error}"

    # ---- the directory ----

    def _new_run(self) -> int:
        """Make the folder of the next run; its number."""
        number = max(map(run_number, run_folders(self._directory)), default=0) + 1
        while True:
            try:
                (self._directory / f"run-{number:06}").mkdir(mode=0o700)
                return number
            except FileExistsError:
                # Another engine was quicker.
                number += 1

    def _take_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _make_room(self) -> None:
        """Delete the oldest runs, then this run's oldest files, until one more file fits the limit."""
        sizes = {run: {file: file.stat().st_size for file in trace_files(run)} for run in run_folders(self._directory)}
        excess = sum(sum(files.values()) for files in sizes.values()) + self._file_limit - self._limit
        others = ((run, sum(files.values())) for run, files in sizes.items() if run != self.path)
        own = list(sizes.get(self.path, {}).items())[:-1]
        if self._from is not None:
            newest = file_name(self._from)
            own = [(file, size) for file, size in own if file.name < newest]
        for path, size in (*others, *own):
            if excess <= 0:
                return
            if path.is_file():
                path.unlink(missing_ok=True)
            elif not being_written(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                continue
            excess -= size


def being_written(run: Path) -> bool:
    """Whether a living writer holds the lock of the run's folder."""
    try:
        lock = os.open(run, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
