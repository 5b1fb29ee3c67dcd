"""The loop with two pools: every request gets the tokens of one pool, every window read is checked, everybody ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawl.gpu.ghost.memory import GhostFault
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.states import Cause
from pawl.loops.pacing import PACINGS
from pawl.loops.select import LoopConfig, make_windows
from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.violation import MemoryViolation
from pawl.memory.window_pool import WindowPool
from tests.loops.driver import CELLS, STAGES, Driver
from tests.loops.test_admission_escrow import Workload, run, workloads
from tests.loops.test_loop import disturb


@dataclass(frozen=True)
class HybridWorkload(Workload):
    """A workload for a model whose windowed layers have a pool of their own."""

    window: int
    spare: int
    """Window pages beyond what one request needs."""

    def driver(self, pacing: str, mixed: bool) -> Driver:
        behind = -(-(self.window - 1) // self.page_size)
        need = min(behind + 1 + -(-self.prefill_chunk // self.page_size), self.num_pages)
        return Driver(
            window=self.window,
            num_window_pages=need + self.spare,
            num_pages=self.num_pages,
            page_size=self.page_size,
            max_context=self.num_pages * self.page_size,
            prefill_chunk=self.prefill_chunk,
            lookahead=self.lookahead,
            max_running=self.max_running,
            cache=self.cache,
            pacing=pacing,
            mixed=mixed,
        )


@st.composite
def hybrid_workloads(draw: st.DrawFn) -> HybridWorkload:
    one = draw(workloads())
    fields = {name: getattr(one, name) for name in Workload.__dataclass_fields__}
    return HybridWorkload(**fields, window=draw(st.integers(1, 3 * one.page_size + 1)), spare=draw(st.integers(0, 3)))


@given(st.sampled_from(CELLS), hybrid_workloads())
def test_every_request_that_fits_ends_within_the_stated_number_of_steps(
    cell: tuple[str, bool], workload: HybridWorkload
) -> None:
    run(workload, *cell)


def serve(driver: Driver, prompts: list[list[int]], outputs: int) -> None:
    """All of them at once, to the end; every one gets its tokens."""
    requests = {driver.submit(prompt, outputs): prompt for prompt in prompts}
    driver.run()
    for request, prompt in requests.items():
        assert driver.output_of[request] == expected(prompt, outputs)
        assert driver.cause(request) == Cause.LENGTH


def windows_of(driver: Driver) -> WindowPool:
    assert isinstance(driver.loop.memory.windows, WindowPool)
    return driver.loop.memory.windows


def random_prompts(count: int, length: int, shared: int, seed: int) -> list[list[int]]:
    source = random.Random(seed)
    prefix = [source.randrange(50) for _ in range(shared)]
    return [prefix + [source.randrange(50) for _ in range(length - shared)] for _ in range(count)]


@pytest.mark.parametrize("cache", ["radix", "none"])
@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_pools_too_small_for_the_work_retract_and_leave_tombstones_and_still_answer_everyone(
    pacing: str, mixed: bool, cache: str
) -> None:
    driver = Driver(
        window=9, num_window_pages=9, num_pages=60, max_context=96, lookahead=0, pacing=pacing, mixed=mixed, cache=cache
    )
    serve(driver, random_prompts(8, 3, 0, 0) + random_prompts(2, 45, 12, 0), 30)
    assert driver.loop.counters.retractions > 0
    assert driver.ghost.memory.num_window_reads > 500
    if cache == "radix":
        statistics = driver.loop.memory.cache.statistics()
        assert statistics["tombstones"] > 0
        assert statistics["hit_tokens"] > 0


@pytest.mark.parametrize("pacing", PACINGS)
@pytest.mark.parametrize("cache", ["radix", "none"])
def test_a_long_prompt_takes_window_pages_for_its_window_and_the_steps_in_flight(pacing: str, cache: str) -> None:
    driver = Driver(
        window=16, num_window_pages=200, num_pages=200, max_context=800, max_running=2, pacing=pacing, cache=cache
    )
    windows, most = windows_of(driver), 0
    for prompt in random_prompts(2, 700, 0, 5):
        driver.submit(prompt, 40)
    while driver.step():
        table, memory = driver.loop.table, driver.loop.memory
        rows = driver.loop.queues.running()
        slots = table.slot[rows]
        most = max([most, *(memory.page_table.num_pages[slots] - windows.start[slots]).tolist()])
    # One more chunk may be in flight under overlap when there is room.
    assert most <= windows.most + PACINGS[pacing](STAGES).depth * 16 // 4
    assert set(driver.ending_of.values())


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_a_prompt_of_any_length_fits_a_window_pool_for_one_window_and_one_chunk(pacing: str, mixed: bool) -> None:
    driver = Driver(
        window=16, num_window_pages=9, num_pages=400, max_context=800, max_running=3, pacing=pacing, mixed=mixed
    )
    assert windows_of(driver).most == 9
    serve(driver, random_prompts(3, 300, 0, 7), 60)


def test_a_conversation_goes_on_where_its_last_answer_ended() -> None:
    driver = Driver(window=10, num_window_pages=20, num_pages=100, max_context=400)
    talk = random_prompts(1, 50, 0, 3)[0]
    for _ in range(4):
        request = driver.submit(talk, 33)
        driver.run()
        answer = driver.output_of[request]
        assert answer == expected(talk, 33)
        before = len(talk) + len(answer) - 1
        talk = talk + answer + [7, 8, 9]
        follow = driver.submit(talk, 0)
        driver.run()
        assert driver.ending_of[follow].info.num_cached >= before // 4 * 4
    assert driver.loop.memory.cache.statistics()["tombstones"] > 0


def test_what_was_computed_again_brings_a_tombstone_back_to_life() -> None:
    driver = Driver(window=9, num_window_pages=8, num_pages=100, max_context=100, max_running=1)
    first, second = random_prompts(2, 24, 0, 11)
    for prompt, cached in ((first, 0), (second, 0), (first, 0), (first, 20)):
        request = driver.submit(prompt, 1)
        driver.run()
        assert driver.output_of[request] == expected(prompt, 1)
        assert driver.ending_of[request].info.num_cached == cached
    assert driver.loop.memory.pages.cached == 12, "the second time, the same full pages were used"


@settings(max_examples=settings().max_examples // 4)
@given(
    cell=st.sampled_from(CELLS),
    cache=st.sampled_from(["radix", "none"]),
    window=st.integers(1, 20),
    spare=st.integers(0, 6),
    num_pages=st.integers(9, 40),
    page_size=st.sampled_from([1, 4, 8]),
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=10),
    actions=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9), st.sampled_from(["abort", "fail", "finish"]))),
)
def test_aborts_failures_and_pressure_on_both_pools_never_change_a_surviving_request(
    cell: tuple[str, bool],
    cache: str,
    window: int,
    spare: int,
    num_pages: int,
    page_size: int,
    shapes: list[tuple[int, int, int]],
    actions: list[tuple[int, int, str]],
) -> None:
    sizes = Workload(num_pages, page_size, 8, 4, 4, cache, ())
    driver = HybridWorkload(**vars(sizes), window=window, spare=spare).driver(*cell)
    disturb(driver, shapes, actions)
    for pages in (driver.loop.memory.pages, windows_of(driver).pool):
        assert pages.free + pages.cached == pages.total
    assert driver.loop.memory.cache.held == 0
    assert windows_of(driver).unpromised == windows_of(driver).pool.total


DEFECTS: dict[str, tuple[object, str, Callable[..., object]]] = {
    "a window page is freed one page too early": (
        WindowPool,
        "first_read",
        lambda windows, lengths: np.asarray(np.maximum(lengths // 4 - windows.behind + 1, 0), np.int32),
    ),
    "a match goes through a tombstone": (SlidingCache, "_usable", lambda cache, node, num_pages: num_pages),
    "the worker hears of another window page": (Memory, "window_pages", lambda memory, pages: other(memory, pages)),
}


def other(memory: Memory, pages: Int32s) -> Int32s:
    """The partner of the page before."""
    assert isinstance(memory.windows, WindowPool)
    return memory.windows.partners.of[pages - 1]


def small_pools() -> None:
    for pacing, mixed in CELLS:
        driver = Driver(
            window=9, num_window_pages=9, num_pages=60, max_context=96, lookahead=8, pacing=pacing, mixed=mixed
        )
        serve(driver, random_prompts(8, 11, 8, 0) + random_prompts(2, 45, 12, 0), 30)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_noticed(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[defect])
    with pytest.raises((AssertionError, GhostFault, MemoryViolation)):
        small_pools()


def test_admission_without_promises_of_window_pages_retracts(monkeypatch: pytest.MonkeyPatch) -> None:
    def retractions() -> int:
        driver = Driver(window=9, num_window_pages=9, num_pages=200, max_context=96, lookahead=8)
        serve(driver, random_prompts(8, 3, 0, 0) + random_prompts(2, 45, 12, 0), 30)
        return driver.loop.counters.retractions

    assert retractions() == 0
    monkeypatch.setattr(WindowPool, "promise", lambda *_: True)
    assert retractions() > 0


def test_a_pool_that_cannot_hold_one_window_and_one_chunk_is_refused() -> None:
    def config(num_window_pages: int | None, window: int | None) -> LoopConfig:
        return LoopConfig(
            num_pages=64,
            page_size=4,
            max_context=128,
            prefill_chunk=16,
            window=window,
            num_window_pages=num_window_pages,
        )

    assert make_windows(config(None, None)) is None
    assert make_windows(config(9, 16)) is not None
    with pytest.raises(ValueError, match="8 window pages cannot hold one request"):
        make_windows(config(8, 16))
    with pytest.raises(ValueError, match="a window needs pages"):
        make_windows(config(None, 16))
    with pytest.raises(ValueError, match="a window needs pages"):
        make_windows(config(9, None))
