"""What tokens cost, and what a budget buys."""

from __future__ import annotations

import math
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.devices import available_memory, available_threads
from pawl.gpu.kv import (
    KvDoesNotFit,
    KvStore,
    MemoryPlan,
    hybrid,
    plan_memory,
    plan_tokens,
    widest_window,
)
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.store import LINE_BYTES, Store
from pawl.gpu.weights.source import resolve_source
from pawl.loops.select import LoopConfig, make_windows
from tests.gpu.native_models import HYBRID, ODD
from tests.gpu.tiny import save_tiny


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token over all layers."""
    return config.num_layers * 2 * config.kv_size * dtype.itemsize


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return resolve_source(str(save_tiny("llama", tmp_path))).config


def test_the_plan_and_the_store_agree_on_bytes(config: ModelConfig) -> None:
    plan = plan_memory(config, torch.bfloat16, 16, 100_000)
    store = KvStore(config, num_pages=plan.num_pages, page_size=16, dtype=torch.bfloat16, device="cpu")
    assert store.data.nbytes == plan.num_bytes == plan.num_tokens * kv_bytes_per_token(config, torch.bfloat16)
    assert plan.num_bytes <= 100_000 < plan.num_bytes + plan.page_bytes


def test_a_budget_below_one_page_is_an_error_with_both_numbers(config: ModelConfig) -> None:
    page_bytes = 16 * kv_bytes_per_token(config, torch.float32)
    assert plan_memory(config, torch.float32, 16, page_bytes).num_pages == 1
    with pytest.raises(KvDoesNotFit) as caught:
        plan_memory(config, torch.float32, 16, page_bytes - 1)
    assert (caught.value.budget_bytes, caught.value.page_bytes) == (page_bytes - 1, page_bytes)


def test_keys_and_values_of_layers_do_not_overlap(config: ModelConfig) -> None:
    store = KvStore(config, num_pages=2, page_size=4, dtype=torch.float32, device="cpu")
    for layer in range(config.num_layers):
        store.keys(layer).fill_(2 * layer + 1)
        store.values(layer).fill_(2 * layer + 2)
    for layer in range(config.num_layers):
        assert (store.keys(layer) == 2 * layer + 1).all()
        assert (store.values(layer) == 2 * layer + 2).all()
        assert store.keys(layer).is_contiguous()


def test_this_machine_has_memory_and_threads() -> None:
    assert available_memory("cpu") > 1 << 20
    assert 1 <= available_threads() <= (os.cpu_count() or 1)


# ---- two stores ----

GEMMA = msgspec.structs.replace(
    ODD, num_layers=6, windows=(512,) * 5 + (None,), num_heads=4, num_kv_heads=1, head_dim=256, hidden_size=640
)
"""Five windowed layers for one that sees everything, as in Gemma 3."""


def test_hybrid_models_are_those_with_layers_of_both_kinds() -> None:
    assert hybrid(GEMMA)
    assert widest_window(msgspec.structs.replace(GEMMA, windows=(5, None, 70, None, 9, 9))) == 70
    everywhere = msgspec.structs.replace(GEMMA, windows=(4096,) * 6)
    assert not hybrid(everywhere)
    assert widest_window(everywhere) == 4096
    assert not hybrid(ODD)
    assert widest_window(ODD) is None


@given(
    budget=st.integers(1, 1 << 31),
    page_size=st.sampled_from([1, 16, 48]),
    chunk=st.integers(1, 2048),
    ratio=st.floats(0.01, 1.0),
)
def test_two_stores_fill_the_budget_in_the_stated_ratio(budget: int, page_size: int, chunk: int, ratio: float) -> None:
    def split() -> MemoryPlan:
        return plan_memory(GEMMA, torch.bfloat16, page_size, budget, chunk=chunk, window_ratio=ratio)

    if budget < kv_bytes_per_token(GEMMA, torch.bfloat16) * page_size:
        with pytest.raises(KvDoesNotFit):
            split()
        return
    plan = split()
    window_pages = plan.num_window_pages
    assert window_pages is not None
    assert 1 <= window_pages <= plan.num_pages
    assert plan.num_bytes == plan.full_bytes + plan.window_bytes <= budget
    assert plan.window_page_bytes == 5 * plan.page_bytes
    # One request's window and chunk, begun and ended inside pages, or all its tokens.
    assert window_pages * page_size >= min(512 + chunk + 2 * page_size, plan.num_tokens)
    assert window_pages >= ratio * plan.num_pages
    least = math.ceil(512 / page_size) + math.ceil(chunk / page_size) + 2
    assert window_pages <= max(ratio * plan.num_pages + 1, least)
    # One more full page does not fit.
    more = plan_tokens(GEMMA, torch.bfloat16, page_size, plan.num_tokens + page_size, chunk=chunk, window_ratio=ratio)
    assert more.num_pages == plan.num_pages + 1
    assert more.num_bytes > budget


@given(page_size=st.sampled_from([1, 4, 16]), chunk=st.integers(1, 600), tokens=st.integers(1, 4000))
def test_the_memory_of_the_scheduler_accepts_every_plan(page_size: int, chunk: int, tokens: int) -> None:
    plan = plan_tokens(GEMMA, torch.bfloat16, page_size, tokens, chunk=chunk, window_ratio=0.01)
    windows = make_windows(
        LoopConfig(
            num_pages=plan.num_pages,
            page_size=page_size,
            max_context=plan.num_tokens,
            prefill_chunk=chunk,
            window=widest_window(GEMMA),
            num_window_pages=plan.num_window_pages,
        )
    )
    assert windows is not None


def test_long_contexts_get_1_7_times_the_tokens_for_the_same_bytes() -> None:
    one = plan_memory(GEMMA, torch.bfloat16, 16, 1 << 28)
    two = plan_memory(GEMMA, torch.bfloat16, 16, 1 << 28, chunk=512)
    assert one.num_window_pages is None
    assert two.num_tokens / one.num_tokens == pytest.approx(12 / 7, rel=0.01)


def test_without_a_chunk_or_layers_of_both_kinds_there_is_one_store() -> None:
    everywhere = msgspec.structs.replace(GEMMA, windows=(512,) * 6)
    expected = plan_memory(GEMMA, torch.bfloat16, 16, 1 << 24)
    assert expected.num_window_pages is None
    assert plan_memory(everywhere, torch.bfloat16, 16, 1 << 24, chunk=512) == expected
    assert (expected.window_bytes, expected.num_bytes) == (0, expected.full_bytes)


def test_the_plan_and_both_stores_agree_on_bytes() -> None:
    plan = plan_memory(GEMMA, torch.bfloat16, 16, 1 << 24, chunk=32)
    store = KvStore(
        GEMMA,
        num_pages=plan.num_pages,
        page_size=16,
        dtype=torch.bfloat16,
        device="cpu",
        num_window_pages=plan.num_window_pages,
    )
    assert store.window_data is not None
    assert (store.data.nbytes, store.window_data.nbytes) == (plan.full_bytes, plan.window_bytes)


def test_layers_of_two_stores_do_not_overlap() -> None:
    store = KvStore(HYBRID, num_pages=3, page_size=4, dtype=torch.float32, device="cpu", num_window_pages=2)
    for layer in range(HYBRID.num_layers):
        store.keys(layer).fill_(2 * layer + 1)
        store.values(layer).fill_(2 * layer + 2)
    for layer in range(HYBRID.num_layers):
        assert (store.keys(layer) == 2 * layer + 1).all()
        assert (store.values(layer) == 2 * layer + 2).all()
        assert store.windowed(layer) == (HYBRID.windows[layer] is not None)
        assert len(store.keys(layer)) == (2 if store.windowed(layer) else 3)


@pytest.mark.parametrize("pages", [1, 3, 1_000])
def test_pages_begin_at_a_line_of_the_caches(pages: int) -> None:
    store = Store((2, 2, pages, 4, 1, 8), np.dtype(np.uint16), "cpu")
    assert store.memory.ctypes.data % LINE_BYTES == 0
    assert len(store.memory) == store.nbytes
    assert not store.memory.any()
