"""Which adapter a request names, in the words of SGLang and of vLLM."""

from __future__ import annotations

import msgspec

from pawl.actors.text.invalid import quoted
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.info import ServerInfo


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


def served(context: ServerContext) -> list[str]:
    """Every name under which something is served."""
    return [context.info.model_name, *context.gateway.adapters]


def under_its_name(info: ServerInfo, model: str | None, adapter: str) -> ServerInfo:
    """What replies of a request tell of the server: with an adapter they bear the name that the client used."""
    return msgspec.structs.replace(info, model_name=model) if adapter and model is not None else info
