"""Which adapters requests may name, as the gateway knows them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from pawl.actors.messages.generate import Refused, Submit
from pawl.actors.text.invalid import quoted
from pawl.lifecycle.states import Cause
from pawl.loops.adapter import Named, already_loaded, still_loading
from pawl.loops.orders.adapters import LoadAdapter, UnloadAdapter

MOST_UNLOADED = 1024
"""Adapters that are remembered when they are unloaded."""


def renamed(
    adapters: Mapping[str, Named], unloaded: Mapping[str, Named], now: Iterable[Named], resting: Iterable[Named] = ()
) -> tuple[dict[str, Named], dict[str, Named]]:
    """(those that are listed by their names, the last that bore a name that none of these has; the one that lost it
    last at the end), where `adapters` and `unloaded` were those before. Those `resting` may never have been listed by
    all replicas at one time."""
    loaded = {adapter.name: adapter for adapter in now}
    lost = {name: adapter for name, adapter in adapters.items() if name not in loaded}
    rest = {adapter.name: adapter for adapter in resting}
    others = {name: adapter for name, adapter in {**unloaded, **lost}.items() if name not in rest} | rest
    kept = [(name, adapter) for name, adapter in others.items() if name not in loaded]
    return loaded, dict(kept[-MOST_UNLOADED:])


def not_now(order: msgspec.Struct, under_way: Collection[msgspec.Struct], listed: Iterable[Named]) -> str:
    """Why the router gives this order about an adapter to no replica; empty: it does. Each replica would refuse a load
    whose name it lists, but not all may list the same: `listed` are those that all do. `under_way`: orders that not all
    have carried out yet, after which they may be at odds."""
    match order:
        case LoadAdapter(name=name):
            unloads = any(isinstance(each, UnloadAdapter) and each.name == name for each in under_way)
            if _loads(name, under_way) or (not unloads and any(each.name == name for each in listed)):
                return already_loaded(name)
        case UnloadAdapter(name) if _loads(name, under_way):
            return still_loading(name)
    return ""


def _loads(name: str, under_way: Collection[msgspec.Struct]) -> bool:
    return any(isinstance(each, LoadAdapter) and each.name == name for each in under_way)


def unknown_adapter(
    submits: Sequence[Submit], adapters: Mapping[str, Named], unloaded: Mapping[str, Named]
) -> Refused | None:
    """The refusal of a call in which a request names an adapter that it may not. Of those that are `unloaded` some only
    rest: the scheduler knows which."""
    named = (submit.adapter for submit in submits if submit.adapter)
    unknown = [name for name in named if name not in adapters and name not in unloaded]
    if not unknown:
        return None
    text = (
        f"adapter {quoted(unknown[0])} is not loaded, or has never been loaded; loaded: {', '.join(adapters) or 'none'}"
    )
    return Refused(0, Cause.INVALID, text, param="lora_path")
