"""What is drawn and scored in numpy is what is drawn and scored in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pawl.gpu.sampling import in_torch, on_host
from pawl.gpu.sampling.parameters import DrawParameters
from pawl.gpu.sampling.rivals import Columns

PARAMETERS = [
    {},
    {"temperature": 0.4},
    {"min_p": 0.05},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 3000, "top_p": 0.9},
    {"top_p": 0.9},
    {"top_p": 0.9999, "min_p": 1e-4, "temperature": 1.9},
]


@pytest.mark.parametrize("given", PARAMETERS)
def test_numpy_draws_the_tokens_that_torch_draws(given: dict[str, Any]) -> None:
    count, vocab_size = 60, 5000
    logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(3)) * 3
    logits[:, ::7] = -torch.inf
    named = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | given
    keys = np.random.default_rng(1).integers(-(2**31), 2**31, (count, 2)).astype(np.int32)
    columns = {
        name: np.full(count, value, np.int32 if name == "top_k" else np.float32) for name, value in named.items()
    }
    parameters = DrawParameters(**columns, keys=keys)
    found = on_host.draw(logits.numpy().copy(), parameters)
    assert found.tolist() == in_torch.draw(logits, parameters).tolist()


@pytest.mark.parametrize(("key", "place", "kept"), [(795, 134_937, True), (193, 135_037, False)])
def test_top_p_counts_a_long_row_to_its_end(key: int, place: int, kept: bool) -> None:
    """Of 150,000 equally likely tokens 0.9 keeps the first 135,000."""
    top_p = np.array([1, 0.9], np.float32)
    keys, zeros = np.array([[key, 0]] * 2, np.int32), np.zeros(2, np.float32)
    parameters = DrawParameters(zeros + 1, np.zeros(2, np.int32), top_p, min_p=zeros, keys=keys)
    whole, nucleus = on_host.draw(np.zeros((2, 150_000), np.float32), parameters)
    assert whole == place
    assert bool(nucleus == place) == kept
    assert nucleus < 135_000


@pytest.mark.parametrize("columns", [Columns(0, None), Columns(5, None), Columns(3, np.array([[-1, 2, 9]] * 70))])
def test_numpy_scores_as_torch_does(columns: Columns) -> None:
    logits = torch.randn(70, 900, generator=torch.Generator().manual_seed(4)) * 3
    chosen = torch.arange(70)
    found, expected = on_host.score(logits.numpy(), chosen.numpy(), columns), in_torch.score(logits, chosen, columns)
    assert np.array_equal(found.top_tokens, expected.top_tokens.numpy())
    np.testing.assert_allclose(found.chosen, expected.chosen, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.top, expected.top, rtol=1e-5, atol=1e-6)
