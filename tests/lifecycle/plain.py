"""All that an object keeps as plain values: to be compared, or kept as a digest."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle.records import ENCODER, RECORD_TYPES

_PLAIN = frozenset({type(None), bool, float, str, bytes})


def plain(thing: Any, above: tuple[int, ...] = ()) -> Any:
    """All that a thing keeps, and what it keeps keeps, as values that msgpack can hold."""
    kind = type(thing)
    if kind in _PLAIN:
        return thing
    if kind is int:
        return thing if abs(thing) < 1 << 63 else str(thing)
    if kind in RECORD_TYPES:
        return ENCODER.encode(thing)
    if isinstance(thing, np.ndarray | np.generic):
        return thing.dtype.str, thing.shape, thing.tobytes()
    if isinstance(thing, dict):
        return [(plain(key, above), plain(value, above)) for key, value in thing.items()]
    if isinstance(thing, set | frozenset):
        return sorted(repr(plain(each, above)) for each in thing)
    if isinstance(thing, list | tuple | deque):
        return [plain(each, above) for each in thing]
    if isinstance(thing, msgspec.Struct):
        return kind.__name__, [plain(getattr(thing, name), above) for name in thing.__struct_fields__]
    if isinstance(thing, Enum) or callable(thing) or id(thing) in above:
        return f"{kind.__name__} {thing}" if isinstance(thing, Enum) else kind.__name__
    names, inner = {*getattr(thing, "__dict__", ()), *getattr(kind, "__slots__", ())}, (*above, id(thing))
    return kind.__name__, [(name, plain(getattr(thing, name, None), inner)) for name in sorted(names)]
