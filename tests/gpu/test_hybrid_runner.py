"""A runner with two stores under the scheduler that feeds it, and what it refuses."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.backend import RefusedInputs
from pawl.gpu.batches import InvalidBatch
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.small import random_weights
from pawl.gpu.runner import Runner
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch, StepResult
from pawl.memory.partners import NO_PAGE
from pawl.memory.window_pool import WindowPool
from tests.gpu.driving import int32
from tests.gpu.native_models import HYBRID, ODD
from tests.loops.driver import CELLS, Driver

PAGE = 4
WINDOW = 13
CONTEXT = 96
MODEL = msgspec.structs.replace(HYBRID, tied_embeddings=False, embedding_scale=1.0)
"""Does not merely repeat its last token."""
WIDER = msgspec.structs.replace(MODEL, windows=(WINDOW + PAGE, None, WINDOW, None))


def made(num_window_pages: int | None, config: ModelConfig = MODEL, **options: Any) -> Runner:
    settings: dict[str, Any] = {
        "num_pages": 40,
        "page_size": PAGE,
        "num_slots": 3,
        "max_context": CONTEXT,
        "dtype": torch.float32,
        "threads": 1,
        "backend": "native",
    }
    settings |= options
    return Runner(config, random_weights(config, settings["dtype"]), num_window_pages=num_window_pages, **settings)


class Served:
    """A worker for the driver; before each step it fills window pages that belong to nobody with NaN."""

    def __init__(self, runner: Runner, driver: Driver) -> None:
        self.runner = runner
        self.windows = driver.loop.memory.windows

    def launch(self, batch: StepBatch) -> StepResult:
        if isinstance(self.windows, WindowPool):
            assert self.runner.kv.window_data is not None
            self.runner.kv.window_data[:, :, self.windows.pool.free_pages] = float("nan")
        return self.runner.collect(self.runner.launch(batch))

    def reset(self) -> None:
        self.runner.reset()


def prompts() -> list[list[int]]:
    """Some shorter than the window, some much longer; some begin alike."""
    random = np.random.default_rng(6)
    one, other = (random.integers(0, MODEL.vocab_size, 70).tolist() for _ in range(2))
    return [one[:50], [3], other[:7], one[:50] + other[:9], other, one[:33], other[:64], one[:50] + other[:11]]


def served(
    num_window_pages: int | None,
    pacing: str,
    mixed: bool,
    *,
    num_pages: int = 40,
    config: ModelConfig = MODEL,
    cache: str = "radix",
) -> list[list[int]]:
    """Twelve greedy tokens after each prompt."""
    driver = Driver(
        num_pages=num_pages,
        page_size=PAGE,
        max_context=CONTEXT,
        max_running=3,
        prefill_chunk=10,
        pacing=pacing,
        mixed=mixed,
        cache=cache,
        window=None if num_window_pages is None else WINDOW,
        num_window_pages=num_window_pages,
    )
    runner = made(num_window_pages, config, num_pages=num_pages)
    driver.ghost = Served(runner, driver)  # type: ignore[assignment]
    requests = [driver.submit(prompt, 12) for prompt in prompts()]
    driver.run()
    windows = driver.loop.memory.windows
    assert not isinstance(windows, WindowPool) or windows.start.max() == 0
    return [driver.output_of[request] for request in requests]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return served(None, "lockstep", mixed=False, num_pages=200)


@pytest.mark.parametrize("num_window_pages", [7, 20])
@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_tokens_are_those_of_one_store_when_the_scheduler_moves_window_pages(
    pacing: str, mixed: bool, num_window_pages: int, expected: list[list[int]]
) -> None:
    assert served(num_window_pages, pacing, mixed) == expected


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_window_pages_given_back_too_early_are_noticed(pacing: str, mixed: bool) -> None:
    """The test above can fail: one layer of this model reads a page more than the scheduler keeps."""
    whole = served(None, pacing, mixed, config=WIDER, cache="none")
    assert served(20, pacing, mixed, config=WIDER, cache="none") != whole


# ---- the contract of a batch ----

GREEDY = SamplingParameters(temperature=0.0)


def batch(step: int, start: int, tokens: list[int], entries: dict[int, int], **changes: Any) -> StepBatch:
    """`tokens` of slot 1 from position `start`; `entries`: window page of each page index, its full page is 9 more."""
    fields: dict[str, Any] = {
        "step": step,
        "slots": int32(1),
        "starts": int32(start),
        "lengths": int32(len(tokens)),
        "tokens": int32(*tokens),
        "chained": np.array([False]),
        "samples": np.array([True]),
        "page_slots": int32(*[1] * len(entries)),
        "page_indices": int32(*entries),
        "pages": int32(*(page + 9 for page in entries.values())),
        "window_pages": int32(*entries.values()),
        "admitted": () if start else (SlotAssignment(1, GREEDY, len(tokens), int32(), 0),),
    }
    return StepBatch(**fields | changes)


@pytest.mark.parametrize(
    ("num_window_pages", "changes", "reason"),
    [
        (8, {"window_pages": None}, "go together"),
        (None, {}, "go together"),
        (8, {"window_pages": int32(1)}, "window_pages and pages differ in length"),
        (8, {"window_pages": int32(1, 8)}, "a window page is not below 8"),
        (8, {"window_pages": int32(-2, 1)}, "a window page is not below 8, nor -1 for none"),
    ],
)
def test_a_batch_whose_window_pages_break_the_contract_changes_nothing(
    num_window_pages: int | None, changes: dict[str, Any], reason: str
) -> None:
    runner = made(num_window_pages)
    with pytest.raises(InvalidBatch, match=reason):
        runner.launch(batch(1, 0, [5, 6, 7, 8, 9], {0: 3, 1: 4}, **changes))
    assert not runner.page_table.any()
    assert runner.window_table is None or (runner.window_table == NO_PAGE).all()
    assert not runner.kv.data.any()


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_no_page_is_accepted_and_refused_once_it_is_read(backend: str) -> None:
    runner = made(8, backend=backend)
    tokens = list(range(30))
    runner.collect(runner.launch(batch(1, 0, tokens, {index: index for index in range(8)})))
    # Position 30 reads positions 18 and later: page 4 and those after it.
    behind = batch(2, 30, [1], dict.fromkeys(range(4), NO_PAGE), pages=np.arange(9, 13, dtype=np.int32))
    assert len(runner.collect(runner.launch(behind)).tokens) == 1
    with pytest.raises(RefusedInputs, match="window page that does not exist"):
        runner.launch(batch(3, 31, [1], {4: NO_PAGE}, pages=int32(13)))


def test_reset_forgets_window_pages() -> None:
    runner = made(8)
    runner.collect(runner.launch(batch(1, 0, [5, 6], {0: 3})))
    runner.reset()
    with pytest.raises(RefusedInputs):
        runner.launch(batch(2, 2, [7], {}, admitted=()))


def test_only_a_hybrid_model_gets_a_window_store() -> None:
    for config, num_window_pages in ((ODD, 4), (MODEL, 0)):
        with pytest.raises(ValueError, match="a store for windowed layers needs"):
            Runner(
                config, {}, num_pages=4, page_size=4, num_slots=1, max_context=16, num_window_pages=num_window_pages
            )  # fmt: skip
