"""Qwen 1.5 and Qwen 2 with experts, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from pawl.gpu.models.architectures.qwen2_moe import DOWN, GATE, SHARE, UP, SharedExpert
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.packing import LayerWeights


class SharedExpertDecoder(TorchDecoder):
    """The decoder with the shared expert."""

    operation = SharedExpert

    def feed_forward(self, index: int, layer: LayerWeights, normed: Tensor) -> Tensor:
        """See `TorchDecoder.feed_forward`."""
        chosen = super().feed_forward(index, layer, normed)
        if not layer.own:
            return chosen
        shared = self.mlp(normed, torch.cat((layer.own[GATE], layer.own[UP])), layer.own[DOWN])
        return chosen + F.linear(normed, layer.own[SHARE]).sigmoid() * shared
