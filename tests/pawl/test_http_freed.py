"""A server gives back memory when it has grown: soon at rest, seldom while it is busy."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from pawl.gpu.heap import give_back_memory
from pawl.http.freed import BUSY_LOOKS, BUSY_WORTH, LOOKS, WORTH, Freed

MB = 1 << 20
SMALL, LARGE = 80 * MB, 400 * MB


def looks(freed: Freed, num_open: int, resident: int | None, count: int) -> list[bool]:
    return [freed.is_due(num_open, resident) for _ in range(count)]


def test_what_has_grown_is_given_back_once_at_rest_and_not_while_a_request_is_open() -> None:
    freed = Freed()
    assert not any(looks(freed, 0, SMALL, 2 * BUSY_LOOKS)), "it has not grown"
    assert not any(looks(freed, 1, LARGE, 1)), "a request is open"
    assert looks(freed, 0, LARGE, LOOKS) == [False] * (LOOKS - 1) + [True]
    assert not any(looks(freed, 0, LARGE, 2 * BUSY_LOOKS)), "what is left is in use"
    assert any(looks(freed, 0, LARGE + WORTH, LOOKS))


def test_work_that_opens_no_request_counts_too() -> None:
    freed = Freed()
    looks(freed, 0, SMALL, 1)
    assert any(looks(freed, 0, LARGE, LOOKS))


def test_who_is_never_at_rest_gives_back_now_and_then() -> None:
    freed = Freed()
    looks(freed, 4, SMALL, 1)
    assert [index for index, due in enumerate(looks(freed, 4, LARGE, 3 * BUSY_LOOKS), 2) if due] == [BUSY_LOOKS]
    assert not any(looks(freed, 4, LARGE + WORTH, 2 * BUSY_LOOKS)), "too little for those who would wait"
    assert any(looks(freed, 4, LARGE + BUSY_WORTH, BUSY_LOOKS))


def test_growth_counts_from_the_least_that_was_seen() -> None:
    freed = Freed()
    looks(freed, 0, LARGE, 1)
    looks(freed, 0, SMALL, 1)
    assert any(looks(freed, 0, SMALL + WORTH, LOOKS))


def test_where_nobody_knows_nothing_is_due() -> None:
    assert not any(looks(Freed(), 0, None, 2 * BUSY_LOOKS))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone keeps what is freed")
def test_memory_between_what_is_kept_goes_back() -> None:
    blocks = [bytes(3000) for _ in range(60_000)]
    kept = blocks[:: len(blocks) // 100]
    full = resident_mb()
    del blocks
    give_back_memory()
    assert resident_mb() < full - 100
    assert len(kept) >= 100
