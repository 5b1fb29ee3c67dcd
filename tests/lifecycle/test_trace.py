"""What is written is read back; what is damaged, dropped or exchanged is named."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawl.lifecycle.records import ENCODER, Checkpoint, Digest, Gap, Record, Started, StepPlanned
from pawl.lifecycle.trace import reader
from pawl.lifecycle.trace.format import BLOCK, BLOCK_SIZE, FILE_SIZE, VERSION, sealed
from pawl.lifecycle.trace.reader import Damage, DamageKind, TraceReader
from pawl.lifecycle.trace.writer import MAX_PAYLOAD, MAX_RECORDS, NoEncoding, TraceWriter, file_bytes
from tests.lifecycle.story import PLENTY, plain, sound_run, write

RECORDS = [record for record in sound_run().records if not isinstance(record, Checkpoint)]
"""A checkpoint would begin a block of its own."""


def read(path: Path) -> tuple[list[Record], list[Damage]]:
    opened = TraceReader(path)
    records = list(opened)
    return records, opened.damage


def spans(file: Path) -> list[tuple[int, int]]:
    """Where the blocks of a file lie: (begin, end)."""
    data = file.read_bytes()
    found, at = [], data.find(b"BLK1")
    while at < len(data):
        end = at + BLOCK_SIZE + int.from_bytes(data[at + 32 : at + 36], "big")
        found.append((at, end))
        at = end
    return found


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_what_is_written_is_read_back(tmp_path: Path, block: int) -> None:
    records, damage = read(write(tmp_path, RECORDS, block))
    assert damage == []
    assert list(plain(records)) == list(plain(RECORDS))


def test_a_file_a_run_and_a_directory_of_runs_can_be_read_the_newest_run_first(tmp_path: Path) -> None:
    write(tmp_path, [Digest(1, 1)])
    file = write(tmp_path, [Digest(2, 2)])
    for path in (file, file.parent, tmp_path):
        assert read(path) == ([Digest(2, 2)], [])


def test_no_trace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TraceReader(tmp_path)


def test_a_block_is_written_when_it_is_full(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, PLENTY)
    for step in range(MAX_RECORDS + 1):
        writer.append(Digest(step, step))
    assert writer.pending == 1
    assert len(read(tmp_path)[0]) == MAX_RECORDS
    writer.close()
    assert len(read(tmp_path)[0]) == MAX_RECORDS + 1


def test_a_block_is_written_with_the_record_that_makes_it_large_enough(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, PLENTY)
    writer.append(Gap(0, "x" * MAX_PAYLOAD))
    assert writer.pending == 0
    writer.close()


def test_a_record_without_an_encoding_is_refused_and_leaves_no_bytes(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, PLENTY)
    wide = StepPlanned(1, 0.0, *[np.zeros(1, np.int64)] * 9)
    with pytest.raises(NoEncoding, match="int64"):
        writer.append(wide)
    writer.append(Digest(1, 1))
    writer.close()
    assert read(tmp_path) == ([Digest(1, 1)], [])


# ---- damage ----


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def exchanged(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    (a, b), (c, d) = cuts[1], cuts[2]
    return data[:a] + data[c:d] + data[a:b] + data[d:]


def forged(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """Block 2 is made again from other records, with everything but its place in the chain right."""
    (begin, end) = cuts[2]
    _, actor, first, count, _, schema, _ = BLOCK.unpack(data[begin : begin + BLOCK.size])
    payload = b"\xdd" + count.to_bytes(4, "big") + ENCODER.encode(Digest(9, 9)) * count
    header = BLOCK.pack(b"BLK1", actor, first, count, len(payload), schema, bytes(32))
    digest = hashlib.sha256(header + payload).digest()
    return data[:begin] + sealed(header + digest) + payload + data[end:]


def miscounted(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """Block 2 is made again with one record less than its header says, and with everything else right."""
    (begin, end) = cuts[2]
    _, actor, first, count, _, schema, previous = BLOCK.unpack(data[begin : begin + BLOCK.size])
    payload = b"\xdd" + (count - 1).to_bytes(4, "big") + ENCODER.encode(Digest(9, 9)) * (count - 1)
    header = BLOCK.pack(b"BLK1", actor, first, count, len(payload), schema, previous)
    digest = hashlib.sha256(header + payload).digest()
    return data[:begin] + sealed(header + digest) + payload + data[end:]


def of_other_records(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """The header of block 2 says that it was written with other records, and everything else is right."""
    (begin, end) = cuts[2]
    *place, schema, previous = BLOCK.unpack(data[begin : begin + BLOCK.size])
    header, payload = BLOCK.pack(*place, schema[::-1], previous), data[begin + BLOCK_SIZE : end]
    digest = hashlib.sha256(header + payload).digest()
    return data[:begin] + sealed(header + digest) + payload + data[end:]


DAMAGES: dict[str, tuple[Callable[[bytes, list[tuple[int, int]]], bytes], DamageKind, int, str]] = {
    "a bit of the content": (lambda d, c: flip(d, c[2][1] - 1), DamageKind.CORRUPT, 2, "SHA-256"),
    "a bit of the header": (lambda d, c: flip(d, c[2][0] + 5), DamageKind.CORRUPT, 2, "header is damaged"),
    "a bit of the length": (lambda d, c: flip(d, c[2][0] + 32), DamageKind.CORRUPT, 2, "header is damaged"),
    "a bit of the file header": (lambda d, c: flip(d, 9), DamageKind.CORRUPT, 0, "header of .* is damaged"),
    "a block of other records": (of_other_records, DamageKind.FOREIGN, 2, "other records than this Pawl reads"),
    "two blocks exchanged": (exchanged, DamageKind.CORRUPT, 1, "records 8 to 15 are missing"),
    "a block dropped": (
        lambda d, c: d[: c[1][0]] + d[c[1][1] :],
        DamageKind.CORRUPT,
        1,
        "records 8 to 15 are missing",
    ),
    "a block repeated": (
        lambda d, c: d[: c[1][1]] + d[c[1][0] : c[1][1]] + d[c[1][1] :],
        DamageKind.CORRUPT,
        2,
        "starts at record 8 again",
    ),
    "a block forged": (forged, DamageKind.CORRUPT, 2, "exchanged"),
    "a block with a record too few": (miscounted, DamageKind.CORRUPT, 2, "7 records and its header says 8"),
    "bytes after the last block": (lambda d, c: d + b"x" * 500, DamageKind.CORRUPT, 5, "header is damaged"),
    "the end inside a block": (lambda d, c: d[:-3], DamageKind.TORN, 4, "ends inside block 4"),
    "the end inside a header": (lambda d, c: d[: c[4][0] + 20], DamageKind.TORN, 4, "the header of block 4"),
    "zeros where a block was to be": (lambda d, c: d[: c[4][0]] + bytes(4096), DamageKind.TORN, 4, "block 4"),
    "the end inside the file header": (lambda d, c: d[:10], DamageKind.TORN, 0, "ends inside its header"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_with_its_block_and_what_came_before_is_read(tmp_path: Path, kind: str) -> None:
    change, expected, block, words = DAMAGES[kind]
    file = write(tmp_path, RECORDS)
    cuts = spans(file)
    assert len(cuts) == 5
    file.write_bytes(change(file.read_bytes(), cuts))
    records, damage = read(file)
    assert [(each.kind, each.block) for each in damage] == [(expected, block)]
    assert re.search(words, damage[0].reason), damage[0].reason
    assert list(plain(records)) == list(plain(RECORDS[: 8 * block]))


@settings(max_examples=60)
@given(st.data())
def test_no_single_flipped_bit_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = write(tmp_path_factory.mktemp("trace"), RECORDS)
    content = file.read_bytes()
    position = data.draw(st.integers(0, 8 * len(content) - 1))
    byte, bit = divmod(position, 8)
    file.write_bytes(content[:byte] + bytes([content[byte] ^ (1 << bit)]) + content[byte + 1 :])
    records, damage = read(file)
    assert [each.kind for each in damage] == [DamageKind.CORRUPT]
    assert list(plain(records)) == list(plain(RECORDS[: len(records)]))


@settings(max_examples=40)
@given(st.data())
def test_a_file_cut_anywhere_gives_whole_blocks_and_says_that_it_is_torn(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = write(tmp_path_factory.mktemp("trace"), RECORDS)
    content = file.read_bytes()
    ends = {len(content), *(begin for begin, _ in spans(file))}
    length = data.draw(st.integers(0, len(content)))
    file.write_bytes(content[:length])
    records, damage = read(file)
    assert [each.kind for each in damage] == ([] if length in ends else [DamageKind.TORN])
    assert list(plain(records)) == list(plain(RECORDS[: len(records)]))


def test_records_of_another_version_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, RECORDS)
    monkeypatch.setattr(reader, "schema_hash", lambda: b"tomorrow")
    records, damage = read(file)
    assert records == []
    assert [each.kind for each in damage] == [DamageKind.FOREIGN]


def test_a_file_of_another_version_is_told_before_it_has_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, RECORDS)
    file.write_bytes(file.read_bytes()[:FILE_SIZE])
    assert read(file) == ([], [])
    monkeypatch.setattr(reader, "schema_hash", lambda: b"tomorrow")
    _, damage = read(file)
    assert [each.kind for each in damage] == [DamageKind.FOREIGN]


# ---- many files ----


def fill(directory: Path, limit: int, num_files: int) -> TraceWriter:
    """Write until the run has had `num_files` files, the last one closed."""
    writer = TraceWriter(directory, limit)
    step = 0
    while not (writer.path / f"trace-{num_files - 1:06}.pawl").exists():
        writer.append(Gap(step, "x" * 1000))
        writer.flush()
        step += 1
    writer.close()
    return writer


def test_a_run_of_many_files_is_one_chain(tmp_path: Path) -> None:
    run = fill(tmp_path, 1 << 20, 3).path
    records, damage = read(run)
    assert damage == []
    assert [record.count for record in records if isinstance(record, Gap)] == list(range(len(records)))


@pytest.mark.parametrize(("share", "files"), [(0.22, 1), (0.28, 2)])
def test_a_checkpoint_begins_a_new_file_once_a_quarter_of_one_is_written(
    tmp_path: Path, share: float, files: int
) -> None:
    limit = 1 << 20
    writer = TraceWriter(tmp_path, limit)
    while sum(file.stat().st_size for file in writer.path.iterdir()) < share * file_bytes(limit):
        writer.append(Gap(1, "x" * 500))
        writer.flush()
    started = RECORDS[0]
    assert isinstance(started, Started)
    writer.append(Gap(2, "not written yet"))
    writer.append(Checkpoint(started, None, "nothing", 1.0))
    writer.close()
    *earlier, _ = sorted(writer.path.iterdir())
    assert len(earlier) == files - 1
    for file in earlier:
        file.unlink()
    if earlier:
        assert isinstance(read(writer.path)[0][0], Checkpoint)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_a_writer_that_is_closed_keeps_no_file_open_whatever_became_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fill(tmp_path, 1 << 20, 3)
    writer = TraceWriter(tmp_path, 1 << 20)

    def written() -> bool:
        writer.append(Gap(1, "x"))
        writer.flush()
        return not writer.trouble

    def refuses(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    assert written()
    for file in writer.path.iterdir():
        file.unlink()
    assert not written()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuses)
        assert not written()  # the beginning of the next file
    assert written()
    shutil.rmtree(writer.path)
    assert [written(), written()] == [False, True]
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_could_not_be_flushed_is_told_in_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TraceWriter(tmp_path, 1 << 20)

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "the device is gone")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        while not writer.trouble:
            writer.append(Gap(1, "x" * 500))
            writer.flush()
    assert writer.trouble == "the trace could not be flushed to the device: the device is gone"
    writer.append(Gap(2, "after it"))
    writer.close()
    records, damage = read(writer.path)
    assert damage == []
    assert [record for record in records if isinstance(record, Gap)][-2:] == [
        Gap(0, "the trace could not be flushed to the device: the device is gone"),
        Gap(2, "after it"),
    ]


def test_a_missing_file_in_the_middle_is_corruption(tmp_path: Path) -> None:
    run = fill(tmp_path, 1 << 20, 3).path
    (run / "trace-000001.pawl").unlink()
    (damage,) = read(run)[1]
    assert damage.kind == DamageKind.CORRUPT
    assert "file 1 of the run is missing" in damage.reason


def test_a_file_of_another_run_does_not_fit_the_chain(tmp_path: Path) -> None:
    first, second = fill(tmp_path, 1 << 20, 2).path, fill(tmp_path, 1 << 20, 3).path
    shutil.copy(second / "trace-000002.pawl", first / "trace-000002.pawl")
    (damage,) = read(first)[1]
    assert damage.kind == DamageKind.CORRUPT


def test_a_torn_file_that_is_not_the_last_is_corruption(tmp_path: Path) -> None:
    run = fill(tmp_path, 1 << 20, 2).path
    file = run / "trace-000000.pawl"
    file.write_bytes(file.read_bytes()[:-5])
    (damage,) = read(run)[1]
    assert damage.kind == DamageKind.CORRUPT


def test_the_limit_drops_the_oldest_runs_first_and_then_the_beginning_of_this_one(tmp_path: Path) -> None:
    limit = 1 << 20
    old = fill(tmp_path, limit, 2).path
    new = fill(tmp_path, limit, 20)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.pawl"))
    assert not old.exists()
    assert size <= limit
    records, damage = read(new.path)
    assert [each.kind for each in damage] == [DamageKind.TRUNCATED]
    counts = [record.count for record in records if isinstance(record, Gap)]
    assert counts == list(range(counts[0], counts[0] + len(counts)))
    assert counts[0] > 0


def test_no_more_runs_are_dropped_than_it_takes_to_make_room(tmp_path: Path) -> None:
    limit = 1 << 20
    runs = []
    while len(runs) < 2 or runs[0].exists():
        runs.append(fill(tmp_path, limit, 3).path)
    assert len(runs) > 3
    assert [run.exists() for run in runs] == [False] + [True] * (len(runs) - 1)


def test_a_writer_that_is_closed_again_touches_nothing(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, PLENTY)
    writer.close()
    other = os.open(tmp_path, os.O_RDONLY)  # it has the number of the lock that was let go of
    writer.close()
    os.close(other)


@pytest.mark.parametrize(("beyond", "kept"), [(0, True), (1, False)])
def test_an_old_run_stays_as_long_as_another_file_fits_beside_the_one_begun(
    tmp_path: Path, beyond: int, kept: bool
) -> None:
    limit, old = 1 << 20, tmp_path / "run-000001"
    old.mkdir()
    (old / "trace-000000.pawl").write_bytes(bytes(limit - file_bytes(limit) - FILE_SIZE + beyond))
    writer = TraceWriter(tmp_path, limit)
    writer.append(Gap(0, ""))
    writer.close()
    assert old.exists() == kept


def test_what_the_device_refuses_is_counted_and_told_in_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TraceWriter(tmp_path, PLENTY)
    real = os.pwrite

    def refuse(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) > 20:
            return real(descriptor, data[: len(data) - 20], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.append(Digest(1, 1))
    writer.flush()
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        for step in (2, 3):
            writer.append(Digest(step, step))
            writer.flush()
    assert writer.num_lost == 2
    writer.append(Digest(4, 4))
    writer.close()
    records, damage = read(tmp_path)
    assert damage == []
    gap = Gap(2, "the trace could not be written: No space left on device")
    assert records == [Digest(1, 1), gap, Digest(4, 4)]
    assert (writer.num_lost, writer.num_lost_total, writer.trouble) == (0, 2, "")


@pytest.mark.parametrize("folder", ["run", "directory"])
def test_a_removed_trace_is_told_and_begun_again(tmp_path: Path, folder: str) -> None:
    """The system takes bytes for a file without a name; nobody could ever read them."""
    directory = tmp_path / "traces"
    writer = TraceWriter(directory, PLENTY)
    for step in (1, 2):
        writer.append(Digest(step, step))
        writer.flush()
    shutil.rmtree(writer.path if folder == "run" else directory)
    writer.append(Digest(3, 3))
    writer.flush()
    assert "removed" in writer.trouble
    assert writer.num_lost == 3
    writer.append(Digest(4, 4))
    writer.close()
    assert (writer.trouble, writer.num_lost_total) == ("", 3)
    records, damage = read(directory)
    assert [each.kind for each in damage] == [DamageKind.TRUNCATED]
    assert isinstance(records[0], Gap)
    assert (records[0].count, records[1:]) == (3, [Digest(4, 4)])


def test_a_run_that_is_being_written_is_never_deleted_by_another_writer(tmp_path: Path) -> None:
    limit = 1 << 20
    running = TraceWriter(tmp_path, limit)
    running.append(Digest(1, 1))
    running.flush()
    fill(tmp_path, limit, 20)
    running.append(Digest(2, 2))
    running.close()
    assert read(running.path) == ([Digest(1, 1), Digest(2, 2)], [])
    fill(tmp_path, limit, 20)
    assert not running.path.exists()


def test_writers_of_one_directory_have_runs_of_their_own(tmp_path: Path) -> None:
    writers = [TraceWriter(tmp_path, PLENTY) for _ in range(3)]
    assert len({writer.path for writer in writers}) == 3
    for writer in writers:
        writer.close()


def test_traces_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        writer = fill(tmp_path / "traces", 1 << 20, 2)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in writer.path.iterdir()}
    assert modes == {0o600}
    assert [path.stat().st_mode & 0o777 for path in (writer.path, tmp_path / "traces")] == [0o700, 0o700]


def test_what_is_no_run_among_the_runs_is_left_alone(tmp_path: Path) -> None:
    for name in ("run-foo", "run-1", "run-000009.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "run-000700").write_text("a file")
    file = write(tmp_path, [Digest(2, 2)])
    assert file.parent.name == "run-000001"
    assert read(tmp_path) == ([Digest(2, 2)], [])


# ---- export ----


# ---- traces of other versions ----

VERSION_1 = Path(__file__).parent / "data" / "version-1.pawl"
"""A request and a flush of the ghost, as Pawl wrote them before orders were inputs of the replay."""


def test_a_trace_of_another_version_is_refused_and_both_versions_are_named() -> None:
    reader = TraceReader(VERSION_1)
    assert list(reader) == []
    (damage,) = reader.damage
    assert damage.kind is DamageKind.FOREIGN
    assert "version 1" in damage.reason
    assert f"version {VERSION}" in damage.reason
