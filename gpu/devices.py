"""Moving small arrays between host and device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` as a tensor on `device`. On the CPU it shares the array's memory where that is contiguous and writable
    (arrays of received messages are not); on CUDA the copy is asynchronous."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
