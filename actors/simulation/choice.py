"""Choices: everything that a simulated run leaves open, who decides it, and the record of what was decided.

A run is a function of its choices. Each option has a label that stays the same from run to run, option 0 is always what
a fair queue would do, and faults come last. So a run can be told as a short list of deviations from 0, saved, and
played back; a playback that no longer fits says where and what it found instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

FORMAT = 1
MOST_BYTES = 64 << 20
"""Of a file of choices: those of a long run are some hundred KiB."""
CLOCK = "clock"
"""Owner of the event that moves the clock."""


class Kind(StrEnum):
    """What is decided."""

    NEXT = "next"
    """Which event happens next."""
    STRIKE = "strike"
    """Whether a fault strikes here, inside a handler: no, yes."""
    PICK = "pick"
    """A value that the scenario leaves open."""


class Option(Protocol):
    """One of the things that may happen. Labels are unique among the options of one decision."""

    @property
    def label(self) -> str:
        """Stable name of what would happen, such as `worker<scheduler.DATA`: worker takes scheduler's next DATA."""

    @property
    def event(self) -> tuple[str, int]:
        """The label, and a number that tells this occurrence from others of the same label in one run."""

    @property
    def owner(self) -> str:
        """Who makes progress: an actor, a wire, the clock."""

    @property
    def target(self) -> str:
        """Whose mailbox and state it touches; two events race only if they have the same target."""

    @property
    def fault(self) -> bool:
        """Whether it is a fault. Faults come after everything else."""


class Value(NamedTuple):
    """An option of `Kind.STRIKE` and `Kind.PICK`."""

    label: str
    event: tuple[str, int]
    owner: str
    target: str
    fault: bool


def count_plain(options: Sequence[Option]) -> int:
    """How many options are no faults; those are the first ones."""
    count = len(options)
    while count and options[count - 1].fault:
        count -= 1
    return count


LINE = ">"
"""First letter of the name of an owner's line of work in a footprint; the other names are mailboxes."""


class Footprint(NamedTuple):
    """What one event has touched: mailboxes, and lines of work. A line puts the events of one owner in order, and the
    arrival of a message behind its sending; such events are never possible at the same time."""

    targets: frozenset[str]
    everything: bool

    def independent(self, other: Footprint) -> bool:
        """Whether the order of two events that are both possible now can matter to nobody."""
        return not (self.everything or other.everything) and not self.meets(other)

    def meets(self, other: Footprint) -> bool:
        """Whether both touch one mailbox."""
        return any(not name.startswith(LINE) for name in self.targets & other.targets)


@runtime_checkable
class ChoiceSource(Protocol):
    """Decides."""

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        """Index of the option that happens. `options` belongs to the caller and changes afterwards."""


@runtime_checkable
class Follower(ChoiceSource, Protocol):
    """A source that is also asked when there is one option only (those decisions are not recorded), and that is told
    what each event has touched."""

    def executed(self, footprint: Footprint) -> None:
        """The event chosen last has happened."""


class Diverged(Exception):
    """A recorded run cannot be played back: the code, the scenario or its seed is not the one it was recorded with."""

    def __init__(self, position: int, kind: str, wanted: str, found: Sequence[str]) -> None:
        super().__init__(f"decision {position} ({kind}): {wanted!r} was recorded, but the options are {list(found)}")
        self.position = position
        self.wanted = wanted
        self.found = tuple(found)


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    """Choices in a file. `deviations` repeats, for a reader, what `indices` says: [position, index, label]."""

    format: int
    facts: dict[str, str]
    deviations: list[tuple[int, int, str]]
    labels: list[str]
    decisions: list[int]
    indices: list[tuple[int, int]]
    kinds: list[tuple[int, str]]


