"""Which adapter a request names, in the words of SGLang and of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from pawl.actors.control.adapters import PATIENCE_S
from pawl.actors.messages.generate import Submit
from pawl.actors.text.invalid import quoted
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.info import ServerInfo
from pawl.http.streams import ask
from pawl.loops.orders.adapters import LoadAdapter


def adapter_of(context: ServerContext, model: str | None, lora_path: str | None = None) -> str:
    """Name of the adapter for a request to `model`: that behind a colon (`base:adapter`), or `model` itself where an
    adapter is called so, else `lora_path`; empty: none. Refuses a model that is not served here."""
    info = context.info
    named = split_model(context, model)
    if named is None:
        text = f"the model {quoted(model or '')} does not exist here; this server has {', '.join(served(context))}"
        raise Problem(404, text, param="model", code="model_not_found")
    return checked(info, named or lora_path or "")


def split_model(context: ServerContext, model: str | None) -> str | None:
    """The adapter that a model's name asks for, empty: none; None where there is no such model."""
    info = context.info
    if model is None or info.knows(model):
        return ""
    if model in context.gateway.adapters:
        return model
    base, colon, adapter = model.partition(":")
    return adapter.strip() if colon and info.knows(base.strip()) else None


def checked(info: ServerInfo, name: str | None) -> str:
    """The name, where this server takes adapters."""
    if name and not info.takes_adapters:
        text = f"adapter {quoted(name)}: adapters (LoRA) are not enabled; start the server with --enable-lora"
        raise Problem(400, text, param="lora_path")
    return name or ""


async def loaded_again(context: ServerContext, submits: Sequence[Submit]) -> Sequence[Submit]:
    """These requests, once the adapters that they name are there again: one that was unloaded since is read from the
    same folder, as SGLang does it. Raises Problem where it cannot be."""
    gateway, names = context.gateway, {submit.adapter for submit in submits}
    for _ in names:  # one that comes may take the place of another
        if names.isdisjoint(gateway.unloaded):
            break
        async with context.loading:
            for adapter in [adapter for name, adapter in gateway.unloaded.items() if name in names]:
                order = LoadAdapter(name=adapter.name, path=adapter.source, pinned=adapter.pinned)
                told = await ask(partial(gateway.ask, order, timeout_s=PATIENCE_S))
                if not told.ok:
                    raise Problem(400, f"adapter {quoted(adapter.name)} was unloaded: {told.message}", "lora_path")
    return submits


def served(context: ServerContext) -> list[str]:
    """Every name under which something is served."""
    return [context.info.model_name, *context.gateway.adapters]


def under_its_name(info: ServerInfo, model: str | None, adapter: str) -> ServerInfo:
    """What replies of a request tell of the server: with an adapter they bear the name that the client used."""
    return msgspec.structs.replace(info, model_name=model) if adapter and model is not None else info
