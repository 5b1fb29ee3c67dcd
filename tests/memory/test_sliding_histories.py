"""Random histories of a memory with two pools agree with what windows mean; and each planted defect is noticed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from pawl.memory.arrays import Int32s
from pawl.memory.partners import NO_PAGE
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.violation import MemoryViolation
from pawl.memory.window_pool import WindowPool
from tests.memory.sliding_history import SlidingHistory
from tests.memory.test_memory_histories import MAX_PAGES_OF_A_REQUEST, PHASES, random_moves


def play(seed: int, page_size: int, turns: int) -> SlidingHistory:
    """A long busy history."""
    chance = Random(seed)
    history = SlidingHistory()
    history.page_size = page_size
    history.start(
        num_pages=chance.randint(12, 24),
        num_slots=chance.randint(2, 5),
        num_window_pages=chance.randint(MAX_PAGES_OF_A_REQUEST, 14),
        window=chance.randint(2, 4 * page_size),
    )
    for _ in range(turns):
        history.turn(random_moves(chance), launched=chance.random() < 0.85)
        history.settle(commits=chance.choice([0, 1, 1, 2]), share=chance.random() < 0.8, aborts=chance.random() < 0.1)
        history.leave([("release", chance.randint(0, 9))] * chance.choice([0, 0, 1]))
        if chance.random() < 0.2:
            history.crowd(chance.randint(1, 8))
    return history


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_two_pools_agree_with_the_meaning_of_windows_through_a_long_busy_history(page_size: int, seed: int) -> None:
    history = play(seed, page_size, 120)
    assert history.cache.statistics()["hit_tokens"] > 0
    history.teardown()


@pytest.mark.parametrize("page_size", [1, 4])
def test_two_pools_agree_with_the_meaning_of_windows_after_every_move_of_a_random_history(page_size: int) -> None:
    history = type("SlidingHistory", (SlidingHistory,), {"page_size": page_size})
    run_state_machine_as_test(
        history, settings=settings(max_examples=30, stateful_step_count=20, deadline=None, phases=PHASES)
    )


def early(windows: WindowPool, lengths: Int32s) -> Int32s:
    """The window of the page after."""
    return np.asarray(np.maximum(lengths // windows.page_size - windows.behind + 1, 0), np.int32)


def forget_to_revive(windows: WindowPool, slot: int, indices: Int32s, ours: Int32s, theirs: Int32s, fence: int) -> None:
    """Window pages of the row are given back although the cache has none."""
    read = indices >= windows.start[slot]
    alive = windows.partners.of[theirs[read]] != NO_PAGE
    windows._share(windows.partners.of[theirs[read][alive]])
    windows._let_go(ours[read], fence)


def no_fence(windows: WindowPool, slot: int, pages: Int32s, fence: int) -> None:
    """What a row that ends leaves behind is free at once."""
    windows._let_go(pages[windows.start[slot] :], windows.ledger.resolved)
    windows._forget(slot)


DEFECTS: dict[str, tuple[object, str, Callable[..., object]]] = {
    "a window page is freed one page too early": (WindowPool, "first_read", early),
    "a tombstone is not brought back to life": (WindowPool, "move", forget_to_revive),
    "a match goes through a tombstone": (SlidingCache, "_usable", lambda cache, node, num_pages: num_pages),
    "a page is reused while a step in flight reads it": (WindowPool, "leave", no_fence),
    "an aborted step keeps its window pages": (WindowPool, "_untake", lambda *_: None),
    "full pages leave without their partners": (WindowPool, "dropped", lambda *_: None),
    "the cache does not refer to the window pages it adopts": (WindowPool, "adopt", lambda *_: None),
    "windows never move on": (WindowPool, "slide", lambda *_: None),
}


def play_many() -> None:
    for seed in range(8):
        play(seed, 4, 120).teardown()


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_noticed(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken = DEFECTS[defect]
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, MemoryViolation)):
        play_many()
