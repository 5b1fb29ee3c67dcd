"""Adapters (LoRA), as the settings have them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from pawl.actors.control.adapters import LOAD_ADAPTER
from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.config import ConfigError, ServerConfig
from pawl.loops.orders.adapters import LoadAdapter

MAX_LOADED = 1024
"""Unless the user says otherwise: beyond the slots an adapter takes no memory."""


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    """An adapter in JSON: SGLang's names of its fields, or vLLM's."""

    lora_name: str = ""
    lora_path: str = ""
    pinned: bool = False
    name: str = ""
    path: str = ""


def lora_settings(config: ServerConfig) -> dict[str, Any]:
    """Slots, and how many adapters may be loaded, as `LoopConfig` has them. Raises ConfigError where settings do not go
    together."""
    if not (config.enable_lora or config.lora_paths):
        return {}
    most = MAX_LOADED if config.max_loaded_loras is None else config.max_loaded_loras
    if most < config.max_loras_per_batch and config.max_loaded_loras is not None:
        raise ConfigError(
            f"max_loaded_loras: at least max_loras_per_batch, which is {config.max_loras_per_batch}, not {most}",
            "max_loaded_loras",
        )
    adapters_at_start(config)
    return {"max_loras": config.max_loras_per_batch, "max_loaded_loras": most}


def targets_of(config: ServerConfig) -> tuple[str, ...]:
    """Modules that adapters may change; empty: all."""
    return () if "all" in config.lora_target_modules else config.lora_target_modules


def adapters_at_start(config: ServerConfig) -> list[LoadAdapter]:
    """What to load before serving. Raises ConfigError."""
    orders = [_load(text) for text in config.lora_paths]
    taken = {config.model, Path(config.model).name, *config.served_model_name}
    for order in orders:
        if order.name in taken:
            text = f"lora_paths: {order.name} is the model's own name: no request would reach the adapter"
            raise ConfigError(text, "lora_paths")
    return orders


async def load_adapters(gateway: Gateway, config: ServerConfig) -> None:
    """Load the adapters that the configuration names, one after the other. On the gateway's loop. Raises ConfigError
    for one that cannot be."""
    for order in adapters_at_start(config):
        reply = await _answer(gateway, order)
        if not reply.ok:
            raise ConfigError(f"lora_paths: {order.name}: {reply.message}", "lora_paths")


async def _answer(gateway: Gateway, order: LoadAdapter) -> Reply:
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def told(reply: Reply) -> None:
        if not answer.done():  # the server may have been stopped meanwhile
            answer.set_result(reply)

    LOAD_ADAPTER.put(gateway, order, told)
    return await answer


def _load(text: str) -> LoadAdapter:
    """NAME=FOLDER, a folder that is its own name, or a JSON object."""
    if text.startswith("{"):
        try:
            told = msgspec.json.decode(text, type=_Told)
        except msgspec.DecodeError as error:
            raise ConfigError(f"lora_paths: {error}: {text}", "lora_paths") from error
        name, path, pinned = told.lora_name or told.name, told.lora_path or told.path, told.pinned
    else:
        name, equals, path = text.partition("=")
        path, pinned = path if equals else name, False
    if not name or not path:
        raise ConfigError(f"lora_paths: NAME=FOLDER, not {text!r}", "lora_paths")
    return LoadAdapter(name=name, path=path, pinned=pinned)
