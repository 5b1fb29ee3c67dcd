"""From a configuration to loaded parts: model, vocabulary, runner, memory plan, trace. No actor runs here."""

from __future__ import annotations

import time

import structlog
import torch

from actors.text.vocabulary import Vocabulary
from gpu.devices import available_memory
from gpu.kv import MemoryPlan, plan_memory, plan_tokens
from gpu.models.config import ModelConfig
from gpu.runner import Runner
from gpu.weights.fingerprint import weights_fingerprint
from gpu.weights.source import load_weights, resolve_source
from pawl.config import ServerConfig

log = structlog.get_logger("pawl.assembly")

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DEFAULT_CHUNK = {"cpu": 512, "cuda": 8192}
"""Prompt tokens in one step: enough to keep the device busy, few enough that running requests do not wait long."""
KV_SHARE = {"cpu": 0.25, "cuda": 0.9}
"""Of the memory that is free once the weights are loaded."""
CPU_KV_LIMIT = 1 << 30
"""Bytes; a CPU server rarely needs more, and its memory is shared with everything else on the machine."""


def load_parts(config: ServerConfig) -> Parts:
    """Load the model named by the configuration.

    Raises ModelNotFound, UnsupportedModel, UnsupportedVocabulary, BackendUnavailable or KvDoesNotFit, each with a
    message for the user.
    """
    began = time.monotonic()
    check_settings(config)
    source = resolve_source(config.model)
    device = config.device
    dtype = DTYPES["bf16" if config.dtype == "auto" else config.dtype]
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    weights = load_weights(source, dtype)
    plan = _plan(config, source.config, dtype)
    loop_config = make_loop_config(
        config,
        num_pages=plan.num_pages,
        max_position=source.config.max_position,
        prefill_chunk=DEFAULT_CHUNK[device],
        weights=weights_fingerprint(source.config, weights),
    )
    runner = Runner(
        source.config,
        weights,
        num_pages=plan.num_pages,
        page_size=plan.page_size,
        num_slots=loop_config.max_running,
        max_context=loop_config.max_context,
        device=device,
        dtype=dtype,
        threads=config.threads,
        backend=config.backend,
    )
    facts = {
        "architecture": source.config.architecture,
        "device": device,
        "backend": runner.backend_name,
        "dtype": str(dtype).removeprefix("torch."),
        "kv_mib": plan.num_bytes >> 20,
    }
    return assemble(
        config,
        source=source,
        vocabulary=vocabulary,
        runner=runner,
        loop_config=loop_config,
        facts=facts,
        began=began,
    )


def _plan(config: ServerConfig, model: ModelConfig, dtype: torch.dtype, two_pools: bool) -> MemoryPlan:
    """Pages for the KV cache: what the user named, or a share of what is free."""
    chunk = _prefill_chunk(config) if two_pools else None
    if config.kv_tokens is not None:
        return plan_tokens(model, dtype, config.page_size, config.kv_tokens, chunk=chunk)
    if config.kv_memory_gb is not None:
        budget = int(config.kv_memory_gb * (1 << 30))
    else:
        budget = int(available_memory(config.device) * KV_SHARE[config.device])
        if config.device == "cpu":
            budget = min(budget, CPU_KV_LIMIT)
    return plan_memory(model, dtype, config.page_size, budget, chunk=chunk)
