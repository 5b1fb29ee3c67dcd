"""Who leaves the tiers below the device, and why: what is wrong with that is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pawl.actors.tiers.files import HEADER, FileStore
from pawl.memory.tiers.host import HostPool
from pawl.testing.models import MemoryDisk
from pawl.testing.stores import TiersAsStated

BYTES = 8
KEYS = tuple(bytes([number]) * 16 for number in range(6))


def store(host: int, files: int = 0) -> TiersAsStated:
    disk = MemoryDisk(lambda place: False)
    below = FileStore(Path(), "layout", BYTES, files * (HEADER.size + BYTES), disk) if files else None
    return TiersAsStated(HostPool(host, BYTES), below, eager=False)


def keep(made: TiersAsStated, *numbers: int) -> None:
    made.keep(tuple(KEYS[number] for number in numbers), np.zeros((len(numbers), BYTES), np.uint8))


def test_who_was_used_the_longest_time_ago_leaves_and_nothing_is_told() -> None:
    made = store(2)
    keep(made, 0, 1)
    made.read(KEYS[:1])
    keep(made, 2)
    assert KEYS[1] not in made
    made.views(KEYS[:1], 4)
    made.fill(KEYS[3:4], lambda keys, places: [True] * len(keys))
    assert KEYS[2] not in made
    made.empty_host()
    keep(made, 4, 5)
    assert made.wrong == []


def test_another_victim_than_the_least_recently_used_is_told() -> None:
    made = store(2)
    keep(made, 0, 1)
    place = made.host._place
    place[KEYS[0]] = place.pop(KEYS[0])
    keep(made, 2)
    assert "left host memory before 0000" in made.wrong[0]


def test_a_page_that_leaves_where_files_have_room_is_told() -> None:
    sound, made = store(1, files=3), store(1, files=3)
    for each in (sound, made):
        keep(each, 0)
    keep(sound, 1, 2)
    assert sound.wrong == []
    made._make_room = lambda: None  # type: ignore[method-assign]
    keep(made, 1)
    assert made.wrong == ["1 pages left, and files have 3 places"]


def test_a_page_that_was_read_from_a_file_and_stays_there_alone_is_told() -> None:
    sound, made = store(1, files=3), store(1, files=3)
    for each in (sound, made):
        keep(each, 0, 1)
    sound.read(KEYS[:2])
    assert sound.wrong == []
    made._host = lambda key, block: None  # type: ignore[method-assign]
    made.read(KEYS[:1])
    assert made.wrong == ["1 pages were read, and are not in host memory"]


def test_pages_leave_where_files_are_full_or_the_disk_refuses() -> None:
    made = store(1, files=1)
    keep(made, 0, 1, 2)
    assert made.wrong == []
    refused = store(1, files=3)
    assert refused.files is not None
    keep(refused, 0)
    refused.files.disk = MemoryDisk(lambda place: True)
    keep(refused, 1)
    assert refused.wrong == []