class Choices:
    """What was decided, in order: index, label and kind of each decision."""

    __slots__ = ("facts", "indices", "kinds", "labels")

    def __init__(self, facts: dict[str, str] | None = None) -> None:
        self.indices: list[int] = []
        self.labels: list[str] = []
        self.kinds: list[Kind] = []
        self.facts = facts if facts is not None else {}
        """What else is needed to run it again: version, scenario, seed."""

    def __len__(self) -> int:
        return len(self.indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Choices):
            return NotImplemented
        return (self.indices, self.labels, self.kinds) == (other.indices, other.labels, other.kinds)

    __hash__ = None  # type: ignore[assignment]

    def add(self, kind: Kind, index: int, label: str) -> None:
        """One more decision."""
        self.indices.append(index)
        self.labels.append(label)
        self.kinds.append(kind)

    def deviations(self) -> list[tuple[int, int, str]]:
        """(position, index, label) of each decision that was not the fair one."""
        return [(at, index, self.labels[at]) for at, index in enumerate(self.indices) if index]

    def encode(self) -> bytes:
        """As JSON: a table of labels, and a number for each decision."""
        table = {label: number for number, label in enumerate(dict.fromkeys(self.labels))}
        saved = _Saved(
            format=FORMAT,
            facts=self.facts,
            deviations=self.deviations(),
            labels=list(table),
            decisions=[table[label] for label in self.labels],
            indices=[(at, index) for at, index in enumerate(self.indices) if index],
            kinds=[(at, kind.value) for at, kind in enumerate(self.kinds) if kind is not Kind.NEXT],
        )
        return msgspec.json.encode(saved)

    @classmethod
    def decode(cls, data: bytes) -> Choices:
        """What `encode` gave. Raises ValueError (`msgspec.ValidationError` is one) for anything else."""
        saved = msgspec.json.decode(data, type=_Saved)
        if saved.format != FORMAT:
            raise ValueError(f"choices of format {saved.format}; this is {FORMAT}")
        choices = cls(saved.facts)
        size = len(saved.decisions)
        places = [at for at, _ in saved.indices] + [at for at, _ in saved.kinds]
        if not all(0 <= number < len(saved.labels) for number in saved.decisions):
            raise ValueError("a decision has no label")
        if not all(0 <= at < size for at in places):
            raise ValueError("a decision behind the last one")
        choices.labels = [saved.labels[number] for number in saved.decisions]
        choices.indices = [0] * size
        for at, index in saved.indices:
            choices.indices[at] = index
        choices.kinds = [Kind.NEXT] * size
        for at, kind in saved.kinds:
            choices.kinds[at] = Kind(kind)
        return choices

    def save(self, path: Path) -> None:
        path.write_bytes(self.encode())

    @classmethod
    def load(cls, path: Path) -> Choices:
        """Raises OSError, or ValueError for a file that holds no choices."""
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"choices take no more than {MOST_BYTES >> 20} MiB")
        return cls.decode(content)


class Replay:
    """Decides as recorded, by label; what comes after the record is decided fairly."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.position = 0

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        """Raises Diverged when the recorded option is not there, or when something else is to be decided."""
        at = self.position
        if at >= len(self.choices):
            return 0
        self.position += 1
        index, wanted = self.choices.indices[at], self.choices.labels[at]
        if kind is self.choices.kinds[at]:
            if index < len(options) and options[index].label == wanted:
                return index
            for index, option in enumerate(options):
                if option.label == wanted:
                    return index
        raise Diverged(at, kind.value, wanted, [option.label for option in options])


class Suggestion:
    """Decides by index, and fairly where the index does not fit or the list has ended: for choices that were changed
    (shrinking, mutation), so that every list of numbers is a run."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.position = 0

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        at = self.position
        self.position += 1
        index = self.indices[at] if at < len(self.indices) else 0
        return index if index < len(options) else 0


class Guide:
    """Decides as in a run of something larger, of which some actors, requests or faults may be missing: by label, the
    first of those recorded and not used yet that is among the options. What was never recorded is decided fairly."""

    SIGHT = 300
    """Labels that are looked at, from the first that was not used."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._left = list(labels)

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        places = {option.label: index for index, option in enumerate(options)}
        for at, label in enumerate(self._left[: self.SIGHT]):
            if label in places:
                del self._left[at]
                return places[label]
        return 0


def value_options(name: str, labels: Sequence[str], number: int, *, faults_from: int) -> list[Value]:
    """Options of one decision inside a handler; those from `faults_from` on are faults."""
    return [
        Value(f"{name}: {label}", (f"{name}: {label}", number), name, "", index >= faults_from)
        for index, label in enumerate(labels)
    ]
