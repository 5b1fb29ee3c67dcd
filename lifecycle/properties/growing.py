"""Arrays that grow with the rows and tokens that records name."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.records import Int32s

AnyArray = TypeVar("AnyArray", bound=NDArray[Any])


def fitted(array: AnyArray, size: int) -> AnyArray:
    """`array`, or a longer copy that is zero at its end and has at least `size` entries."""
    if len(array) >= size:
        return array
    longer = np.zeros(max(size, 2 * len(array)), array.dtype)
    longer[: len(array)] = array
    return longer  # type: ignore[return-value]  # numpy does not know that the dtype is the same


def roomy(matrix: Int32s, rows: int, columns: int) -> Int32s:
    """`matrix`, or a larger copy, zero where it is new."""
    shape = max(rows, matrix.shape[0]), max(columns, matrix.shape[1])
    if shape == matrix.shape:
        return matrix
    larger = np.zeros(shape, np.int32)
    larger[: matrix.shape[0], : matrix.shape[1]] = matrix
    return larger
