"""The name of a set of weights: equal for equal weights, another one for whatever is not."""

from __future__ import annotations

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pawl.gpu.models.config import Rope, weight_shapes
from pawl.gpu.models.small import llama_config
from pawl.gpu.weights.fingerprint import weights_fingerprint

CONFIG = llama_config(
    vocab_size=17, hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=12, max_position=64
)


def weights(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=source).to(dtype) for name, shape in weight_shapes(CONFIG).items()}


NAMES = sorted(weights())


def test_equal_weights_have_one_fingerprint_in_whatever_order_they_come() -> None:
    first, second = weights(), dict(reversed(weights().items()))
    assert list(first) != list(second)
    assert weights_fingerprint(CONFIG, first) == weights_fingerprint(CONFIG, second)
    assert len(weights_fingerprint(CONFIG, first)) == 16


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_any_one_tensor_is_seen(name: str) -> None:
    changed = weights()
    changed[name] = changed[name] * 1.01
    assert not torch.equal(changed[name], weights()[name])
    assert weights_fingerprint(CONFIG, changed) != weights_fingerprint(CONFIG, weights())


@given(name=st.sampled_from(NAMES), end=st.sampled_from((0, -1)))
def test_first_and_last_element_are_looked_at(name: str, end: int) -> None:
    changed = weights()
    changed[name].view(-1)[end] += 1
    assert weights_fingerprint(CONFIG, changed) != weights_fingerprint(CONFIG, weights())


def test_another_dtype_shape_name_or_configuration_is_another_version() -> None:
    base = weights()
    name, tensor = next((name, tensor) for name, tensor in base.items() if tensor.dim() == 2)
    others = [
        (CONFIG, weights(dtype=torch.float32)),
        (CONFIG, {**base, name: tensor.reshape(tensor.shape[::-1])}),
        (CONFIG, {("x" if key == name else key): value for key, value in base.items()}),
        (CONFIG, {key: value for key, value in base.items() if key != name}),
        (msgspec.structs.replace(CONFIG, rope=Rope(500000.0)), base),
    ]
    prints = {weights_fingerprint(config, these) for config, these in [(CONFIG, base), *others]}
    assert len(prints) == 1 + len(others)


def test_a_tensor_without_elements_or_in_another_memory_order_is_no_trouble() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    straight = {"a": tensor, "none": torch.empty(0, 4)}
    turned = {"a": tensor.t().contiguous().t(), "none": torch.empty(0, 4)}
    assert not turned["a"].is_contiguous()
    assert weights_fingerprint(CONFIG, straight) == weights_fingerprint(CONFIG, turned)
