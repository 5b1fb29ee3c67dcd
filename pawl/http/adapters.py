"""Which adapter a request names, in the words of SGLang and of vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec

from pawl.actors.control.adapters import PATIENCE_S, LoadLora
from pawl.actors.messages.control import LATE, Reply
from pawl.actors.messages.generate import Submit
from pawl.actors.text.invalid import quoted
from pawl.http.context import ServerContext
from pawl.http.errors import Problem, status_of
from pawl.http.info import ServerInfo
from pawl.http.streams import ask
from pawl.loops.adapter import Named
from pawl.loops.orders.adapters import LoadAdapter

ROUNDS = 2
"""How often the adapters of one call are loaded again: one that comes may take the place of another."""
_LOADED = "is already loaded"
"""Of an adapter that somebody else has loaded meanwhile, which is no failure."""
_NOT_NOW = (_LOADED, "unload one first", "starvation", LATE, "is not running")
"""Words of refusals that say nothing of the adapter itself."""


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
    if model in context.gateway.adapters or model in context.gateway.resting:
        return model
    base, colon, adapter = model.partition(":")
    return adapter.strip() if colon and info.knows(base.strip()) else None


def checked(info: ServerInfo, name: str | None) -> str:
    """The name, where this server takes adapters."""
    if name and not info.max_loaded_adapters:
        text = f"adapter {quoted(name)}: adapters (LoRA) are not enabled; start the server with --enable-lora"
        raise Problem(400, text, param="lora_path")
    return name or ""


def why_no_name(info: ServerInfo, order: msgspec.Struct) -> str:
    """Why an adapter may not be called as this order has it; empty: it may, or the order loads none."""
    match order:
        case LoadAdapter(name=name) | LoadLora(lora_name=name) if info.knows(name):
            return f"{quoted(name)} is the model's own name: no request would reach the adapter"
    return ""


def not_too_many(context: ServerContext, submits: Sequence[Submit]) -> Sequence[Submit]:
    """These requests of one call. Raises Problem where some of their adapters are not listed, and all together are more
    than may be loaded."""
    names, most = {submit.adapter for submit in submits} - {""}, context.info.max_loaded_adapters
    if len(names) > most and not names.isdisjoint(context.gateway.unloaded):
        raise Problem(
            400, f"one call names {len(names)} adapters, of which {most} may be loaded at a time", "lora_path"
        )
    return submits


async def loaded_again(context: ServerContext, submits: Sequence[Submit]) -> Sequence[Submit]:
    """These requests, once the adapters that they name are there again: one that was unloaded since is read from the
    same folder, as SGLang does it. The wait lasts as long as a request may, and ends when the server drains or is lost,
    which the caller's submit then tells; a client that hangs up is noticed after it.

    Raises Problem: 400 for one that cannot be read, 408 when it takes too long, 503 when others have taken the place
    again."""
    gateway, info, names = context.gateway, context.info, {submit.adapter for submit in submits} - {""}
    if names.isdisjoint(gateway.unloaded):
        return submits
    patience_s = min([info.request_timeout_s, *(s.timeout_s for s in submits if s.timeout_s is not None)])
    try:
        async with asyncio.timeout(patience_s):
            await _load_all(context, names)
    except TimeoutError as error:
        raise Problem(408, f"the adapters were not loaded again within {patience_s:g} s", code="timeout") from error
    return submits


async def _load_all(context: ServerContext, names: set[str]) -> None:
    gateway, why = context.gateway, ""
    for _ in range(ROUNDS):
        for adapter in [adapter for name, adapter in gateway.unloaded.items() if name in names]:
            told = await _load(context, adapter)
            if gateway.lost is not None or gateway.draining:
                return
            if not told.ok and not any(words in told.message for words in _NOT_NOW):
                text = f"adapter {quoted(adapter.name)} was unloaded: {told.message}"
                raise Problem(status_of(told), text, param="lora_path")
            why = why or ("" if _LOADED in told.message else told.message)
    if not names.isdisjoint(gateway.unloaded):
        raise Problem(503, f"an adapter was unloaded: {why or 'others have taken its place'}; try again later")


def _load(context: ServerContext, adapter: Named) -> asyncio.Future[Reply]:
    """What comes of loading it again, of which all who wait for the same name are told."""
    loading = context.loading
    if adapter.name not in loading:
        loading[adapter.name] = asyncio.ensure_future(ask(partial(context.gateway.load_again, adapter, PATIENCE_S)))
        loading[adapter.name].add_done_callback(lambda _: loading.pop(adapter.name))
    return asyncio.shield(loading[adapter.name])


def served(context: ServerContext) -> list[str]:
    """Every name under which something is served."""
    return [context.info.model_name, *context.gateway.adapters]


def under_its_name(info: ServerInfo, model: str | None, adapter: str) -> ServerInfo:
    """What replies of a request tell of the server: with an adapter they bear the name that the client used."""
    return msgspec.structs.replace(info, model_name=model) if adapter and model is not None else info
