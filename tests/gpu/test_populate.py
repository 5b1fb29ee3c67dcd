"""Memory of pages is there before a step writes to them: where, how much, and not while it is given back."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pawl.gpu import populate as module
from pawl.gpu.devices import release_pages
from pawl.gpu.populate import Ahead, ahead_of, populate
from pawl.gpu.store import Store
from tests.gpu.test_updates import folder, runner_of

PAGE_BYTES = 1 << 16
HUGE_PAGES = (2 << 20) // PAGE_BYTES
"""Pages in a huge page, which is had as a whole."""


def _can_populate() -> bool:
    try:
        populate(np.zeros(mmap.PAGESIZE, np.uint8))
    except (OSError, AttributeError):
        return False
    return True


pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not _can_populate(), reason="the system cannot be asked for memory"
)


def resident(array: NDArray[np.uint8]) -> float:
    """Share of the pages of the system within `array` that have memory."""
    first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    found = np.zeros(size // mmap.PAGESIZE, np.uint8)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    assert mincore(ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)) == 0
    return float((found & 1).mean())


def fresh(*shape: int) -> NDArray[np.uint8]:
    """Zeros that have no memory yet: what the allocator gives may be what somebody had before."""
    private = mmap.mmap(-1, int(np.prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(private, np.uint8).reshape(shape)


def work(ahead: Ahead, page: int) -> None:
    """To the end of what is begun."""
    ahead.reached(page)
    assert ahead.thread is not None
    ahead.thread.join()


def test_a_bounded_number_of_pages_ahead_has_memory_and_bytes_stay() -> None:
    rows = fresh(3, 256, PAGE_BYTES)
    rows[1, 20] = 7
    ahead = Ahead(rows, 3 * 32 * PAGE_BYTES)
    work(ahead, 0)
    assert [resident(row[:33]) for row in rows] == [1.0, 1.0, 1.0]
    assert [resident(row[33 + HUGE_PAGES : -HUGE_PAGES]) for row in rows] == [0.0, 0.0, 0.0]
    first = ahead.thread
    ahead.reached(16)
    assert ahead.thread is first, "half of it is left"
    work(ahead, 100)
    assert [resident(row[:133]) for row in rows] == [1.0, 1.0, 1.0]
    assert [resident(row[133 + HUGE_PAGES : -HUGE_PAGES]) for row in rows] == [0.0, 0.0, 0.0]
    work(ahead, 255)
    assert resident(rows) == 1.0
    assert rows[1, 20].min() == 7
    assert not rows[0].any()


def test_what_is_given_back_has_no_memory_until_it_is_had_again() -> None:
    rows = fresh(2, 128, PAGE_BYTES)
    ahead = Ahead(rows, rows.nbytes)
    work(ahead, 0)
    ahead.close()
    release_pages(rows)
    work(ahead, 100)
    assert resident(rows) == 0.0
    ahead.open()
    work(ahead, 0)
    assert resident(rows) == 1.0


def test_a_system_that_cannot_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(array: NDArray[np.uint8]) -> None:
        asked.append(array.nbytes)
        raise OSError

    monkeypatch.setattr(module, "populate", refuse)
    ahead = Ahead(np.zeros((2, 128, 4096), np.uint8), 4096)
    work(ahead, 0)
    ahead.reached(100)
    assert len(asked) == 1


def test_a_small_store_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros((2, 16, 4096), np.uint8)
    assert ahead_of(rows) is None
    monkeypatch.setattr(module, "LEAST_BYTES", rows.nbytes)
    assert ahead_of(rows) is not None


def test_a_runner_has_memory_ahead_until_its_pages_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[tuple[Store, int]] = []
    plain = Store.reached
    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    monkeypatch.setattr(Store, "reached", lambda self, page: (reached.append((self, page)), plain(self, page)))
    runner = runner_of(folder(tmp_path / "one", 1), "torch")
    store = runner.kv.full
    ahead = store._ahead
    assert reached == [(store, 0)]
    assert ahead is not None
    assert ahead.thread is not None
    ahead.thread.join()
    assert resident(store.memory) == 1.0
    runner.kv.release()
    runner.kv.reached(np.array([1, 0], np.int32))
    assert reached[1:] == [(store, 1)]
    ahead.thread.join()
    assert resident(store.memory) == 0.0
    runner.kv.resume()
    runner.kv.reached(np.array([0], np.int32))
    ahead.thread.join()
    assert resident(store.memory) == 1.0
