"""Names of the arrays that memory is made of."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bools: TypeAlias = NDArray[np.bool_]
Indices: TypeAlias = NDArray[np.intp]
"""Rows or slots. Of all integers numpy looks up these without converting them first, in a tenth of the time."""
Int32s: TypeAlias = NDArray[np.int32]
Int64s: TypeAlias = NDArray[np.int64]
UInt8s: TypeAlias = NDArray[np.uint8]

NO_PAGES: Int32s = np.empty(0, np.int32)
ONE = np.array(1, np.int32)
"""For sums: numpy takes twice as long with a number of Python's."""


FEW = 64
"""Numbers that are looked through in Python. Numpy finds the place of the largest in a fifth of the time that it takes
to give its value, but gives the interpreter away for that: who has waited for it keeps it for half a millisecond."""


def highest(values: NDArray[np.integer[Any]]) -> int:
    """The largest of some numbers. Raises ValueError where there are none."""
    return max(values.tolist()) if len(values) <= FEW else int(values.item(values.argmax()))


def lowest(values: NDArray[np.integer[Any]]) -> int:
    """The smallest of some numbers. Raises ValueError where there are none."""
    return min(values.tolist()) if len(values) <= FEW else int(values.item(values.argmin()))
