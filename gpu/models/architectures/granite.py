"""Granite 3: a Llama with four factors. Those of embeddings and attention are switches that others have too; those of
the residual and of the logits are an operation of its own."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from pawl.gpu.models.architectures.base import Architecture, GgufRow
from pawl.gpu.models.config import ModelConfig, Operation
from pawl.gpu.models.facts import Facts


class Factors(Operation, frozen=True):
    """hidden + residual * delta; logits / logits_scaling."""

    what: ClassVar[str] = "factors of the residual and of the logits"
    residual: float
    logits_scaling: float


def _with_factors(
    config: ModelConfig, *, embedding: float, attention: float, residual: float, logits: float
) -> ModelConfig:
    plain = residual == logits == 1.0
    return msgspec.structs.replace(
        config,
        embedding_scale=embedding,
        query_scale=attention,
        operation=None if plain else Factors(residual, logits),
    )


def _refine(facts: Facts, config: ModelConfig) -> ModelConfig:
    return _with_factors(
        config,
        embedding=facts.number("embedding_multiplier", 1.0),
        attention=facts.number("attention_multiplier", 1.0),
        residual=facts.number("residual_multiplier", 1.0),
        logits=facts.number("logits_scaling", 1.0),
    )


def _refine_gguf(facts: Facts, config: ModelConfig) -> ModelConfig:
    return _with_factors(
        config,
        embedding=facts.number("embedding_scale", 1.0),
        attention=facts.number("attention.scale", config.query_scale),
        residual=facts.number("residual_scale", 1.0),
        logits=facts.number("logit_scale", 1.0),
    )


GRANITE = Architecture(
    name="granite",
    model_type="granite",
    refine=_refine,
    gguf=GgufRow(name="granite", refine=_refine_gguf, interleaved=True),
    decoder="granite:GraniteDecoder",
)
