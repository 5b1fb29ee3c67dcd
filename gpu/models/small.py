"""Models of any size with random weights, for whoever measures or checks and needs no answers that make sense."""

from __future__ import annotations

import torch
from torch import Tensor

from pawl.gpu.dtypes import Dtype, torch_dtype
from pawl.gpu.models.config import ModelConfig, Rope, weight_shapes
from pawl.gpu.weights.checks import is_norm


def llama_config(
    *,
    vocab_size: int = 101,
    hidden_size: int = 48,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    intermediate_size: int = 80,
    max_position: int = 256,
    norm_epsilon: float = 1e-6,
    rope_base: float = 10_000.0,
) -> ModelConfig:
    """A Llama of these sizes: every layer sees everything, and no switch is on."""
    return ModelConfig(
        architecture="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_position=max_position,
        norm_epsilon=norm_epsilon,
        rope=Rope(rope_base),
        windows=(None,) * num_layers,
        query_scale=head_dim**-0.5,
    )


def random_weights(config: ModelConfig, dtype: Dtype, seed: int = 0) -> dict[str, Tensor]:
    """Every weight of the model on the CPU, the same for the same seed: matrices of unit gain and small biases in
    `dtype`, norms float32 around 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if is_norm(name):
            weights[name] = 1 + 0.2 * noise
        else:
            weights[name] = (noise * (shape[1] ** -0.5 if len(shape) == 2 else 0.3)).to(torch_dtype(dtype))
    return weights
