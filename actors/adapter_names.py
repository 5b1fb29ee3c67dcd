"""Which adapters requests may name, as the gateway knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pawl.actors.messages.generate import Refused, Submit
from pawl.actors.text.invalid import quoted
from pawl.lifecycle.states import Cause
from pawl.loops.adapter import Named

MOST_UNLOADED = 1024
"""Adapters that are remembered when they are unloaded."""


def renamed(
    adapters: Mapping[str, Named], unloaded: Mapping[str, Named], now: Iterable[Named]
) -> tuple[dict[str, Named], dict[str, Named]]:
    """(those that may be named by their names, the last that bore a name that none has any more; the one that lost it
    last at the end), where `adapters` and `unloaded` were those before."""
    loaded = {adapter.name: adapter for adapter in now}
    lost = {name: adapter for name, adapter in adapters.items() if name not in loaded}
    kept = {name: adapter for name, adapter in unloaded.items() if name not in loaded}
    return loaded, dict([*kept.items(), *lost.items()][-MOST_UNLOADED:])


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
