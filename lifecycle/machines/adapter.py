"""Whether requests may name an adapter."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from pawl.lifecycle.machines.base import Machine


class AdapterPhase(StrEnum):
    """Where one incarnation of an adapter is."""

    LOADING = "loading"
    """It is read for the first time, or waits for a slot."""
    READY = "ready"
    """Requests may name it. It is in a slot, or is read into one when a request needs it."""
    RESTING = "resting"
    """Others were loaded in its place: it is not listed. A request that names it makes it ready again."""
    DRAINING = "draining"
    """No request may name it any more; those that have go on to their ends."""
    GONE = "gone"
    """It is forgotten; what is loaded under its name is another incarnation."""


class AdapterEvent(StrEnum):
    """What happens to it."""

    READ = "read"
    LOADED = "loaded"
    REFUSED = "refused"
    EVICTED = "evicted"
    MADE_WAY = "made_way"
    RECALLED = "recalled"
    UNLOAD = "unload"
    UNUSED = "unused"


_p, _e = AdapterPhase, AdapterEvent
MAY_BE_NAMED = (_p.READY, _p.RESTING)
"""By a new request."""
KEEPS_SLOT = (_e.MADE_WAY, _e.RECALLED, _e.UNLOAD)
"""What changes who may name it, and not where it is."""
AdapterMove: TypeAlias = tuple[AdapterPhase, AdapterEvent, AdapterPhase, str]
_SERVED = (_p.READY, _p.RESTING, _p.DRAINING)
_MOVES: tuple[AdapterMove, ...] = (
    *((phase, _e.READ, phase, "a slot is its own, and it is read into it") for phase in (_p.LOADING, *_SERVED)),
    (_p.LOADING, _e.LOADED, _p.READY, "it fits the model, and is in its slot"),
    (_p.LOADING, _e.REFUSED, _p.GONE, "it cannot be read, or does not fit: nothing is left of it"),
    *((phase, _e.LOADED, phase, "it is in a slot again, with the content that it had") for phase in _SERVED),
    *((phase, _e.REFUSED, phase, "it cannot be read again: who waits for it ends") for phase in _SERVED),
    *((phase, _e.EVICTED, phase, "nobody is computed with it, and another needs its slot") for phase in _SERVED),
    (_p.READY, _e.MADE_WAY, _p.RESTING, "more are ready than may be, and it was used the longest time ago"),
    (_p.RESTING, _e.RECALLED, _p.READY, "a request names it, which came before its client knew, or cares for no list"),
    (_p.READY, _e.UNLOAD, _p.DRAINING, "somebody unloads it, or loads its name where not all replicas list it"),
    (_p.RESTING, _e.UNLOAD, _p.DRAINING, "so, or its name is loaded anew, or too many rest"),
    (_p.DRAINING, _e.UNUSED, _p.GONE, "the last request that named it has ended"),
)

ADAPTER: Machine[AdapterPhase, AdapterEvent] = Machine(
    "adapter",
    "Whether requests may name an adapter, for each incarnation of one: a name that is loaded again is another, and "
    "shares no page with the one before.",
    _p.LOADING,
    _MOVES,
)
