"""Planted violations of what adapters owe to requests."""

from __future__ import annotations

import msgspec

from pawl.lifecycle.machines.adapter import ADAPTER, KEEPS_SLOT, AdapterEvent, AdapterPhase
from pawl.lifecycle.records import AdapterMoved, Delivered, Record, Submitted
from tests.lifecycle.canaries import STORY, Canary
from tests.lifecycle.canaries_shared import planted
from tests.lifecycle.story import LOOP, changed

_p, _e = AdapterPhase, AdapterEvent
_READY = (_e.READ, _e.LOADED)


def moves(*events: AdapterEvent, number: int = 1, slot: int = 1, fingerprint: str = "f") -> list[Record]:
    """An adapter from its loading on, as its table says."""
    found: list[Record] = []
    phase = ADAPTER.start
    for event in events:
        target = ADAPTER.next(phase, event)
        has_slot = event in (_e.READ, _e.LOADED, *KEEPS_SLOT)
        place, content = slot if has_slot else 0, "" if event is _e.READ and phase is _p.LOADING else fingerprint
        found.append(AdapterMoved(number, "a", phase, event, target, place, content, 1.0))
        phase = target
    return found


def named(*events: AdapterEvent, then: tuple[Record, ...] = ()) -> list[Record]:
    """The story, its first request naming an adapter that has come so far by then; `then` after its last commit."""
    at = STORY.labels["submitted 1"]
    submitted = STORY.records[at]
    assert isinstance(submitted, Submitted)
    first = msgspec.structs.replace(submitted, namespace="adapter=1.f")
    end = STORY.labels["commit 2"] + 1
    return [*STORY.records[:at], *moves(*events), first, *STORY.records[at + 1 : end], *then, *STORY.records[end:]]


def too_many() -> list[Record]:
    """Two adapters are loaded where one may be."""
    records = changed(STORY, "started", config={"backend": "native", "loop": {**LOOP, "max_loaded_loras": 1}})
    at = STORY.labels["commit 2"] + 1
    return [*records[:at], *moves(*_READY), *moves(*_READY, number=2, slot=2), *records[at:]]


LET_GO = Delivered("unload_adapter", {"lora_name": "a"}, 0, 1.0)
PINNED = Delivered("load_adapter", {"lora_name": "a", "lora_path": "x", "pinned": True}, 0, 1.0)
ADAPTER_CANARIES: dict[str, Canary] = {
    "a request with an adapter that is not read": Canary(
        "adapter_references", named(_e.READ), "it names adapter 1, which is neither ready nor rests"
    ),
    "an admission whose adapter is in no slot": Canary(
        "adapter_references", named(*_READY, _e.EVICTED), "its adapter 1 is in no slot"
    ),
    "an adapter that leaves its slot under a request": Canary(
        "adapter_references", named(*_READY, then=tuple(moves(*_READY, _e.EVICTED)[-1:])), "leaves its slot"
    ),
    "an unload that does not wait": Canary(
        "adapter_references",
        named(*_READY, then=(LET_GO, *moves(*_READY, _e.UNLOAD, _e.UNUSED)[-2:])),
        "unused: adapter 1 .'a'. leaves its slot, and a request needs it",
    ),
    "an adapter that comes back from the dead": Canary(
        "adapter_references",
        planted("commit 2", *moves(*_READY), LET_GO, *moves(*_READY, _e.UNLOAD, _e.UNUSED)[-2:], *moves(_e.READ)),
        "read takes adapter 1 .'a'. from loading to loading; it is gone",
    ),
    "two adapters in one slot": Canary(
        "adapter_references", planted("commit 2", *moves(*_READY), *moves(_e.READ, number=2)), "and so has another"
    ),
    **{
        f"an adapter that is pinned and is {event}": Canary(
            "adapter_references",
            planted("commit 2", PINNED, *moves(*_READY, event)),
            f"{event}: adapter 1 .'a'. is pinned, and makes way for another",
        )
        for event in (_e.EVICTED, _e.MADE_WAY)
    },
    "an adapter that leaves its slot before one that was used earlier": Canary(
        "adapter_references",
        planted("commit 2", *moves(*_READY), *moves(*_READY, _e.EVICTED, number=2, slot=2)),
        "evicted: adapter 2 .'a'. makes way, and adapter 1 was used a longer time ago",
    ),
    "an adapter that rests before one that was used earlier": Canary(
        "adapter_references",
        planted("commit 2", *moves(*_READY), *moves(*_READY, _e.MADE_WAY, number=2, slot=2)),
        "made_way: adapter 2 .'a'. makes way, and adapter 1 was used a longer time ago",
    ),
    "an adapter that is recalled and counts as used when it was loaded": Canary(
        "adapter_references",
        planted(
            "commit 2",
            *moves(*_READY, _e.MADE_WAY),
            *moves(*_READY, number=2, slot=2),
            *moves(*_READY, _e.MADE_WAY, _e.RECALLED, _e.MADE_WAY)[-2:],
        ),
        "made_way: adapter 1 .'a'. makes way, and adapter 2 was used a longer time ago",
    ),
    "an unload that nobody has asked for": Canary(
        "adapter_references",
        planted("commit 2", *moves(*_READY, _e.UNLOAD)),
        "unload: adapter 1 .'a'. is ready, and nobody has asked to unload it",
    ),
    "more adapters than may be loaded": Canary(
        "adapter_references", too_many(), "adapters .1, 2. are ready, and 1 may be"
    ),
    "an adapter whose content changes": Canary(
        "adapter_references",
        planted("commit 2", *moves(*_READY, _e.EVICTED, _e.READ), *moves(*_READY, _e.LOADED, fingerprint="g")[-1:]),
        "adapter 1 .'a'. is 'g'; it was 'f'",
    ),
}
