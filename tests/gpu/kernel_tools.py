"""Where kernels are tested: on a device where there is one, else under Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.kernels.machine import interpreted

DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = (torch.float32, torch.bfloat16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def close(found: Tensor, expected: Tensor, steps: float = 2) -> bool:
    """Equal but for some rounding steps of the dtype."""
    epsilon = torch.finfo(found.dtype).eps if found.dtype.is_floating_point else 0.0
    if found.dtype == torch.float32:
        epsilon = 2e-6
    return torch.allclose(found.float().cpu(), expected.float().cpu(), rtol=steps * epsilon, atol=steps * epsilon)
