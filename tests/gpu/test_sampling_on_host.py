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
    parameters = DrawParameters(**columns_of(named, count), keys=keys)
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


ROWS = {
    "peaked": lambda random, size: random.normal(size=size) * 6,
    "flat": lambda random, size: random.normal(size=size),
    "flatter": lambda random, size: random.normal(size=size) * 0.2,
    "ties": lambda random, size: np.round(random.normal(size=size) * 2),
    "barred": lambda random, size: np.where(random.random(size) < 0.99, -np.inf, random.normal(size=size)),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("size", [3, 601, 20_011])
def test_few_tokens_are_looked_at_and_the_same_are_found_as_among_all_sorted(kind: str, size: int) -> None:
    random = np.random.default_rng(size)
    logits = ROWS[kind](random, (12, size)).astype(np.float32)
    logits[:, 1] = 0
    for width in (1, 5, 20):
        found = on_host.score(logits, np.ones(12, np.int64), Columns(width, None))
        logprobs = logits - logits.max(-1, keepdims=True)
        logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
        assert np.array_equal(found.top_tokens, np.argsort(-logprobs, -1, kind="stable")[:, :width])
    for given in ({"top_p": 0.3}, {"top_p": 0.95}, {"top_p": 0.9999}, {"top_k": 50}, {"top_k": 1500, "top_p": 0.9}):
        named = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | given
        keys = random.integers(-(2**31), 2**31, (12, 2)).astype(np.int32)
        columns = {
            name: np.full(12, value, np.int32 if name == "top_k" else np.float32) for name, value in named.items()
        }
        parameters = DrawParameters(**columns, keys=keys)
        wanted = [drawn(row, key, given) for row, key in zip(logits, keys, strict=True)]
        assert on_host.draw(logits.copy(), parameters).tolist() == wanted


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(
    "given", [{}, {"temperature": 0.2}, {"min_p": 0.02}, {"top_p": 0.9}, {"top_p": 0.5, "min_p": 0.1}]
)
def test_who_can_win_is_known_before_the_noise_is_made(
    kind: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draw among those that the kernels name is the draw among all."""
    count, size = 40, 20_011
    random = np.random.default_rng(7)
    logits = ROWS[kind](random, (count, size)).astype(np.float32)
    logits[:, 1] = 0
    named = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | given
    keys = random.integers(-(2**31), 2**31, (count, 2)).astype(np.int32)
    parameters = DrawParameters(**columns_of(named, count), keys=keys)
    drawn = on_host.draw(logits.copy(), parameters)
    monkeypatch.setattr(on_host, "_library", lambda: None)
    assert on_host.draw(logits.copy(), parameters).tolist() == drawn.tolist()


def test_few_can_win() -> None:
    random = np.random.default_rng(8)
    scaled = random.normal(size=20_011).astype(np.float32) * 6
    scaled -= scaled.max()
    key = random.integers(-(2**31), 2**31, 2).astype(np.int32)
    few = on_host._contenders(scaled, key)
    noise = on_host.gumbel(key, np.arange(len(scaled), dtype=np.uint32))
    assert len(few) < 500
    assert set(np.flatnonzero((scaled >= -8.5) | (noise > 5.55))) <= set(few)
    assert (np.diff(few.astype(np.int64)) > 0).all()


def test_a_sum_that_is_too_near_is_made_in_order() -> None:
    """One of 256 equally likely tokens is as much as 255/256 allows, whatever is drawn."""
    keys = np.random.default_rng(2).integers(-(2**31), 2**31, (400, 2)).astype(np.int32)
    named = {"temperature": 1.0, "top_k": 0, "top_p": 255 / 256, "min_p": 0.0}
    drawn = on_host.draw(np.zeros((400, 256), np.float32), DrawParameters(**columns_of(named, 400), keys=keys))
    plain = on_host.draw(
        np.zeros((400, 256), np.float32), DrawParameters(**columns_of(named | {"top_p": 1.0}, 400), keys=keys)
    )
    assert 255 in plain
    assert 255 not in drawn
    assert np.array_equal(drawn[plain != 255], plain[plain != 255])


def columns_of(named: dict[str, Any], count: int) -> dict[str, Any]:
    """Parameters of so many equal rows."""
    return {name: np.full(count, value, np.int32 if name == "top_k" else np.float32) for name, value in named.items()}


def drawn(logits: Any, key: Any, given: dict[str, Any]) -> int:
    """The token, with the whole row sorted."""
    scaled = (logits - logits.max()) / np.float32(0.8)
    order = np.argsort(-scaled, kind="stable")[: given.get("top_k", len(scaled))]
    weights = np.exp(scaled[order])
    reached = weights.cumsum(dtype=np.float64)
    whole = reached[-1] if "top_k" in given else np.exp(scaled).sum(dtype=np.float64)
    kept = order[: 1 + np.count_nonzero(reached[:-1] < np.float32(given.get("top_p", 1)) * whole)]
    perturbed = on_host.gumbel(key, kept.astype(np.uint32)) + scaled[kept]
    return int(kept[perturbed.argmax()])
