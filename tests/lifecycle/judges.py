"""What each judge keeps and says, in runs in which everything happens: digests, kept in `judges.txt`.

A change of what a property knows after any record, or of what it says, shows there; so does one of what an audit
reports of such a run, and of how the run looks in other formats. Where it is meant:

    python -m tests.lifecycle.judges         write judges.txt
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from pawl.lifecycle.audit import judge
from pawl.lifecycle.export.chrome import chrome_trace
from pawl.lifecycle.export.jsonl import as_dict
from pawl.lifecycle.export.otlp import otlp_trace
from pawl.lifecycle.export.timeline import timeline
from pawl.lifecycle.hand_overs import side_of
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import DECODER, ENCODER, Record
from pawl.lifecycle.trace.reader import Damage
from tests.lifecycle.canaries import STORY
from tests.lifecycle.cutting import cut, moments
from tests.lifecycle.plain import plain
from tests.lifecycle.test_properties import ALL, CHECKPOINTS
from tests.lifecycle.test_properties_beginning import SOUND
from tests.loops import failures
from tests.loops.test_replay import record_run
from tests.loops.test_snapshot import recorded
from tests.pawl.forger import field_forged

FILE = Path(__file__).with_name("judges.txt")
LOOKS = 2
"""At what is kept, in each run."""
FORGED = 40
"""Forgeries of one run."""
LONG = 100
"""Records of a run that is reported no more: its judges are looked at."""


class Kept:
    """A reader of records that are there, in blocks."""

    share = 0.5

    def __init__(self, records: Sequence[Record]) -> None:
        self.damage: tuple[Damage, ...] = ()
        self.num_blocks = self.num_records = 0
        self._records = records

    def blocks(self) -> Iterator[list[Record]]:
        for first in range(0, len(self._records), 7):
            block = [*self._records[first : first + 7]]
            self.num_blocks += 1
            self.num_records += len(block)
            yield block


def runs() -> Iterator[Sequence[Record]]:
    """Sound ones, planted violations, what follows checkpoints, recorded and forged ones."""
    yield from SOUND.values()
    yield from (canary.records for canary in ALL.values())
    yield from CHECKPOINTS.values()
    yield from (cut(STORY.records, at) for at in moments(STORY.records))
    yield record_run(1, "pipeline")
    yield recorded(0, "overlap", "drafts")
    yield failures.recorded()
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
        for name, shown in _shown(records):
            _hash(found, name).update(shown.encode())
    return {name: digest.hexdigest() for name, digest in sorted(found.items())}


def _look(monitor: Monitor, found: dict[str, Any]) -> None:
    for each in (*monitor.properties, monitor.history):
        _hash(found, type(each).__name__).update(msgspec.msgpack.encode(plain(vars(each))))


def _shown(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """What else can be made of a run; of one whose records mean nothing, which error."""
    for name, make in OTHERWISE.items():
        if name not in ("Report", "Side") or len(records) < LONG:
            try:
                shown = str(make(records))
            except Exception as error:
                shown = type(error).__name__
            yield name, re.sub(r"\.py:\d+", ".py", shown)


OTHERWISE: dict[str, Callable[[Sequence[Record]], object]] = {
    "Report": lambda records: judge(Path("run"), lambda _: Kept(records), [make() for make in PROPERTIES]).text(),
    "Side": side_of,
    "Timeline": lambda records: (line := timeline(records), [request.mean_gap for request in line.requests]),
    "chrome": lambda records: chrome_trace(timeline(records)),
    "otlp": lambda records: otlp_trace(timeline(records)),
    "jsonl": lambda records: msgspec.json.encode([as_dict(record) for record in records]),
}
"""What is made of a run beside what judges say."""


def _hash(found: dict[str, Any], name: str) -> Any:
    return found.setdefault(name, hashlib.blake2b(digest_size=4))


def kept() -> dict[str, str]:
    """What `judges.txt` holds."""
    return dict(line.split() for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    FILE.write_text("".join(f"{name} {digest}\n" for name, digest in digests().items()))
