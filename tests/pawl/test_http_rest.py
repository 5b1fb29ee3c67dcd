"""A server at rest gives back memory, once for each rest."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from pawl.gpu.heap import give_back_memory
from pawl.http.rest import LOOKS, Rest


def test_rest_begins_once_after_work_and_not_while_any_is_open() -> None:
    rest = Rest()
    assert not any(rest.begins(0, 0) for _ in range(10)), "there was no work"
    assert not any(rest.begins(1, 5) for _ in range(10)), "some is open"
    assert [rest.begins(0, 5) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]
    assert not any(rest.begins(0, 5) for _ in range(10)), "it has begun"
    assert [rest.begins(0, 6) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]


def test_work_in_between_begins_the_wait_anew() -> None:
    rest = Rest()
    looks = [(0, 1), (0, 1), (1, 2), (0, 2), (0, 2), (0, 2)]
    assert [rest.begins(*look) for look in looks] == [False] * 5 + [True]


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
