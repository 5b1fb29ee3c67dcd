"""The matrix product is right, and a row's bits are its own: whatever rows, and how many, are beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pawl.gpu.kernels import matmul as matmul_file
from pawl.gpu.kernels.machine import INTERPRETED_PROCESSORS
from pawl.gpu.kernels.matmul import COLUMN_BLOCK, FEW_ROWS, matmul
from tests.gpu.kernel_tools import DTYPES, NothingIsZeroed, random

pytestmark = pytest.mark.usefixtures("sums_in_order")


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with NothingIsZeroed():
        return matmul(rows, weight, bias=bias)


def check_rows(counts: list[int], columns: int, inner: int, dtype: torch.dtype) -> None:
    """Batches of `counts` rows, the first of which is the largest, against float64; then each against the first."""
    wider = random(counts[0], inner + 8, dtype=dtype)
    rows, weight, bias = wider[:, :inner], random(columns, inner, dtype=dtype, seed=1), random(columns, dtype=dtype)
    whole = multiply(rows, weight, bias)
    expected = rows.double() @ weight.double().T + bias.double()
    limit = (3e-6 if dtype == torch.float32 else 5e-3) * inner**0.5
    assert torch.allclose(whole.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=limit)
    for count in counts[1:]:
        assert torch.equal(multiply(rows[-count:], weight, bias), whole[-count:])
    assert torch.equal(multiply(rows.flip(0), weight, bias), whole.flip(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("chunk", "inner"), [(64, 150), (128, 192)])
def test_a_row_has_the_same_bits_in_every_batch(
    chunk: int, inner: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul_file, "CHUNK", chunk)
    # The largest has more tiles than there are processors, and taller ones; the others are added up by a second kernel.
    counts = [140, 64, 1]
    assert 2 * 2 > INTERPRETED_PROCESSORS > 2
    assert FEW_ROWS == 64
    check_rows(counts, COLUMN_BLOCK + 9, inner, dtype)


def test_a_matrix_that_fits_its_tiles_is_multiplied_whole() -> None:
    check_rows([64, 3], COLUMN_BLOCK, 64, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "inner"), [(4096, 4096), (6144, 4096), (4096, 14336), (576, 1536), (1000, 77)])
def test_large_products_have_the_same_bits_in_every_batch(columns: int, inner: int, dtype: torch.dtype) -> None:
    check_rows([8192, 4097, 300, 129, 128, 64, 7, 1], columns, inner, dtype)


def test_without_bias_nothing_is_added() -> None:
    rows, weight = random(2, 10), random(3, 10, seed=1)
    assert torch.allclose(multiply(rows, weight), rows @ weight.T, atol=1e-5)
    assert multiply(rows[:0], weight).shape == (0, 3)
