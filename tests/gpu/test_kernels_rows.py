"""Kernels that look at one row at a time say what plain torch says, and touch nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pawl.gpu.kernels.activation import gated
from pawl.gpu.kernels.norm import add_norm
from pawl.gpu.kernels.rotary import turn_and_store
from pawl.gpu.models.decoder import RopeTable, turn
from tests.gpu.kernel_tools import DEVICE, DTYPES, close, random
from tests.gpu.native_models import ODD, SWITCHED

EPSILON = 1e-5


def normed(rows: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(rows.float(), weight.shape, weight, EPSILON).to(rows.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [51, 64])
def test_a_norm_is_that_of_plain_torch(dtype: torch.dtype, columns: int) -> None:
    hidden, weight = random(3, columns, dtype=dtype), random(columns, seed=1)
    before = hidden.clone()
    assert close(add_norm(hidden, None, weight, EPSILON), normed(before, weight))
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sandwich", [False, True])
def test_the_residual_is_added_before_the_norm(dtype: torch.dtype, sandwich: bool) -> None:
    hidden, delta = random(3, 51, dtype=dtype), random(3, 51, dtype=dtype, seed=1)
    weight, own = random(51, seed=2), random(51, seed=3) if sandwich else None
    expected = hidden + (delta if own is None else normed(delta, own))
    found = add_norm(hidden, delta, weight, EPSILON, delta_weight=own)
    assert close(hidden, expected)
    assert close(found, normed(hidden, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_is_that_of_plain_torch(dtype: torch.dtype) -> None:
    both = random(3, 2 * 77, dtype=dtype)
    gate, up = both.chunk(2, -1)
    assert close(gated(both, "silu"), F.silu(gate) * up)
    assert close(gated(both, "gelu_tanh"), F.gelu(gate, approximate="tanh") * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "config", [ODD, msgspec.structs.replace(SWITCHED, norm_epsilon=EPSILON)], ids=["odd", "normed"]
)
def test_queries_are_turned_and_keys_and_values_stored(config: Any, dtype: torch.dtype) -> None:
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
    qkv = random(4, (heads + 2 * kv_heads) * size, dtype=dtype)
    positions = torch.tensor([0, 7, 1000, 3], dtype=torch.int32, device=DEVICE)
    # The third row is padding: it has a position but no entry.
    written = torch.tensor([5, 0, -1, 9], dtype=torch.int32, device=DEVICE)
    store = torch.full((2, 3, 4, kv_heads, size), float("nan"), dtype=dtype, device=DEVICE)
    weights = (random(size, seed=1), random(size, seed=2)) if config.qk_norm else (None, None)
    rope = RopeTable(config.rope, size, torch.device(DEVICE))
    query, key, value = qkv.view(4, -1, size).split((heads, kv_heads, kv_heads), 1)
    query, key = (part if own is None else normed(part, own) for part, own in zip((query, key), weights, strict=True))
    angles = rope.angles(positions.float())
    expected_query, expected_key, expected_value = turn(query, angles), turn(key, angles), value.clone()
    turn_and_store(
        config, qkv, positions, written, rope.frequencies, *store, query_norm=weights[0], key_norm=weights[1]
    )
    entries = store.view(2, 12, kv_heads, size)
    assert close(qkv.view(4, -1, size)[:, :heads], expected_query, steps=8)
    for row, entry in ((0, 5), (1, 0), (3, 9)):
        assert close(entries[0, entry], expected_key[row], steps=8)
        assert torch.equal(entries[1, entry], expected_value[row])
    untouched = [entry for entry in range(12) if entry not in (0, 5, 9)]
    assert entries[:, untouched].isnan().all()
