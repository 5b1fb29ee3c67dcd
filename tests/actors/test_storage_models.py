"""A real model gives the same tokens from host memory and from files as it computes, also after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pawl.actors.tiers.files import HEADER, FileStore
from pawl.gpu.models.small import llama_config, random_weights
from pawl.gpu.runner import Runner
from pawl.loops.select import LoopConfig
from tests.actors.tier_net import PAGE_SIZE, Net

MODEL = llama_config()
PROMPT = [number * 7 % 101 for number in range(42)]
OTHERS = [[(number * 11 + shift) % 101 for number in range(60)] for shift in range(3)]


def make_runner(config: LoopConfig, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Runner:
    """A model with random weights."""
    return Runner(
        MODEL,
        random_weights(MODEL, dtype, seed),
        num_pages=config.num_pages,
        page_size=config.page_size,
        num_slots=config.max_running,
        max_context=config.max_context,
        dtype=dtype,
        threads=1,
    )


def model_net(files: FileStore | None = None, host_pages: int = 64, seed: int = 0, **shape: Any) -> Net:
    page_bytes = 2 * MODEL.num_layers * MODEL.num_kv_heads * MODEL.head_dim * 4 * PAGE_SIZE
    net = Net(
        host_pages=host_pages,
        files=files,
        make_runner=lambda config: make_runner(config, seed=seed),
        page_bytes=page_bytes,
        **shape,
    )
    net.rest()  # What was there before the start is known now.
    return net


def files_in(folder: Path, seed: int = 0) -> FileStore:
    """The store of a server with the model of this seed."""
    runner = make_runner(LoopConfig(num_pages=32, page_size=PAGE_SIZE, max_context=96, max_running=4), seed=seed)
    return FileStore(folder, runner.layout, runner.page_bytes, 1 << 20)


def cold(seed: int = 0) -> list[int]:
    """What the model answers to the prompt when nothing is cached."""
    return model_net(seed=seed).ask(1, PROMPT, 12)


@pytest.mark.parametrize("write_policy", ["write-through", "write-back", "write-through-selective"])
def test_what_comes_back_from_host_memory_gives_the_tokens_that_computing_gives(write_policy: str) -> None:
    net = model_net(write_policy=write_policy)
    for request in (1, 2):
        assert net.ask(request, PROMPT, 12) == cold()
    net.forget_device()
    assert net.ask(3, PROMPT, 12) == cold()
    assert net.ended[3].usage.cached_tokens == 40
    assert net.store.host_hits == 10


def test_pressure_sends_pages_down_and_brings_them_back() -> None:
    net = model_net(write_policy="write-back", num_pages=24)
    assert net.ask(1, PROMPT, 12) == cold()
    for request, prompt in enumerate(OTHERS, 2):
        net.ask(request, prompt, 12)
    assert net.ask(9, PROMPT, 12) == cold()
    assert net.ended[9].usage.cached_tokens == 40
    assert net.store.host_hits > 0


@pytest.mark.parametrize("host_pages", [0, 64])
def test_a_restarted_server_starts_warm(tmp_path: Path, host_pages: int) -> None:
    before = model_net(files_in(tmp_path), host_pages)
    before.ask(1, PROMPT, 12)
    before.storage.stopped("stopped")
    after = model_net(files_in(tmp_path), host_pages)
    assert after.ask(1, PROMPT, 12) == cold()
    assert after.ended[1].usage.cached_tokens == 40
    assert after.store.file_hits == 10


def test_a_page_cut_short_by_a_kill_costs_what_comes_after_it(tmp_path: Path) -> None:
    before = model_net(files_in(tmp_path))
    before.ask(1, PROMPT, 12)
    keys = [key for key, _ in before.store.host.items()][::-1]
    path = before.store.files._path(keys[3])  # type: ignore[union-attr]
    path.write_bytes(path.read_bytes()[: HEADER.size + 7])
    after = model_net(files_in(tmp_path))
    assert after.ask(1, PROMPT, 12) == cold()
    assert after.ended[1].usage.cached_tokens == 12
    assert after.store.files.corrupt == 1  # type: ignore[union-attr]


def test_another_models_pages_are_nobodys(tmp_path: Path) -> None:
    one = model_net(files_in(tmp_path, seed=1), seed=1)
    one.ask(1, PROMPT, 12)
    other = model_net(files_in(tmp_path, seed=0))
    assert other.ask(1, PROMPT, 12) == cold()
    assert other.ended[1].usage.cached_tokens == 0
