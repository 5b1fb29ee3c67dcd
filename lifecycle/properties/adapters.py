"""Property `adapter_references`: adapters move as their table says, and no request is without its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from pawl.lifecycle.machines.adapter import ADAPTER, KEEPS_SLOT, MAY_BE_NAMED, AdapterEvent, AdapterPhase
from pawl.lifecycle.namespaces import adapter_of
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import AdapterMoved, Delivered, Started, StepPlanned, Submitted, Transition
from pawl.lifecycle.states import Event

_MOVES = frozenset((source, event, target) for source, event, target, _ in ADAPTER.moves)
_SERVED = (AdapterPhase.READY, AdapterPhase.RESTING, AdapterPhase.DRAINING)
_USES = (AdapterEvent.LOADED, AdapterEvent.RECALLED)
_LETS_GO = (AdapterEvent.EVICTED, AdapterEvent.UNUSED, AdapterEvent.READ)


class _Adapter(msgspec.Struct):
    """As the records so far say."""

    phase: AdapterPhase = ADAPTER.start
    slot: int = 0
    reading: bool = False
    fingerprint: str = ""
    pinned: bool | None = False
    """None: some who asked for one of the name wanted it pinned, and which of them were refused is not known."""
    used: int = 0
    """When it was used last: it was read or recalled, or somebody was admitted with it."""


class AdapterReferences(Property):
    """A request names an adapter that is ready or rests, and is computed only while that one is in a slot of its own;
    who is computed with it keeps it there. One that is unloaded goes when the last request that named it has ended. No
    two incarnations have one number, and each has one content. One that is pinned makes way for no other. No more are
    ready than may be, and of those that nobody needs the one used the longest time ago makes way. One that is ready is
    unloaded only where somebody asks for that, or has one of its name loaded that not all replicas have."""

    name: ClassVar[str] = "adapter_references"

    def __init__(self) -> None:
        self._adapters: dict[int, _Adapter] = {}
        """All that were ever loaded, by number."""
        self._asked: dict[str, bool | None] = {}
        """Names that somebody has loaded -> whether pinned; None: one so, one not."""
        self._let_go: set[str] = set()
        """Names that somebody has unloaded since one of the name was read first."""
        self._uses = 0
        self._most: int | None = None
        """That may be ready; None: the first record does not say."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        for kept in beginning.adapters:
            adapter = _Adapter(kept.phase, kept.slot, kept.ticket > 0, kept.fingerprint, kept.pinned, kept.used)
            self._adapters[kept.number] = adapter
            self._uses = max(self._uses, kept.used)
        return self._started(beginning.started, history)

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        loop: Any = record.config.get("loop")
        most = loop.get("max_loaded_loras") if isinstance(loop, dict) else None
        self._most = most if isinstance(most, int) else None
        return ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        if not self._adapters or self._most is None:
            return ()
        ready = [number for number in self._adapters if self._phase(number) is AdapterPhase.READY]
        if len(ready) <= self._most:
            return ()
        return (self.violation(history, f"adapters {ready} are ready, and {self._most} may be"),)

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        match record:
            case Delivered(kind="load_adapter" | "load_numbered_adapter", fields={"lora_name": str(name), **rest}):
                # Which of several orders was refused is not recorded.
                pinned = rest.get("pinned") is True
                self._asked[name] = pinned if self._asked.get(name, pinned) is pinned else None
                if record.kind == "load_numbered_adapter":  # instead of one that not all replicas have
                    self._let_go.add(name)
            case Delivered(kind="unload_adapter", fields={"lora_name": str(name)}):
                self._let_go.add(name)
        return ()

    @on(AdapterMoved)
    def _moved(self, record: AdapterMoved, history: History) -> Sequence[Violation]:
        if record.number not in self._adapters:
            self._let_go.discard(record.name)
            self._adapters[record.number] = _Adapter(pinned=self._asked.get(record.name, False))
        adapter = self._adapters[record.number]
        found = list(self._wrong(record, adapter, history))
        adapter.phase, adapter.slot, adapter.fingerprint = record.target, record.slot, record.fingerprint
        if record.event not in KEEPS_SLOT:
            adapter.reading = record.event is AdapterEvent.READ
        if record.event in _USES:
            self._use(adapter)
        return found

    def _use(self, adapter: _Adapter) -> None:
        self._uses += 1
        adapter.used = self._uses

    def _wrong(self, record: AdapterMoved, adapter: _Adapter, history: History) -> Iterator[Violation]:
        what, event = f"adapter {record.number} ({record.name!r})", record.event
        if (record.source, event, record.target) not in _MOVES or record.source != adapter.phase:
            text = f"{event} takes {what} from {record.source} to {record.target}; it is {adapter.phase}"
            yield self.violation(history, text)
        if record.slot and any(
            other.slot == record.slot for number, other in self._adapters.items() if number != record.number
        ):
            yield self.violation(history, f"{what} has slot {record.slot}, and so has another")
        if adapter.fingerprint not in ("", record.fingerprint):
            yield self.violation(history, f"{what} is {record.fingerprint!r}; it was {adapter.fingerprint!r}")
        if event is AdapterEvent.UNLOAD and adapter.phase is AdapterPhase.READY and record.name not in self._let_go:
            yield self.violation(history, f"{event}: {what} is ready, and nobody has asked to unload it")
        makes_way = event in (AdapterEvent.EVICTED, AdapterEvent.MADE_WAY)
        if adapter.pinned and makes_way:
            yield self.violation(history, f"{event}: {what} is pinned, and makes way for another")
        if makes_way:
            could = self._unneeded(history) if event is AdapterEvent.EVICTED else self._ready_ones()
            earlier = [number for number in could if self._adapters[number].used < adapter.used]
            if earlier:
                text = f"{event}: {what} makes way, and adapter {earlier[0]} was used a longer time ago"
                yield self.violation(history, text)
        if event in _LETS_GO:
            rows = self._rows(record.number, history, live=event is AdapterEvent.UNUSED)
            if rows:
                text = f"{event}: {what} leaves its slot, and a request needs it"
                yield self.violation(history, text, int(history.request[rows[0]]))

    def _ready_ones(self) -> list[int]:
        """Numbers of those that requests may name, and that are not pinned."""
        adapters = self._adapters.items()
        return [number for number, each in adapters if each.phase is AdapterPhase.READY and each.pinned is False]

    def _unneeded(self, history: History) -> list[int]:
        """Numbers of those in slots that nobody who is live has named."""
        there = [number for number, each in self._adapters.items() if each.slot and not each.reading]
        free = [number for number in there if self._adapters[number].pinned is False]
        return [number for number in free if not self._rows(number, history, live=True)]

    def _rows(self, number: int, history: History, *, live: bool) -> list[int]:
        """Rows whose requests are computed with this adapter, or, with `live`, have named it."""
        rows = set(history.open.values()) if live else set()
        rows.update(np.flatnonzero(history.working).tolist())
        for step in history.in_flight.values():
            rows.update(step.rows.tolist())
        return sorted(row for row in rows if adapter_of(history.submissions[row].namespace) == number)

    @on(Event.SUBMIT, Event.SUBMIT_GRAMMAR)
    def _submitted(self, record: Transition, history: History) -> Sequence[Violation]:
        number = self._number(record.row, history)
        if not number or self._phase(number) in MAY_BE_NAMED:
            return ()
        return (
            self.violation(history, f"it names adapter {number}, which is neither ready nor rests", record.request),
        )

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        number = self._number(record.row, history)
        if not number:
            return ()
        adapter = self._adapters.get(number)
        if adapter is not None:
            self._use(adapter)
        if adapter is not None and adapter.slot and not adapter.reading and self._phase(number) in _SERVED:
            return ()
        return (self.violation(history, f"it is admitted, and its adapter {number} is in no slot", record.request),)

    def _phase(self, number: int) -> AdapterPhase | None:
        adapter = self._adapters.get(number)
        return None if adapter is None else adapter.phase

    def _number(self, row: int, history: History) -> int:
        submitted: Submitted | None = history.submissions.get(row)
        return 0 if submitted is None else adapter_of(submitted.namespace)
