"""What a row of logits is drawn by."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.step import Float32s, Int32s

WIDE = 1024
"""Tokens among which top-p looks first: few of them hold most of the mass."""


@dataclass(frozen=True, eq=False)
class DrawParameters:
    """Parameters of n rows, on the host."""

    temperature: Float32s
    """> 0."""
    top_k: Int32s
    """0: off."""
    top_p: Float32s
    min_p: Float32s
    keys: Int32s
    """[n, 2] of `pawl.gpu.sampling.mixing.row_keys`."""

    def of(self, rows: NDArray[np.intp]) -> DrawParameters:
        """Those of some rows."""
        return DrawParameters(*(getattr(self, field.name)[rows] for field in fields(self)))
