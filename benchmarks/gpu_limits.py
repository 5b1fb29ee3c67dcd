"""What a step must move and multiply at the least: the figures that measured times are held against. Pure arithmetic.

Reading weights, keys and values once bounds a step that decodes; multiplying bounds one that computes a prompt.
"""

from __future__ import annotations

from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.models.small import llama_config

BF16 = 2
"""Bytes."""

LLAMA_8B = llama_config(
    vocab_size=128_256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14_336,
    max_position=131_072,
    norm_epsilon=1e-5,
    rope_base=500_000.0,
)
"""The shape of Llama 3.1 8B."""


def matrix_elements(config: ModelConfig) -> int:
    """Elements of all matrices that a token is multiplied with, the head among them and the embedding not."""
    shapes = weight_shapes(config)
    total = sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) == 2)
    return total if config.tied_embeddings else total - config.vocab_size * config.hidden_size


def decode_bytes(config: ModelConfig, rows: int, context: int) -> int:
    """Bytes that a step of `rows` decoding requests reads, each with `context` tokens: matrices, keys and values."""
    kept = sum(min(context, window or context) for window in config.windows)
    return BF16 * (matrix_elements(config) + 2 * rows * kept * config.kv_size)


def attention_operations(config: ModelConfig, tokens: int) -> int:
    """Multiplications and additions of causal attention over a prompt of `tokens`, in one layer without a window."""
    return 2 * tokens * (tokens + 1) * config.query_size


def prefill_operations(config: ModelConfig, tokens: int) -> int:
    """Multiplications and additions of a prompt of `tokens`, of which the last one's scores are wanted."""
    head = config.vocab_size * config.hidden_size
    layers = matrix_elements(config) - head
    return 2 * (tokens * layers + head) + config.num_layers * attention_operations(config, tokens)


def share_of_limit(least_s: float, measured_s: float) -> float:
    """Percent of the limit that was reached."""
    return 100.0 * least_s / measured_s


def idle_share(gaps_ms: list[float], steps_ms: list[float]) -> float:
    """Percent of the time in which the device waited for the host: `gaps_ms` lie between the steps."""
    gaps = sum(max(0.0, gap) for gap in gaps_ms)
    return 100.0 * gaps / (gaps + sum(steps_ms))
