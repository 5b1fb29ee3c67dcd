"""What is written, lost, dropped and read in random lives of a folder of traces stays as it is.

Writers come one after the other and beside each other; devices refuse a write or a flush, files and folders are removed
under a writer, the limit drops what is old, and what is left is cut, changed, exchanged and taken away in the end. A
change of what a reader finds, and of what it says of it, shows as another digest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from random import Random

import pytest

from pawl.lifecycle.audit import audit
from pawl.lifecycle.records import ENCODER, Checkpoint, Digest, Gap, Idled, Record, Started
from pawl.lifecycle.trace import writer as writing
from pawl.lifecycle.trace.format import run_folders, trace_files
from pawl.lifecycle.trace.reader import DamageKind, TraceReader
from pawl.lifecycle.trace.writer import TraceWriter, being_written

LIVES = 30
ACTS = 60
STARTED = Started(version="", model="", config={}, num_pages=4, page_size=4, num_slots=1, seed=0, time=0.0, wall=0.0)


class Life:
    """One folder; `told` is what there was to be seen."""

    def __init__(self, seed: int, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.told: list[object] = []
        self._random, self._folder, self._refusing = Random(f"trace {seed}"), folder, ""
        self._limit = self._random.choice((6_000, 12_000, 1 << 20))
        self._writers: list[TraceWriter] = []
        self._number = 0
        for name in ("pwrite", "fsync"):
            patch.setattr(os, name, self._unless_refusing(name, getattr(os, name)))
        self._begins()
        acts = [self._begins, self._flushes, self._ends, self._refuses, self._removes, self._looks]
        for _ in range(ACTS):
            self._random.choices([self._appends, *acts], (40, 1, 6, 1, 3, 1, 6))[0]()
        self._refusing = ""
        for each in self._writers:
            each.close()
        for _ in range(4):
            self._looks()
            self._damages()
        self._looks()

    def _unless_refusing(self, name: str, does: object) -> object:
        def done(*arguments: object) -> object:
            if self._refusing == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return does(*arguments) if name != "fsync" else None  # type: ignore[operator]

        return done

    def _one(self) -> TraceWriter:
        return self._random.choice(self._writers)

    def _begins(self) -> None:
        if len(self._writers) < 3:
            try:
                self._writers.append(TraceWriter(self._folder, self._limit))
            except OSError as error:
                self.told.append(f"none begins: {error.strerror}")

    def _appends(self) -> None:
        for _ in range(self._random.choice((1, 3, 9))):
            self._number += 1
            record: Record = Digest(self._number, 1 << 40)
            match self._random.randrange(12):
                case 0:
                    record = Checkpoint(STARTED, None, "all", 0.5)
                case 1:
                    record = Gap(1, "x" * self._random.randrange(700))
                case 2:
                    record = Idled(0.5)
            if self._writers:
                self._one().append(record)

    def _flushes(self) -> None:
        if self._writers:
            writer = self._one()
            writer.flush()
            self.told.append((writer.path.name, writer.pending, writer.num_lost, writer.num_lost_total, writer.trouble))

    def _ends(self) -> None:
        if self._writers:
            writer = self._writers.pop(self._random.randrange(len(self._writers)))
            writer.close()
            self.told.append((writer.path.name, being_written(writer.path), writer.num_lost, writer.trouble))

    def _refuses(self) -> None:
        """The device, or not any more."""
        self._refusing = self._random.choice(("", "", "pwrite", "fsync"))

    def _removes(self) -> None:
        if self._writers:
            path = self._one().path
            files = trace_files(path)
            if files and self._random.random() < 0.5:
                self._random.choice(files).unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _looks(self) -> None:
        """At all that can be read."""
        for run in run_folders(self._folder):
            names = [file.name for file in trace_files(run)]
            modes = {oct(path.stat().st_mode & 0o777) for path in (run, *trace_files(run))}
            self.told.append((run.name, names, sorted(modes), being_written(run)))
            if names:
                reader, shares = TraceReader(run), []
                made = hashlib.blake2b(digest_size=4)
                for block in reader.blocks():
                    made.update(ENCODER.encode(block))
                    shares.append(round(reader.share, 2))
                self.told += [reader.num_blocks, reader.num_records, made.hexdigest(), shares, reader.damage]
                self.told.append(TraceReader(run).check_start())
                self.told.append(audit(run).text().replace(str(self._folder), "."))

    def _damages(self) -> None:
        """One file of one run."""
        files = [file for run in run_folders(self._folder) for file in trace_files(run)]
        if not files:
            return
        file, other = self._random.choice(files), self._random.choice(files)
        content = bytearray(file.read_bytes())
        at = self._random.randrange(len(content) + 1)
        match self._random.randrange(6):
            case 0:
                del content[at:]
            case 1:
                content[at : at + 1] = b"?"
            case 2:
                content[at:at] = bytes(8)
            case 3:
                content += bytes(self._random.choice((40, 200)))
            case 4:
                content = bytearray(other.read_bytes())
            case _:
                file.unlink()
                return
        file.write_bytes(content)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Blocks and files that are soon full."""
    monkeypatch.setattr(writing, "MAX_RECORDS", 8)
    monkeypatch.setattr(writing, "MAX_PAYLOAD", 900)
    monkeypatch.setattr(writing, "file_bytes", lambda limit: 1500)
    return monkeypatch


def test_what_is_read_in_known_lives_of_a_folder_of_traces_stays_as_it_is(
    tmp_path: Path, small: pytest.MonkeyPatch
) -> None:
    digests = []
    for seed in range(LIVES):
        with small.context() as patch:
            life = Life(seed, tmp_path / str(seed), patch)
        digests.append(hashlib.blake2b(repr(life.told).encode(), digest_size=4).hexdigest())
    now = hashlib.blake2b(" ".join(digests).encode(), digest_size=8).hexdigest()
    assert now == "975dd0d301a7f260", digests


def test_the_newest_checkpoint_stays_though_it_is_larger_than_the_limit(tmp_path: Path) -> None:
    limit = 1 << 20
    writer = TraceWriter(tmp_path, limit)
    for number in range(6):
        writer.append(Checkpoint(STARTED, bytes(limit + number), "", float(number)))
        for step in range(400):
            writer.append(Gap(step, "x" * 1000))
            writer.flush()
    writer.close()
    reader = TraceReader(writer.path)
    checkpoint, *others = reader
    assert isinstance(checkpoint, Checkpoint)
    assert len(checkpoint.state or b"") == limit + 5
    assert len(others) == 400
    assert len(trace_files(writer.path)) > 2
    assert [damage.kind for damage in reader.damage] == [DamageKind.TRUNCATED]
