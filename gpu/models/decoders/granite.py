"""Granite 3 in plain torch."""

from __future__ import annotations

from torch import Tensor

from pawl.gpu.models.architectures.granite import Factors
from pawl.gpu.models.decoder import TorchDecoder


class GraniteDecoder(TorchDecoder):
    """The decoder with both factors."""

    operation = Factors

    def add(self, hidden: Tensor, delta: Tensor) -> Tensor:
        """See `TorchDecoder.add`."""
        return hidden + delta * self._factors.residual

    def score(self, normed: Tensor) -> Tensor:
        """See `TorchDecoder.score`."""
        return super().score(normed) / self._factors.logits_scaling

    @property
    def _factors(self) -> Factors:
        operation = self.config.operation
        assert isinstance(operation, Factors), "the model has no factors"
        return operation
