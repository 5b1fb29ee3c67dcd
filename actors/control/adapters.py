"""Adapters (LoRA) that requests may name."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pawl.actors.control_row import Answer, Facts, Row, Shown, Source, Who
from pawl.actors.messages.adapters import UNREAD
from pawl.actors.messages.control import Reply
from pawl.lifecycle.states import Cause
from pawl.loops.adapters import NOT_ENABLED
from pawl.loops.orders.adapters import AdapterName, LoadAdapter, LoadNumberedAdapter, UnloadAdapter

if TYPE_CHECKING:
    from pawl.actors.gateway import Gateway

PATIENCE_S = 600.0
"""How long to wait for an adapter to be read, or for the last request that uses it to end."""

NAMES = ("x", "y", "z")
"""Of adapters that simulated clients load, unload, and ask with."""
NOWHERE = "nowhere"
PATHS = ("ghost:a", "ghost:b", "ghost:c", "ghost:d", "ghost:e", NOWHERE)


def _shown(reply: Reply, facts: Facts) -> Shown:
    """As SGLang has it."""
    loaded: dict[str, Any] = reply.body or {"loaded_adapters": {}}
    if reply.ok:
        return HTTPStatus.OK, {"success": True, **loaded}
    error = {"error_message": reply.message, "error": {"message": reply.message}}
    return HTTPStatus.BAD_REQUEST, {"success": False, **loaded, **error}


def drawn_load(source: Source, name: str = "") -> LoadAdapter:
    """What a simulated client loads."""
    return LoadAdapter(name=name or source.pick(NAMES), path=source.pick(PATHS), pinned=source.chance(0.1))


def drawn_unload(source: Source, name: str) -> tuple[LoadAdapter | UnloadAdapter, ...]:
    """The end of an adapter, after which another may have its name."""
    unload = UnloadAdapter(name)
    return (unload, drawn_load(source, name)) if source.chance(0.5) else (unload,)


_REFUSALS = (NOT_ENABLED, UNREAD, "already loaded", "unload one first", "starvation", "still being loaded")


def _check_loaded(body: LoadAdapter, reply: Reply) -> str | None:
    if reply.ok:
        return "an adapter was loaded that does not exist" if body.path == NOWHERE else None
    if body.path != NOWHERE and not any(words in reply.message for words in _REFUSALS):
        return f"the adapter exists, and was refused: {reply.message}"
    return None if reply.message else "an adapter was refused, and nobody said why"


LOAD_ADAPTER = Row(
    name="load-adapter",
    message=LoadAdapter,
    show=_shown,
    who=Who.ADMIN,
    routes=("/load_lora_adapter",),
    patience_s=PATIENCE_S,
    draw=lambda source: drawn_load(source) if source.chance(0.03) else None,
    check=_check_loaded,
    proves="adapter_references",
)

LOAD_NUMBERED_ADAPTER = Row(name="load-numbered-adapter", message=LoadNumberedAdapter, patience_s=PATIENCE_S)

UNLOAD_ADAPTER = Row(
    name="unload-adapter",
    message=UnloadAdapter,
    show=_shown,
    who=Who.ADMIN,
    routes=("/unload_lora_adapter",),
    patience_s=PATIENCE_S,
    draw=lambda source: UnloadAdapter(source.pick(NAMES)) if source.chance(0.05) else None,
    proves="adapter_references",
    ends=frozenset({Cause.INVALID}),
)


# ---- in vLLM's words ----


class LoadLora(msgspec.Struct, frozen=True, kw_only=True, tag="load_lora", forbid_unknown_fields=True):
    """The same in vLLM's words."""

    lora_name: Annotated[AdapterName, msgspec.Meta(description="what requests call it")]
    lora_path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096, description="its folder")]


class UnloadLora(msgspec.Struct, frozen=True, kw_only=True, tag="unload_lora", forbid_unknown_fields=True):
    """The same in vLLM's words."""

    lora_name: Annotated[AdapterName, msgspec.Meta(description="what requests call it")]


def load_lora(gateway: Gateway, body: LoadLora, answer: Answer) -> None:
    """Without a pin."""
    order = LoadAdapter(name=body.lora_name, path=body.lora_path)
    gateway.ask(order, _worded(body.lora_name, "added", answer), PATIENCE_S)


def unload_lora(gateway: Gateway, body: UnloadLora, answer: Answer) -> None:
    """By its name."""
    gateway.ask(UnloadAdapter(body.lora_name), _worded(body.lora_name, "removed", answer), PATIENCE_S)


def _worded(name: str, done: str, answer: Answer) -> Answer:
    text = f"Success: LoRA adapter '{name}' {done} successfully."
    return lambda reply: answer(msgspec.structs.replace(reply, message=text if reply.ok else reply.message))


def _shown_in_words(reply: Reply, facts: Facts) -> Shown:
    if reply.ok:
        return HTTPStatus.OK, reply.message
    unknown = "is not loaded" in reply.message
    return (HTTPStatus.NOT_FOUND if unknown else HTTPStatus.BAD_REQUEST), {"error": {"message": reply.message}}


LOAD_LORA = Row(
    name="load-adapter (vLLM)",
    message=LoadAdapter,
    body=LoadLora,
    at_gateway=load_lora,
    reply=str,
    show=_shown_in_words,
    who=Who.ADMIN,
    routes=("/v1/load_lora_adapter",),
    command=False,
)

UNLOAD_LORA = Row(
    name="unload-adapter (vLLM)",
    message=UnloadAdapter,
    body=UnloadLora,
    at_gateway=unload_lora,
    reply=str,
    show=_shown_in_words,
    who=Who.ADMIN,
    routes=("/v1/unload_lora_adapter",),
    command=False,
    ends=frozenset({Cause.INVALID}),
)
