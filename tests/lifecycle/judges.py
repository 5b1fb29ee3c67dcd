"""What each judge keeps and says, in runs in which everything happens: digests, kept in `judges.txt`.

A change of what a property knows after any record, or of what it says, shows there. Where it is meant:

    python -m tests.lifecycle.judges         write judges.txt
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import DECODER, ENCODER, RECORD_TYPES, Record
from tests.lifecycle.canaries import STORY
from tests.lifecycle.cutting import cut, moments
from tests.lifecycle.test_properties import ALL, CHECKPOINTS
from tests.lifecycle.test_properties_beginning import SOUND
from tests.loops.test_replay import record_run
from tests.loops.test_snapshot import recorded
from tests.pawl.forger import field_forged

FILE = Path(__file__).with_name("judges.txt")
LOOKS = 2
"""At what is kept, in each run."""
FORGED = 40
"""Forgeries of one run."""


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


def runs() -> Iterator[Sequence[Record]]:
    """Sound ones, planted violations, what follows checkpoints, recorded and forged ones."""
    yield from SOUND.values()
    yield from (canary.records for canary in ALL.values())
    yield from CHECKPOINTS.values()
    yield from (cut(STORY.records, at) for at in moments(STORY.records))
    yield record_run(1, "pipeline")
    yield recorded(0, "overlap", "drafts")
    source, sound = random.Random(0), DECODER.decode(ENCODER.encode(SOUND["with replies"]))
    yield from (field_forged(sound, source).records for _ in range(FORGED))


@cache
def digests() -> dict[str, str]:
    """By the name of a class, of all that its judge has kept and said."""
    found: dict[str, Any] = {}
    for records in runs():
        monitor = Monitor()
        every = max(len(records) // LOOKS, 1)
        for number, record in enumerate(records, 1):
            monitor.observe(record)
            if number % every == 0:
                _look(monitor, found)
        monitor.finish()
        _look(monitor, found)
        for violation in monitor.violations:
            said = re.sub(r"\.py:\d+", ".py", repr(violation))  # lines of a source come and go
            _hash(found, violation.property).update(said.encode())
    return {name: digest.hexdigest() for name, digest in sorted(found.items())}


def _look(monitor: Monitor, found: dict[str, Any]) -> None:
    for judge in (*monitor.properties, monitor.history):
        _hash(found, type(judge).__name__).update(msgspec.msgpack.encode(plain(vars(judge))))


def _hash(found: dict[str, Any], name: str) -> Any:
    return found.setdefault(name, hashlib.blake2b(digest_size=4))


def kept() -> dict[str, str]:
    """What `judges.txt` holds."""
    return dict(line.split() for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    FILE.write_text("".join(f"{name} {digest}\n" for name, digest in digests().items()))
