"""Files are trusted only after they were checked, and a disk that fails costs misses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pawl.actors.tiers.files import HEADER, MAX_WRITE_ERRORS, FileStore, StorageUnusable
from pawl.actors.tiers.store import TierStore
from pawl.memory.tiers.host import HostPool
from pawl.memory.tiers.keys import KEY_BYTES
from tests.actors.tier_disk import MemoryDisk

PAGE_BYTES = 64
FILE_BYTES = HEADER.size + PAGE_BYTES


def key(number: int) -> bytes:
    return bytes([number]) * KEY_BYTES


def block(number: int) -> np.ndarray:
    return np.arange(number, number + PAGE_BYTES, dtype=np.uint8)


def blocks(*numbers: int) -> np.ndarray:
    return np.stack([block(number) for number in numbers])


def store(folder: Path, pages: int = 10, layout: str = "bf16", disk: MemoryDisk | None = None) -> FileStore:
    return FileStore(folder, layout, PAGE_BYTES, pages * FILE_BYTES, disk)


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.page")
    return path


# ---- files ----


def test_a_restart_finds_what_was_written_and_reads_it_back(tmp_path: Path) -> None:
    before = store(tmp_path)
    before.acquire()
    for number in range(3):
        assert before.put(key(number), block(number)) == []
    before.close()
    after = store(tmp_path)
    after.acquire()
    assert sorted(after.scan()) == [key(number) for number in range(3)]
    for number in range(3):
        found = after.get(key(number))
        assert found is not None
        assert found.tolist() == block(number).tolist()
    assert after.get(key(9)) is None


@pytest.mark.parametrize(
    ("damage", "corrupt"),
    [
        (lambda content: content[: len(content) // 2], 1),
        (lambda content: b"", 1),
        (lambda content: content + b"x", 1),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), 1),
        (lambda content: b"NOTPAWL!" + content[8:], 1),
        (lambda content: content[:8] + b"\xff" + content[9:], 1),
        (lambda content: content[: HEADER.size - 40] + b"\xff" * 8 + content[HEADER.size - 32 :], 1),
        (lambda content: os.urandom(len(content)), 1),
        (lambda content: content, 0),
    ],
    ids=["cut", "empty", "longer", "bit", "magic", "version", "key", "noise", "untouched"],
)
def test_a_file_that_is_not_what_it_should_be_costs_a_miss_and_is_deleted(
    tmp_path: Path, damage: object, corrupt: int
) -> None:
    before = store(tmp_path)
    before.put(key(1), block(1))
    path = only_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    after = store(tmp_path)
    assert after.scan() == [key(1)]
    assert (after.get(key(1)) is None) == bool(corrupt)
    assert after.corrupt == corrupt
    assert path.exists() != bool(corrupt)
    assert (key(1) in after) != bool(corrupt)


def test_swapped_files_are_two_misses(tmp_path: Path) -> None:
    files = store(tmp_path)
    files.put(key(1), block(1))
    files.put(key(2), block(2))
    one, other = sorted(tmp_path.rglob("*.page"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert files.get(key(1)) is None
    assert files.get(key(2)) is None
    assert files.corrupt == 2


def test_a_page_of_another_layout_is_not_even_seen_and_not_trusted_when_put_in_its_place(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path, layout="fp32")
    one.put(key(1), block(1))
    assert other.scan() == []
    other.put(key(1), block(2))
    one._path(key(1)).write_bytes(other._path(key(1)).read_bytes())
    assert one.get(key(1)) is None
    assert one.corrupt == 1


def test_a_kill_while_writing_leaves_no_page_and_no_rubbish(tmp_path: Path) -> None:
    disk = MemoryDisk()
    disk.fault = lambda operation: "error" if operation in ("move", "remove") else None
    killed = store(tmp_path, disk=disk)
    killed.put(key(1), block(1))
    assert len(disk.files) == 1
    disk.fault = lambda operation: None
    after = store(tmp_path, disk=disk)
    assert after.scan() == []
    assert disk.files == {}


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    files = store(tmp_path)
    files.put(key(1), block(1))
    folder = only_file(tmp_path).parent
    foreign = [folder / "notes.txt", folder / "abc.page", folder / f"{'G' * 32}.page"]
    for path in foreign:
        path.write_text("mine")
    assert store(tmp_path).scan() == [key(1)]
    assert all(path.exists() for path in foreign)


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=30))
def test_the_disk_never_holds_more_than_its_limit_and_keeps_what_was_used_last(
    pages: int, uses: list[tuple[bool, int]]
) -> None:
    disk = MemoryDisk()
    files = store(Path("/nowhere"), pages, disk=disk)
    used: dict[int, None] = {}
    for writing, number in uses:
        if writing:
            displaced = files.put(key(number), block(number))
            gone = next(iter(used)) if number not in used and len(used) == pages else None
            assert displaced == ([] if gone is None else [key(gone)])
            if gone is not None:
                del used[gone]
        else:
            assert (files.get(key(number)) is not None) == (number in used)
        if writing or number in used:
            used.pop(number, None)
            used[number] = None
        assert {path.stem for path in disk.files} == {key(number).hex() for number in used}


def test_a_limit_below_what_is_there_drops_the_rest_at_the_start(tmp_path: Path) -> None:
    files = store(tmp_path)
    for number in range(5):
        files.put(key(number), block(number))
    assert len(store(tmp_path, pages=2).scan()) == 2
    assert len(list(tmp_path.rglob("*.page"))) == 2


def test_one_folder_serves_one_server_at_a_time(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    first.acquire()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageUnusable, match="another server") as caught:
        second.acquire()
    assert set(os.listdir("/proc/self/fd")) == before, caught.value
    first.close()
    second.acquire()
    second.close()


def test_a_folder_that_cannot_be_made_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnusable, match="cannot be used"):
        store(tmp_path / "file").acquire()


def test_a_limit_that_holds_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageUnusable, match="do not hold one page"):
        FileStore(tmp_path, "bf16", PAGE_BYTES, PAGE_BYTES)


def test_a_disk_that_fails_again_and_again_is_only_read_from_then_on() -> None:
    disk = MemoryDisk()
    files = store(Path("/nowhere"), pages=50, disk=disk)
    files.put(key(200), block(1))
    disk.fault = lambda operation: "error" if operation == "write" else None
    for number in range(MAX_WRITE_ERRORS - 1):
        files.put(key(number), block(number))
    tiers = [TierStore(HostPool(1, PAGE_BYTES), each, eager=True) for each in (files, None)]
    assert [tier.counts()["storage_writable"] for tier in tiers] == [1, 0]
    disk.fault = lambda operation: None
    files.put(key(201), block(1))
    disk.fault = lambda operation: "error" if operation == "write" else None
    for number in range(MAX_WRITE_ERRORS):
        files.put(key(number), block(number))
    assert [tier.counts()["storage_writable"] for tier in tiers] == [0, 0]
    assert files.errors == 2 * MAX_WRITE_ERRORS - 1
    disk.fault = lambda operation: None
    files.put(key(3), block(3))
    assert key(3) not in files
    assert files.get(key(200)) is not None


@pytest.mark.parametrize("folder", [0, 1])
def test_a_folder_that_cannot_be_listed_costs_its_own_pages_alone(folder: int) -> None:
    disk = MemoryDisk()
    written = store(Path("/nowhere"), disk=disk)
    keys = [bytes([first]) * KEY_BYTES for first in (folder, 2)]
    for each in keys:
        written.put(each, block(0))
    listed = iter(range(256))
    disk.fault = lambda operation: "error" if operation == "names" and next(listed) == folder else None
    again = store(Path("/nowhere"), disk=disk)
    with capture_logs() as lines:
        assert again.scan() == keys[1:]
    assert again.errors == 1
    assert [(line["what"], line["path"]) for line in lines] == [("list", str(again.folder / f"0{folder}"))]


def test_a_file_that_cannot_be_removed_is_an_error_that_is_counted_and_stops_nobody() -> None:
    disk = MemoryDisk()
    files = store(Path("/nowhere"), pages=1, disk=disk)
    files.put(key(1), block(1))
    disk.fault = lambda operation: "error" if operation == "remove" else None
    with capture_logs() as lines:
        assert files.put(key(2), block(2)) == [key(1)]
    assert ([line["what"] for line in lines], files.errors) == (["remove"], 1)
    assert (key(1) in files, key(2) in files) == (False, True)


def test_a_broken_disk_has_a_line_for_its_first_failure_and_few_for_many() -> None:
    disk = MemoryDisk()
    files = store(Path("/nowhere"), pages=50, disk=disk)
    disk.fault = lambda operation: "error" if operation == "write" else None
    told = []
    for number in range(MAX_WRITE_ERRORS):
        with capture_logs() as lines:
            files.put(key(number), block(number))
        told.append(len([line for line in lines if line["log_level"] == "warning"]))
    assert told[0] == 1
    assert sum(told) <= MAX_WRITE_ERRORS.bit_length() + 1


@pytest.mark.parametrize("fault", ["error", "gone"])
def test_a_page_that_cannot_be_read_is_a_miss_once(fault: str) -> None:
    disk = MemoryDisk()
    files = store(Path("/nowhere"), disk=disk)
    files.put(key(1), block(1))
    disk.fault = lambda operation: fault if operation == "read" else None
    assert files.get(key(1)) is None
    disk.fault = lambda operation: None
    assert key(1) not in files


# ---- host memory above files ----


def tiers(folder: Path, host: int, pages: int = 10, *, eager: bool = True) -> TierStore:
    return TierStore(HostPool(host, PAGE_BYTES), store(folder, pages, disk=MemoryDisk()), eager=eager)


def test_pages_that_host_memory_has_no_room_for_are_read_from_files(tmp_path: Path) -> None:
    for eager in (True, False):
        both = tiers(tmp_path, host=2, eager=eager)
        names = tuple(key(number) for number in range(5))
        assert both.keep(names, blocks(*range(5))) == names
        assert both.read(names).tolist() == blocks(*range(5)).tolist()
        assert both.take_dropped() == ()
        assert both.file_hits > 0


def test_write_back_writes_no_file_before_host_memory_is_full_and_the_rest_at_the_end(tmp_path: Path) -> None:
    both = tiers(tmp_path, host=3, eager=False)
    both.keep((key(0), key(1), key(2)), blocks(0, 1, 2))
    assert both.files is not None
    assert len(both.files) == 0
    both.keep((key(3),), blocks(3))
    assert list(both.files._known) == [key(0)]
    budget = iter([True, True, False])
    both.close(lambda: next(budget))
    assert set(both.files._known) == {key(0), key(3), key(2)}


def test_a_read_ends_at_the_first_page_that_cannot_be_had(tmp_path: Path) -> None:
    both = tiers(tmp_path, host=10)
    both.keep((key(0), key(2)), blocks(0, 2))
    assert both.read([key(0), key(1), key(2)]).tolist() == blocks(0).tolist()
    assert both.take_dropped() == (key(1),)
    assert (both.host_hits, both.misses) == (1, 1)


def test_dropped_are_those_that_no_tier_has_any_more(tmp_path: Path) -> None:
    both = tiers(tmp_path, host=1, pages=2, eager=False)
    both.keep(tuple(key(number) for number in range(5)), blocks(*range(5)))
    assert set(both.take_dropped()) == {key(0), key(1)}
    assert both.take_dropped() == ()


def test_an_emptied_host_keeps_the_files(tmp_path: Path) -> None:
    both = tiers(tmp_path, host=4, pages=1)
    both.keep((key(0), key(1)), blocks(0, 1))
    both.empty_host()
    assert both.take_dropped() == (key(0),)
    assert key(1) in both


def test_what_is_kept_is_what_is_there_when_all_of_it_has_come(tmp_path: Path) -> None:
    host = TierStore(HostPool(2, PAGE_BYTES), None, eager=True)
    names = tuple(key(number) for number in range(4))
    assert host.keep(names, blocks(*range(4))) == names[2:]
    assert (host.kept, host.take_dropped()) == (2, names[:2])


def test_reading_more_than_host_memory_holds_gives_every_page_its_own_bytes(tmp_path: Path) -> None:
    both = tiers(tmp_path, host=1)
    names = [key(number) for number in range(4)]
    both.keep(names, blocks(*range(4)))
    for _ in range(2):
        assert both.read(names).tolist() == blocks(*range(4)).tolist()


def test_a_store_without_any_tier_is_refused() -> None:
    with pytest.raises(ValueError, match="host memory, files, or both"):
        TierStore(HostPool(0, PAGE_BYTES), None, eager=True)


def test_a_file_that_was_read_stays_longer_than_one_that_was_not() -> None:
    files = store(Path("/nowhere"), 2, disk=MemoryDisk())
    for number in (0, 1):
        files.put(key(number), block(number))
    assert files.get(key(0)) is not None
    assert files.put(key(2), block(2)) == [key(1)]


def test_what_made_room_for_a_page_that_could_not_be_written_is_told_as_gone() -> None:
    disk = MemoryDisk()
    files = store(Path("/nowhere"), 1, disk=disk)
    files.put(key(0), block(0))
    disk.fault = lambda operation: "error" if operation == "write" else None
    assert files.put(key(1), block(1)) == [key(0)]
    assert len(files) == 0


def test_what_left_and_came_back_is_not_told_as_gone() -> None:
    host = TierStore(HostPool(1, PAGE_BYTES), None, eager=True)
    host.keep((key(0),), blocks(0))
    assert host.keep((key(1), key(0)), blocks(1, 0)) == (key(0),)
    assert host.take_dropped() == (key(1),)
