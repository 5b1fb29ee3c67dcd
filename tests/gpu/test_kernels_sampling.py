"""Drawing on the device: the tokens that the plain sampler draws, row by row, whatever is beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pawl.gpu.backend import NO_TOKEN
from pawl.gpu.kernels.sampling import BLOCK, draw, keep_top, likeliest
from pawl.gpu.sampling.mixing import row_keys
from pawl.gpu.sampling.parameters import DrawParameters
from pawl.gpu.sampling.truncation import draw as plainly_drawn
from tests.gpu.kernel_tools import DEVICE, NothingIsZeroed, ints, random

pytestmark = pytest.mark.usefixtures("sums_in_order")

WAYS = [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.2), (40, 0.9, 0.05), (1, 1.0, 0.0), (0, 0.01, 0.0)]
"""top-k, top-p, min-p."""


def floats(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=DEVICE)


def parameters(num_rows: int) -> DrawParameters:
    """Each way in turn, at three temperatures, each row with its own seed and position."""
    top_k, top_p, min_p = np.array([WAYS[row % len(WAYS)] for row in range(num_rows)], np.float32).T.copy()
    rows = np.arange(num_rows)
    keys = row_keys((rows * 77 + 5).astype(np.uint64), (rows * 3).astype(np.int32))
    temperature = np.array([1.0, 0.3, 1.7], np.float32)[rows % 3]
    return DrawParameters(temperature, top_k.astype(np.int32), top_p, min_p, keys)


def drawn(logits: Tensor, chosen: DrawParameters, greedy: list[bool] | None = None) -> Tensor:
    on_device = {
        name: torch.from_numpy(getattr(chosen, name)).to(DEVICE)
        for name in ("temperature", "top_k", "top_p", "min_p", "keys")
    }
    flags = torch.tensor(greedy or [False] * len(logits), device=DEVICE)
    with NothingIsZeroed():
        return draw(logits, greedy=flags, **on_device)


def check_draws(num_rows: int, vocab_size: int) -> None:
    """Against the plain sampler, and each row against itself alone."""
    logits, chosen = random(num_rows, vocab_size) * 3, parameters(num_rows)
    found = drawn(logits, chosen)
    assert torch.equal(found.cpu(), plainly_drawn(logits.clone(), chosen).int().cpu())
    for row in range(0, num_rows, 5):
        assert drawn(logits[row : row + 1], chosen.of(np.array([row]))) == found[row]


def test_draws_are_those_of_the_plain_sampler_alone_and_in_a_batch() -> None:
    check_draws(3 * len(WAYS), 3000)


@pytest.mark.gpu
def test_draws_from_large_vocabularies_are_those_of_the_plain_sampler() -> None:
    check_draws(60 * len(WAYS), 128_256)


def test_what_is_kept_is_what_sorting_keeps() -> None:
    logits = random(4, 300) * 2
    with NothingIsZeroed():
        highest, least = keep_top(
            logits, floats([1.0, 1.0, 0.5, 1.0]), ints([7, 0, 20, 0]), floats([1.0, 0.5, 0.6, 1.0])
        )
    ordered = logits.sort(descending=True).values
    assert torch.equal(highest, ordered[:, 0])
    assert least[0] == ordered[0, 6]
    assert least[3] == ordered[3, -1]
    for row, (top_k, top_p, temperature) in {1: (300, 0.5, 1.0), 2: (20, 0.6, 0.5)}.items():
        shares = (ordered[row, :top_k] / temperature).double().softmax(-1)
        assert least[row] == ordered[row, int((shares.cumsum(-1) < top_p).sum())]


def test_equal_scores_are_kept_together_and_barred_tokens_never() -> None:
    scores = floats([float("-inf"), 1.0, 2.0, 2.0, 2.0, 0.0, float("-inf")])[None]
    for top_k, least in ((1, 2.0), (2, 2.0), (4, 1.0), (6, 0.0)):
        assert keep_top(scores, floats([1.0]), ints([top_k]), floats([1.0]))[1].item() == least
    neighbours = floats([1.0, 1.0 + 2**-23])[None]
    for top_k, expected in ((1, 1.0 + 2**-23), (2, 1.0)):
        assert keep_top(neighbours, floats([1.0]), ints([top_k]), floats([1.0]))[1].item() == expected
    chosen = parameters(1)
    for seed in range(40):
        keys = row_keys(np.array([seed], np.uint64), np.zeros(1, np.int32))
        own = DrawParameters(chosen.temperature, chosen.top_k, chosen.top_p, chosen.min_p, keys)
        assert 1 <= drawn(scores, own).item() <= 5


def test_a_greedy_row_takes_the_lowest_of_the_likeliest() -> None:
    logits = random(2, 3000)
    # Two of them fall to the same lane of the program, a block apart.
    logits[:, [17, 17 + BLOCK, 2900]] = 9.0
    assert drawn(logits, parameters(2), greedy=[True, True]).tolist() == [17, 17]
    with NothingIsZeroed():
        assert likeliest(logits.bfloat16()).tolist() == [17, 17]


def test_a_row_that_is_not_all_numbers_has_no_likeliest_token() -> None:
    logits = random(4, 3000)
    for row, wrong in enumerate(("nan", "inf", "-inf")):
        logits[row, 2999 - row] = float(wrong)
    found = likeliest(logits).tolist()
    assert found[:3] == [NO_TOKEN] * 3
    assert found[3] == logits[3].argmax()
