"""What tokens cost, and what a budget buys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpu.devices import available_memory, available_threads
from gpu.kv import KvDoesNotFit, KvStore, kv_bytes_per_token, plan_memory
from gpu.models.config import ModelConfig
from gpu.weights.source import resolve_source
from tests.gpu.tiny import save_tiny


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
    assert available_threads() >= 1
