"""Noise is a pure function of (seed, position, token), and it is Gumbel noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.sampling import on_host
from pawl.gpu.sampling.mixing import row_keys
from pawl.gpu.sampling.noise import all_tokens, gumbel
from tests.gpu.driving import int32

CPU = torch.device("cpu")
EULER = 0.5772156649


def noise(seeds: list[int], positions: list[int], vocab_size: int) -> torch.Tensor:
    keys = row_keys(np.array(seeds, np.uint64), int32(*positions))
    return gumbel(torch.from_numpy(keys), all_tokens(vocab_size, CPU))


def test_a_rows_noise_is_the_same_in_any_company_and_for_any_subset_of_tokens() -> None:
    rows = noise([1, 2, 3], [10, 20, 30], 1000)
    assert torch.equal(rows[1:2], noise([2], [20], 1000))
    some = torch.tensor([[999, 0, 17]], dtype=torch.int32)
    keys = torch.from_numpy(row_keys(np.array([2], np.uint64), int32(20)))
    assert torch.equal(gumbel(keys, some), rows[1:2, [999, 0, 17]])


def test_noise_does_not_change_its_arguments() -> None:
    tokens = all_tokens(10, CPU)
    gumbel(torch.zeros(1, 2, dtype=torch.int32), tokens)
    assert torch.equal(tokens, all_tokens(10, CPU))


def test_moments_are_those_of_the_gumbel_distribution() -> None:
    sample = noise(list(range(200)), [5] * 200, 5000).double()
    # Mean gamma, variance pi^2 / 6; standard errors for a million values are 0.0013 and 0.0037.
    assert sample.mean().item() == pytest.approx(EULER, abs=0.006)
    assert sample.var().item() == pytest.approx(np.pi**2 / 6, abs=0.016)
    assert torch.isfinite(sample).all()


@pytest.mark.parametrize("axis", ["seed", "position", "token", "high seed bits"])
def test_neighbours_along_each_axis_are_uncorrelated(axis: str) -> None:
    count = 20_000
    if axis == "token":
        first, second = noise([9], [9], count + 1)[0, :-1], noise([9], [9], count + 1)[0, 1:]
    else:
        seeds, positions = [7] * (count + 1), [3] * (count + 1)
        if axis == "seed":
            seeds = list(range(count + 1))
        elif axis == "position":
            positions = list(range(count + 1))
        else:
            seeds = [index << 32 for index in range(count + 1)]
        line = noise(seeds, positions, 1)[:, 0]
        first, second = line[:-1], line[1:]
    correlation = torch.corrcoef(torch.stack((first, second)))[0, 1].item()
    assert abs(correlation) < 4 / count**0.5


def plain_gumbel(seed: int, position: int, token: int) -> float:
    """The definition in unbounded integers and double precision."""
    word64, word32 = (1 << 64) - 1, (1 << 32) - 1

    def mix64(word: int) -> int:
        word = (word + 0x9E3779B97F4A7C15) & word64
        word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & word64
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) & word64
        return word ^ word >> 31

    def mix32(word: int) -> int:
        word = ((word ^ word >> 16) * 0x7FEB352D) & word32
        word = ((word ^ word >> 15) * 0x846CA68B) & word32
        return word ^ word >> 16

    key = mix64(seed ^ mix64(position))
    word = mix32((mix32((token * 0x9E3779B1 & word32) ^ (key & word32)) + (key >> 32)) & word32)
    return -math.log(-math.log1p(-((word & 0x7FFFFFFF) / 2**31 + 2**-32)))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(0, 300_000))
def test_noise_is_its_definition_bit_for_bit(seed: int, position: int, token: int) -> None:
    """Recorded runs are replayed by later versions and on other machines, so the function must never change."""
    keys = row_keys(np.array([seed], np.uint64), int32(position))
    found = gumbel(torch.from_numpy(keys), torch.tensor([[token]], dtype=torch.int32)).item()
    on_the_host = float(on_host.gumbel(keys[0], np.array([token], np.uint32))[0])
    expected = plain_gumbel(seed, position, token)
    assert (found, on_the_host) == pytest.approx((expected, expected), rel=1e-5, abs=1e-5)
