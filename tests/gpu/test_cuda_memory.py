"""How many pages a device has room for is measured, with the largest step there can be and with graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pawl.build import sizing
from pawl.build.parts import check_settings
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.cuda.memory import ModelDoesNotFit, WeightsDoNotFit
from pawl.gpu.cuda.sizing import largest_step, measure
from pawl.gpu.kv import MemoryPlan, plan_tokens
from pawl.gpu.models.small import random_weights
from pawl.gpu.runner import Runner
from pawl.loops.select import LoopConfig
from tests.gpu.kernel_tools import DEVICE
from tests.gpu.native_models import HYBRID, ODD
from tests.gpu.test_cuda_decoder import AgainRecorder
from tests.gpu.test_runner import GREEDY, Steps

GIB = 1 << 30
MIB = 1 << 20
LOOP = LoopConfig(num_pages=1, page_size=4, max_context=40, max_running=4, max_queued=4, prefill_chunk=8)


def made(config: Any = ODD, **options: Any) -> Runner:
    settings = {
        "num_pages": 1,
        "num_window_pages": None if config is ODD else 1,
        "page_size": 4,
        "num_slots": 4,
        "max_context": 40,
        "dtype": torch.float32,
        "threads": 1,
        "backend": "torch",
    }
    return Runner(config, random_weights(config, torch.float32), **(settings | options))


class FakeMemory:
    """A device, 4 tenths of it taken. The largest step takes 8 MiB, the first graph 300 MiB, each later one 20."""

    def __init__(self, total: int, recorder: AgainRecorder) -> None:
        self._total = total
        self.recorder = recorder
        self.steps = 0

    def total(self) -> int:
        return self._total

    def settle(self) -> int:
        graphs = self.recorder.recorded
        return self._total * 6 // 10 - (300 * MIB + 20 * MIB * (graphs - 1) if graphs else 0)

    def peak(self, work: Callable[[], None]) -> int:
        work()
        self.steps += 1
        return 8 * MIB


@pytest.mark.parametrize(("slots", "context", "chunk"), [(4, 40, 24), (4, 40, 64), (1, 40, 64), (3, 8, 512), (2, 5, 1)])
def test_the_largest_step_is_one_that_can_be_run_in_a_single_page(slots: int, context: int, chunk: int) -> None:
    for config in (ODD, HYBRID):
        runner = made(config, num_slots=slots, max_context=context)
        batch = largest_step(runner, chunk)
        result = runner.collect(runner.launch(batch))
        assert len(result.tokens) == slots, "every slot draws"
        assert result.logprobs is not None
        assert int((batch.starts + batch.lengths).max()) == context, "some row sees as much as there can be"
        assert int(batch.lengths.sum()) >= min(chunk, slots * context)


def test_what_is_measured_is_the_largest_step_and_every_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, recorder = made(backend="triton", max_context=16, device=DEVICE), AgainRecorder()
    prepare = runner.prepare_graphs
    num_shapes = len(prepare(recorder))
    runner.free_graphs()
    monkeypatch.setattr(runner, "prepare_graphs", lambda: prepare(recorder))
    memory = FakeMemory(10 * GIB, recorder)
    use = measure(runner, memory, chunk=8)
    assert (use.total, use.step, memory.steps) == (10 * GIB, 8 * MIB, 1)
    assert recorder.recorded == 2 < num_shapes
    assert use.graphs == 300 * MIB + 20 * MIB * (num_shapes - 1)
    # It forgot everything, graphs too: pages may move.
    runner.resize(7, None)
    assert runner.kv.num_pages == 7
    assert not runner.page_table.any()


def test_a_runner_without_graphs_has_none_to_measure() -> None:
    runner = made()
    assert runner.prepare_graphs() == []
    assert measure(runner, FakeMemory(GIB, AgainRecorder()), chunk=8).graphs == 0


def test_pages_cannot_move_where_somebody_holds_their_addresses() -> None:
    runner = made(backend="triton", max_context=16, device=DEVICE)
    runner.prepare_graphs(AgainRecorder())
    for fixed in (runner, made(backend="native")):
        with pytest.raises(ValueError, match="cannot move"):
            fixed.resize(2, None)


def test_a_resized_runner_computes_as_one_that_was_made_so() -> None:
    sized, grown = made(num_pages=32), made()
    grown.resize(32, None)
    tokens = []
    for runner in (sized, grown):
        step = Steps().batch((0, 0, [5, 6, 7], True), admit={0: GREEDY})
        tokens.append(runner.collect(runner.launch(step)).tokens.tolist())
    assert tokens[0] == tokens[1]


def settle(asked_tokens: int | None, **settings: Any) -> tuple[Runner, MemoryPlan]:
    """Pages on a device of 100 MiB, 40 of them taken; these are made for real."""
    runner = made()
    config = ServerConfig(device="cuda", page_size=4, kv_tokens=asked_tokens, **settings)
    asked = None if asked_tokens is None else plan_tokens(ODD, torch.float32, 4, asked_tokens)
    return runner, sizing.settle_pages(config, runner, LOOP, asked, FakeMemory(100 * MIB, AgainRecorder()))


def test_pages_take_the_share_that_is_left() -> None:
    # 90 MiB may be used: 40 are taken, 8 are for the largest step.
    runner, plan = settle(None)
    assert runner.kv.num_pages == plan.num_pages
    assert 42 * MIB - plan.page_bytes < plan.num_bytes <= 42 * MIB
    assert 12 * MIB - plan.page_bytes < settle(None, memory_share=0.6)[1].num_bytes <= 12 * MIB


def test_no_room_is_refused_with_the_numbers() -> None:
    with pytest.raises(ModelDoesNotFit, match=r"of 0\.10 GiB 45% may be used, 0\.04 are taken"):
        settle(None, memory_share=0.45)


def test_asked_pages_are_given_or_refused() -> None:
    runner, plan = settle(1000)
    assert plan.num_tokens == 1000
    assert runner.kv.num_pages == 250
    with pytest.raises(ConfigError, match=r"kv_tokens: pages of 0\.30 GiB were asked for"):
        settle(1_000_000)


def test_weights_that_are_more_than_is_free_are_refused_before_they_move() -> None:
    with pytest.raises(WeightsDoNotFit) as refusal:
        sizing.check_weights(1 << 60, "cpu")
    assert refusal.value.weights == 1 << 60
    sizing.check_weights(0, "cpu")


@pytest.mark.parametrize("settings", [{}, {"device": "cuda", "kv_tokens": 64}, {"device": "cuda", "kv_memory_gb": 1.0}])
def test_a_share_that_would_do_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="memory_share"):
        check_settings(ServerConfig(memory_share=0.5, **settings))
    check_settings(ServerConfig(**settings))
    check_settings(ServerConfig(memory_share=0.5, device="cuda"))


@pytest.mark.gpu
def test_a_device_holds_what_was_planned_and_replays_what_it_computes() -> None:
    runner = made(device="cuda", backend="triton")
    config = ServerConfig(device="cuda", page_size=4, memory_share=0.3)
    plan = sizing.settle_pages(config, runner, LOOP, None)
    free, total = torch.cuda.mem_get_info()
    assert total - free <= 0.32 * total
    tokens = []
    for graphs in (True, False):
        if not graphs:
            runner.free_graphs()
        runner.reset()
        steps = Steps()
        first = runner.launch(steps.batch((0, 0, [5, 6, 7], True), admit={0: GREEDY}))
        second = runner.launch(steps.batch((0, 3, None, True)))
        tokens.append(np.concatenate((runner.collect(first).tokens, runner.collect(second).tokens)).tolist())
    assert tokens[0] == tokens[1]
    assert plan.num_pages == runner.kv.num_pages
