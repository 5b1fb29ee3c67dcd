"""What an encoder looks like (BERT, Devlin et al. 2019): its numbers, its weights, and how its folder says them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import FLOAT32, Dtype, converted, dtype_of
from pawl.gpu.models.config import MOST_LAYERS
from pawl.gpu.models.facts import Facts
from pawl.gpu.weights.checks import check_names
from pawl.gpu.weights.finite import check_finite
from pawl.gpu.weights.report import Report, unheard
from pawl.gpu.weights.safetensors import FolderError, read_tensors, weight_files
from pawl.gpu.weights.strangers import read_object, reading

MODEL_TYPES = frozenset({"bert"})
_ACTIVATIONS = {"gelu": False, "gelu_new": True, "gelu_pytorch_tanh": True}
"""Name -> whether it is the tanh form of GELU."""
_PREFIX = "bert."
_UNUSED = ("pooler.", "cls.", "embeddings.position_ids")
"""Tensors of checkpoints that no hidden state depends on."""


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes and switches of one encoder.

    x = norm(words + positions + types[0])
    for each layer:
        x = norm(x + output( attention( q, k, v of x ) ))      every position sees every other
        x = norm(x + down( gelu( up(x) ) ))
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position: int
    num_types: int
    norm_epsilon: float
    tanh: bool
    """GELU in its tanh form."""


def is_encoder(path: Path) -> bool:
    """Whether a model that was found is one of these."""
    file = path / "config.json"
    return file.is_file() and read_object(file, partial(FolderError, path)).get("model_type") in MODEL_TYPES


def encoder_config(folder: Path) -> EncoderConfig:
    """The encoder that `config.json` describes. Raises FolderError or UnsupportedModel."""
    refusal = partial(FolderError, folder)
    values = read_object(folder / "config.json", refusal)
    with reading("config.json", refusal):
        return _config(values)


def _config(values: Mapping[str, Any]) -> EncoderConfig:
    facts = Facts(str(values.get("model_type")), values)
    for key, off in (("is_decoder", (None, False)), ("position_embedding_type", (None, "absolute"))):
        if values.get(key) not in off:
            raise facts.refuse(f"{key} is {str(values[key])[:60]!r}, which is not supported")
    hidden, heads = facts.whole("hidden_size"), facts.whole("num_attention_heads")
    if hidden % heads:
        raise facts.refuse(f"{hidden} numbers over {heads} heads")
    activation = facts.word("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise facts.refuse(f"activation {activation[:60]!r}; known: {', '.join(_ACTIVATIONS)}")
    return EncoderConfig(
        vocab_size=facts.whole("vocab_size"),
        hidden_size=hidden,
        num_layers=facts.whole("num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        intermediate_size=facts.whole("intermediate_size"),
        max_position=facts.whole("max_position_embeddings"),
        num_types=facts.whole("type_vocab_size", 2),
        norm_epsilon=facts.number("layer_norm_eps", 1e-12),
        tanh=_ACTIVATIONS[activation],
    )


def weight_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every weight under its name in a BertModel's checkpoint; matrices are [outputs, inputs]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position, hidden),
        "embeddings.token_type_embeddings.weight": (config.num_types, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for layer in range(config.num_layers):
        shapes |= {f"encoder.layer.{layer}.{name}": shape for name, shape in _layer_shapes(hidden, inner)}
    return shapes


def _layer_shapes(hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    products = {
        **{f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")},
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for name, shape in products.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        yield f"{name}.weight", (hidden,)
        yield f"{name}.bias", (hidden,)


def load_encoder_weights(
    folder: Path, config: EncoderConfig, dtype: Dtype, report: Report = unheard
) -> dict[str, NDArray[Any]]:
    """Every weight in `dtype`, norms in float32. Raises FolderError, NotFinite, or WeightMismatch when names or shapes
    are not what `config` needs."""
    expected, weights = weight_shapes(config), dict[str, NDArray[Any]]()
    for path in weight_files(folder):
        for stored, tensor in read_tensors(path):
            name = stored.removeprefix(_PREFIX)
            if not name.startswith(_UNUSED):
                weights[name] = np.array(converted(tensor, FLOAT32 if "LayerNorm" in name else dtype_of(dtype)))
            report(len(weights) / len(expected))
    check_names(folder, expected, {name: weight.shape for name, weight in weights.items()})
    check_finite(folder, weights)
    return weights
