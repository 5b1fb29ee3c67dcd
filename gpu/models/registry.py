"""The architectures that can be served: a row for each, and how a model finds its own."""

from __future__ import annotations

from pawl.gpu.models.architectures.base import Architecture
from pawl.gpu.models.architectures.gemma3 import GEMMA3
from pawl.gpu.models.architectures.granite import GRANITE
from pawl.gpu.models.architectures.llama import LLAMA, MISTRAL, MIXTRAL
from pawl.gpu.models.architectures.phi3 import PHI3
from pawl.gpu.models.architectures.qwen import QWEN2, QWEN3, QWEN3_MOE
from pawl.gpu.models.architectures.qwen2_moe import QWEN2_MOE
from pawl.gpu.models.config import ModelConfig, UnsupportedModel
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
    return TorchDecoder if config.operation is None else of_config(config).decoder


def _found(rows: dict[str, Architecture], name: str, kind: str) -> Architecture:
    if name not in rows:
        raise UnsupportedModel(name[:60], f"unknown architecture; known {kind}: {', '.join(sorted(rows))}")
    return rows[name]
