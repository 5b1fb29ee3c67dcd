"""A block is in the file once, or it is lost and the next one says so, whatever fails while it is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pawl.lifecycle.records import Digest, Gap, Record
from pawl.lifecycle.trace import writer
from pawl.lifecycle.trace.reader import Damage, TraceReader
from pawl.lifecycle.trace.writer import TraceWriter
from tests.lifecycle.story import PLENTY


def read(path: Path) -> tuple[list[Record], list[Damage]]:
    opened = TraceReader(path)
    return list(opened), opened.damage


FAILING = {"no memory for a block": "sealed", "it was written, and then something failed": "os.pwrite"}


@pytest.mark.parametrize("name", FAILING.values(), ids=list(FAILING))
def test_whatever_fails_at_a_block_it_is_in_the_file_once_or_lost_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = TraceWriter(tmp_path, PLENTY)
    file.append(Digest(1, 1))
    file.flush()
    pwrite = os.pwrite

    def fails(*arguments: Any) -> bytes:
        if name == "os.pwrite":
            pwrite(*arguments)
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(f"pawl.lifecycle.trace.writer.{name}", fails)
        file.append(Digest(2, 2))
        file.flush()
    assert (file.num_lost, file.pending) == (1, 0)
    file.append(Digest(3, 3))
    file.close()
    gap = Gap(1, "the trace could not be written: MemoryError")
    assert read(tmp_path) == ([Digest(1, 1), gap, Digest(3, 3)], [])


def test_who_cannot_make_room_or_close_a_file_writes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 20
    made, close = TraceWriter(tmp_path, limit), os.close

    def closes(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EDQUOT, "no quota")

    def gone(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "another server was quicker")

    monkeypatch.setattr(TraceWriter, "_make_room", gone)
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", closes)
        while not made.trouble:
            made.append(Gap(1, "x" * 500))
    told = Gap(0, "the trace could not be flushed to the device: no quota")
    made.append(Digest(1, 1))
    made.close()
    records, damage = read(made.path)
    assert (records[-2:], damage, made.num_lost_total) == ([told, Digest(1, 1)], [], 0)


def test_nobody_waits_at_a_pipe_among_the_files_of_a_trace(tmp_path: Path) -> None:
    made = TraceWriter(tmp_path, PLENTY)
    made.append(Digest(1, 1))
    made.close()
    os.mkfifo(made.path / "trace-000001.pawl")
    assert read(tmp_path) == ([Digest(1, 1)], [])


def test_two_who_begin_a_run_at_the_same_time_have_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TraceWriter(tmp_path, PLENTY)
    monkeypatch.setattr(writer, "run_folders", lambda directory: [])  # it had looked before the first one was there
    second = TraceWriter(tmp_path, PLENTY)
    assert [each.path.name for each in (first, second)] == ["run-000001", "run-000002"]
    for each in (first, second):
        each.close()


def test_a_run_is_being_written_while_its_writer_lives_and_one_that_has_gone_is_not(tmp_path: Path) -> None:
    made = TraceWriter(tmp_path, PLENTY)
    assert writer.being_written(made.path)
    made.close()
    assert not writer.being_written(made.path)
    assert not writer.being_written(tmp_path / "gone")


def test_how_far_a_trace_is_read_is_known_at_each_block(tmp_path: Path) -> None:
    file = TraceWriter(tmp_path, PLENTY)
    sizes = []
    for number in range(4):
        before = sum(each.stat().st_size for each in file.path.iterdir())
        file.append(Digest(number, number))
        file.flush()
        sizes.append(sum(each.stat().st_size for each in file.path.iterdir()) - before)
    file.close()
    reader = TraceReader(tmp_path)
    whole = sum(each.stat().st_size for each in reader.files)
    assert reader.share == 0.0
    shares = [reader.share for _ in reader.blocks()]
    assert shares[-1] == reader.share <= 1.0
    steps = [round((now - before) * whole) for before, now in zip([0.0, *shares], shares, strict=False)]
    assert len(set(steps)) == 1
    assert 0 < whole - sum(steps) < steps[0]


def test_a_file_that_somebody_else_deletes_meanwhile_is_room_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TraceWriter(tmp_path, PLENTY)
    for number in (1, 2, 3):
        (made.path / f"trace-{number:06}.pawl").write_bytes(b"old")

    def was_there(path: Path) -> bool:
        os.remove(path)
        return True

    made._limit = 0
    with monkeypatch.context() as patched:
        patched.setattr(writer, "trace_files", lambda run: sorted(run.glob("trace-*")))
        patched.setattr(Path, "is_file", was_there)
        made._make_room()
    assert [each.name for each in made.path.iterdir()] == ["trace-000003.pawl"]
    made.close()
