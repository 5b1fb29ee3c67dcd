"""Noise is a pure function of (seed, position, token), and it is Gumbel noise."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.sampling import on_host
from pawl.gpu.sampling.mixing import row_keys
from pawl.gpu.sampling.noise import all_tokens, gumbel
from pawl.gpu.sampling.rivals import Columns
from tests.gpu.driving import int32

CPU = torch.device("cpu")
EULER = 0.5772156649
BEYOND_AVX2 = "X86_V4 AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
"""For which numpy may have other loops, by the names of all its releases; what it does not know is nothing to it."""


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


def noise_digest() -> str:
    """Of the noise and the scores of many tokens, on the host."""
    random = np.random.default_rng(5)
    noise = [on_host.gumbel(key, np.arange(100_000, dtype=np.uint32)) for key in np.array([[1, 2], [-9, 3]], np.int32)]
    logits = random.normal(size=(3, 50_000)).astype(np.float32) * 9
    scores = on_host.score(logits, np.zeros(3, np.int64), Columns(5, None))
    return hashlib.sha256(b"".join(map(np.ndarray.tobytes, (*noise, scores.chosen, scores.top)))).hexdigest()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere numpy asks the C library")
def test_noise_and_scores_have_the_same_bits_on_lesser_processors() -> None:
    """numpy chooses what computes by what the processor has; a trace from one may be computed again on another."""
    lesser = os.environ | {"NPY_DISABLE_CPU_FEATURES": BEYOND_AVX2}
    made = "from tests.gpu.test_noise import noise_digest; print(noise_digest())"
    found = subprocess.run([sys.executable, "-c", made], env=lesser, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == noise_digest()
