"""The runner over Triton kernels gives the tokens that it gives over plain torch, and waits for nothing in a launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.cuda.copies import ALIGNMENT, BufferPool, places
from pawl.gpu.runner import Runner
from pawl.gpu.select import select_backend
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import StepResult
from tests.gpu.kernel_tools import DEVICE
from tests.gpu.test_runner import GREEDY, Steps, made
from tests.gpu.tiny import save_tiny

SEEDED = SamplingParameters(temperature=0.9, seed=5, top_p=0.8, top_logprobs=2)
LIMITED = SamplingParameters(temperature=1.1, seed=6, top_k=9, min_p=0.01, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


def overlapped(runner: Runner) -> list[StepResult]:
    """Two requests and then a third one, each step launched before the one before is collected."""
    steps = Steps()
    batches = [
        steps.batch((0, 0, [5, 6, 7], True), (1, 0, [9], True), admit={0: GREEDY, 1: SEEDED}),
        steps.batch((1, 1, None, True), (0, 3, None, True)),
        steps.batch((2, 0, [11, 12], True), (0, 4, None, True), admit={2: LIMITED}, history=[11, 12]),
        steps.batch((0, 5, None, True), (1, 2, None, True), (2, 2, None, True)),
    ]
    results, launched = [], []
    for batch in batches:
        launched.append(runner.launch(batch))
        if len(launched) == 2:
            results.append(runner.collect(launched.pop(0)))
    return [*results, runner.collect(launched.pop())]


def test_tokens_and_scores_are_those_of_plain_torch(folder: Path) -> None:
    ours, theirs = (overlapped(made(folder, DEVICE, backend=backend)) for backend in ("triton", "torch"))
    for own, other in zip(ours, theirs, strict=True):
        assert own.tokens.tolist() == other.tokens.tolist()
        assert (own.logprobs is None) == (other.logprobs is None)
        if own.logprobs is not None and other.logprobs is not None:
            np.testing.assert_allclose(own.logprobs.top, other.logprobs.top, rtol=1e-3, atol=1e-3)


def test_changes_of_steps_that_compute_nothing_are_not_lost(folder: Path) -> None:
    tokens = []
    for backend in ("triton", "torch"):
        runner, steps = made(folder, DEVICE, backend=backend), Steps()
        batches = (
            steps.batch((0, 0, [5, 6, 7], True), admit={0: GREEDY}),
            # The backend has seen tables once: from now on only their changes.
            steps.batch(admit={1: GREEDY}),
            steps.batch((1, 0, [9, 3], True)),
        )
        tokens.append([runner.collect(runner.launch(batch)).tokens.tolist() for batch in batches])
    assert tokens[0] == tokens[1]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whoever waits for the device in here fails."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_launch_waits_for_nothing(folder: Path, backend: str) -> None:
    overlapped(made(folder, "cuda", backend=backend))  # kernels are compiled
    runner, steps = made(folder, "cuda", backend=backend), Steps()
    admit = {0: GREEDY, 1: SEEDED, 2: LIMITED}
    with no_waiting():
        first = runner.launch(
            steps.batch((0, 0, [5, 6], True), (1, 0, [9], True), (2, 0, [4], True), admit=admit, history=[1, 2])
        )
        second = runner.launch(steps.batch((0, 2, None, True), (1, 1, None, True), (2, 1, None, True)))
    assert len(runner.collect(first).tokens) == len(runner.collect(second).tokens) == 3


def test_triton_on_a_cpu_is_refused_where_it_is_not_interpreted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendUnavailable, match="not for the CPU"):
        made(folder, "cpu", backend="triton")


def test_a_backend_that_does_not_exist_is_refused_with_those_that_do(folder: Path) -> None:
    runner = made(folder)
    with pytest.raises(BackendUnavailable, match="auto, torch, native, triton"):
        select_backend("tritone", runner.config, {}, runner.kv, threads=1)  # type: ignore[arg-type]


def test_places_hold_every_tensor_and_do_not_overlap() -> None:
    tensors = [torch.arange(5), torch.tensor([True, False, True]), torch.zeros(0), torch.rand(3, 4)]
    buffer, found = places(tensors, lambda num_bytes: torch.full((num_bytes,), 255, dtype=torch.uint8))
    for place, tensor in zip(found, tensors, strict=True):
        place.copy_(tensor)
        assert place.data_ptr() % ALIGNMENT == buffer.data_ptr() % ALIGNMENT or not len(place)
    for place, tensor in zip(found, tensors, strict=True):
        assert torch.equal(place, tensor)
        assert place.dtype == tensor.dtype


def test_a_buffer_is_lent_to_one_at_a_time_and_used_again() -> None:
    sizes: list[int] = []

    def allocate(num_bytes: int) -> torch.Tensor:
        sizes.append(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8)

    pool = BufferPool(allocate)
    small, other, large = pool.take(1), pool.take(1), pool.take(5000)
    assert small is not other
    assert sizes == [4096, 4096, 8192]
    pool.give_back(large)
    pool.give_back(small)
    assert pool.take(4096) is small, "the smallest that fits"
    assert pool.take(1) is large
    assert pool.take(0) is not large
    assert sizes == [4096, 4096, 8192, 4096]
