"""From a configuration to the parts of an engine whose model is an encoder: it makes vectors, and generates nothing."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from pawl.actors.names import Names
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.parts import Parts, assemble, make_loop_config
from pawl.build.tiers import wants_tiers
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.devices import available_threads
from pawl.gpu.dtypes import DTYPES, name_of
from pawl.gpu.encoder.config import encoder_config, load_encoder_weights
from pawl.gpu.encoder.model import Encoder
from pawl.gpu.encoder.runner import NAME, EncoderRunner
from pawl.gpu.pooling import Pooling
from pawl.gpu.weights.fingerprint import weights_fingerprint
from pawl.gpu.weights.pooling import folder_pooling, longest_text
from pawl.gpu.weights.report import Report

PREFILL_CHUNK = 4096
"""Tokens of one step: several prompts, as each is computed by itself anyway."""


class FolderSource(msgspec.Struct, frozen=True):
    """Where the model comes from."""

    name: str
    path: Path


def load_encoder(config: ServerConfig, path: Path, name: str, report: Report, names: Names) -> Parts:
    """The parts of an engine with the encoder in this folder. Raises what `load_parts` raises."""
    began = time.monotonic()
    _check(config)
    model = encoder_config(path)
    pooling = encoder_pooling(config, path)
    dtype = DTYPES["fp32" if config.dtype == "auto" else config.dtype]
    vocabulary = Vocabulary.load(path, model.vocab_size)
    weights = load_encoder_weights(path, model, dtype, report)
    fingerprint = weights_fingerprint(model, weights)
    context = min(model.max_position, longest_text(path) or model.max_position)
    page_size = config.page_size
    num_pages = config.max_running * -(-context // page_size)
    loop_config = make_loop_config(
        # No position of a prompt can come from a cache.
        msgspec.structs.replace(config, cache="none", eviction="lru"),
        num_pages=num_pages if config.kv_tokens is None else max(1, config.kv_tokens // page_size),
        max_position=context,
        prefill_chunk=config.prefill_chunk or PREFILL_CHUNK,
        weights=fingerprint,
    )
    encoder = Encoder(model, weights, device=config.device, threads=config.threads or available_threads())
    runner = EncoderRunner(
        encoder,
        pooling,
        num_pages=loop_config.num_pages,
        page_size=page_size,
        num_slots=loop_config.max_running,
        max_context=loop_config.max_context,
    )
    facts = {
        "architecture": "bert",
        "device": config.device,
        "backend": NAME,
        "processor": encoder.processor,
        "dtype": name_of(dtype),
        "deterministic": config.deterministic,
        "pooling": msgspec.to_builtins(pooling),
    }
    return assemble(
        config,
        source=FolderSource(name, path),
        vocabulary=vocabulary,
        runner=runner,
        loop_config=loop_config,
        facts=facts,
        began=began,
        names=names,
    )


def encoder_pooling(config: ServerConfig, path: Path) -> Pooling:
    """As the user says, else as the folder does, else the mean."""
    said = folder_pooling(path) or Pooling("mean", normalised=True)
    if config.pooling in ("auto", "on"):
        return said
    if config.pooling == "off":
        raise ConfigError("pooling: this model makes vectors and nothing else", "pooling")
    return msgspec.structs.replace(said, kind=config.pooling)


def _check(config: ServerConfig) -> None:
    """Raises ConfigError for settings that mean nothing to an encoder."""
    if config.backend not in ("auto", "torch"):
        raise ConfigError(f"backend: plain torch computes encoders, {config.backend} does not", "backend")
    if config.weights != "auto":
        raise ConfigError("weights: those of an encoder have its dtype", "weights")
    if config.hybrid_pools == "on":
        raise ConfigError("hybrid_pools: an encoder has no keys and values", "hybrid_pools")
    if config.enable_lora or config.lora_paths:
        raise ConfigError("enable_lora: an encoder takes no adapters (LoRA)", "enable_lora")
    if wants_tiers(config):
        text = "host_cache_gb and storage_dir keep keys and values, and an encoder has none"
        raise ConfigError(text, "host_cache_gb")
