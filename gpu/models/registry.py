"""The architectures that can be served: a row for each, and how a model finds its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from pawl.gpu.models.architectures.base import Architecture
from pawl.gpu.models.architectures.gemma3 import GEMMA3
from pawl.gpu.models.architectures.granite import GRANITE
from pawl.gpu.models.architectures.llama import LLAMA, MISTRAL, MIXTRAL
from pawl.gpu.models.architectures.phi3 import PHI3
from pawl.gpu.models.architectures.qwen import QWEN2, QWEN3, QWEN3_MOE
from pawl.gpu.models.architectures.qwen2_moe import QWEN2_MOE
from pawl.gpu.models.config import ModelConfig, UnsupportedModel

if TYPE_CHECKING:
    from pawl.gpu.models.decoder import TorchDecoder

ARCHITECTURES = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, GEMMA3, GRANITE, PHI3)

_BY_NAME = {row.name: row for row in ARCHITECTURES}
_BY_MODEL_TYPE = {row.model_type: row for row in ARCHITECTURES}
_BY_GGUF = {row.gguf.name: row for row in ARCHITECTURES if row.gguf is not None}


def by_model_type(model_type: str) -> Architecture:
    """The row for the `model_type` of a config.json. Raises UnsupportedModel."""
    return _found(_BY_MODEL_TYPE, model_type, "model types")


def by_gguf(architecture: str) -> Architecture:
    """The row for the `general.architecture` of a GGUF file. Raises UnsupportedModel."""
    return _found(_BY_GGUF, architecture, "GGUF architectures")


def of_config(config: ModelConfig) -> Architecture:
    """The row that a configuration was read by."""
    return _BY_NAME[config.architecture]


def torch_decoder(config: ModelConfig) -> type[TorchDecoder]:
    """What computes the model in plain torch."""
    from pawl.gpu.models.decoder import TorchDecoder

    return TorchDecoder if config.operation is None else decoder_of(of_config(config))


def decoder_of(row: Architecture) -> type[TorchDecoder]:
    """What computes all models of an architecture in plain torch."""
    from pawl.gpu.models.decoder import TorchDecoder

    module, _, name = row.decoder.partition(":")
    if not module:
        return TorchDecoder
    return cast("type[TorchDecoder]", getattr(importlib.import_module(f"pawl.gpu.models.decoders.{module}"), name))


def _found(rows: dict[str, Architecture], name: str, kind: str) -> Architecture:
    if name not in rows:
        raise UnsupportedModel(name[:60], f"unknown architecture; known {kind}: {', '.join(sorted(rows))}")
    return rows[name]
