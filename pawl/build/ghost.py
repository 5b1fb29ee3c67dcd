"""`--model ghost`: an engine without a model, for testing clients, schedulers and servers. Starts without PyTorch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from pawl.actors.names import NAMES, Names
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.build.grammars import make_grammars
from pawl.build.parts import Parts, assemble, check_settings, make_loop_config
from pawl.build.roles import num_places
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.ghost.language import MAX_POSITION
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.properties.start import GHOST

KV_TOKENS = 1 << 20
"""Unless the user says otherwise; 16 bytes each."""
PREFILL_CHUNK = 512
"""Prompt tokens in one step: a fraction of a millisecond, and some where each is scored."""
PAGE_BYTES_PER_TOKEN = 16
_MEANINGLESS = {
    "device": "cpu",
    "dtype": "auto",
    "weights": "auto",
    "backend": "auto",
    "threads": None,
    "pooling": "auto",
} | {
    "max_lora_rank": None,
    "lora_target_modules": (),
    "tp": 1,
    "pp": 1,
    "ep": 1,
    "enable_eplb": False,
    "ep_num_redundant_experts": 0,
}
"""Settings of the arithmetic, which a ghost has none of, with the one value each may have."""


class GhostSource(NamedTuple):
    """Where a ghost comes from."""

    name: str = GHOST
    path: Path = Path(GHOST)


def load_ghost(config: ServerConfig, names: Names = NAMES) -> Parts:
    """An engine's parts with a ghost as its model. Raises ConfigError for settings that mean nothing to it."""
    began = time.monotonic()
    check_settings(config)
    for name, only in _MEANINGLESS.items():
        if (value := getattr(config, name)) != only:
            raise ConfigError(f"{name}: the ghost computes no model, and on the CPU only; it takes no {value!r}", name)
    loop_config = make_loop_config(
        config,
        num_pages=_num_pages(config),
        max_position=MAX_POSITION,
        prefill_chunk=config.prefill_chunk or PREFILL_CHUNK,
        weights=GHOST,
    )
    vocabulary = ghost_vocabulary()
    grammars = make_grammars(config.grammar_backend, vocabulary)
    return assemble(
        config,
        source=GhostSource(),
        vocabulary=vocabulary,
        grammars=grammars,
        runner=Ghost.for_shape(loop_config, grammars=grammars),
        loop_config=loop_config,
        facts={"device": config.device, "backend": GHOST},
        began=began,
        names=names,
    )


def _num_pages(config: ServerConfig) -> int:
    if config.kv_tokens is None and config.kv_memory_gb is not None:
        num_pages = int(config.kv_memory_gb * (1 << 30)) // (PAGE_BYTES_PER_TOKEN * config.page_size)
        if not num_pages:
            raise ConfigError(f"kv_memory_gb: {config.kv_memory_gb} GiB do not hold one page", "kv_memory_gb")
        return num_pages
    return max(1, (config.kv_tokens or KV_TOKENS // num_places(config)) // config.page_size)
