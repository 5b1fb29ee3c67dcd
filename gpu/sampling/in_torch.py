"""The operations of the sampler in PyTorch, on any device."""

from __future__ import annotations

import torch

from pawl.gpu.sampling.masking import apply_masks
from pawl.gpu.sampling.penalties import TorchPenalties
from pawl.gpu.sampling.scores import finite_rows, score
from pawl.gpu.sampling.truncation import draw

__all__ = ["apply_masks", "draw", "finite_rows", "make_penalties", "score"]


def make_penalties(vocab_size: int, num_slots: int, device: torch.device) -> TorchPenalties:
    """See `Operations.make_penalties`."""
    return TorchPenalties(vocab_size, num_slots, device)
