"""The adapters of one loop: which requests may name, which slot each is in, and who waits for one.

    LoadAdapter ──► a slot ──► read ──► AdapterLoaded ──► requests may name it
                                 └────► AdapterFailed
    UnloadAdapter ──► no request may name it ──► its last request ends ──► gone
    too many are ready ──► one rests ──► a request names it ──► it is ready, and another one rests

There may be more adapters than slots. A request whose adapter is in none waits QUEUED_LOADING. Slots go to those that
are computed or pinned, and then, in order of admission, to those for which somebody waits. Where none is left, the one
used the longest time ago takes no newcomers any more, so it comes free. An adapter that has left its slot is read again
from where it came from, and must be the same. One that rests costs its name alone: no request comes too late for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.machines.adapter import ADAPTER, KEEPS_SLOT, MAY_BE_NAMED, AdapterEvent, AdapterPhase
from pawl.lifecycle.namespaces import adapter_of, adapter_part
from pawl.lifecycle.snapshot import Plain
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.adapter import Adapter, AdapterEffects, Named, already_loaded, still_loading
from pawl.loops.companion import Companion
from pawl.loops.queues import Queues

if TYPE_CHECKING:
    from pawl.loops.batch import ScheduledBatch
    from pawl.loops.loop import Loop

NOT_ENABLED = "adapters are not enabled; start the server with --enable-lora"
MOST_RESTING = 256
"""That are remembered: as many may make way while a request is on its way to the loop."""
CHANGED = "its content is not what it was when it was loaded; load it again"


class Adapters(Companion):
    """Every adapter that is not gone."""

    def __init__(self, queues: Queues, journal: Journal, num_slots: int, most: int) -> None:
        """`most` may be loaded at a time, in `num_slots` slots."""
        self.queues = queues
        self.num_slots = num_slots
        self.most = most
        self.by_number: dict[int, Adapter] = {}
        """In order of loading."""
        self._journal = journal
        self._newest = 0
        self._tickets = 0
        self._uses = 0

    def attach(self, loop: Loop, effects: AdapterEffects, answer: Callable[[int, bool, str], None]) -> None:
        """Before anything else: `answer` hears what has become of a load or an unload."""
        self._loop = loop
        self._effects = effects
        self._answer = answer

    # ---- what is asked ----

    def of_name(self, name: str) -> Adapter | None:
        """The one that is called so and is not being unloaded."""
        phases = AdapterPhase.LOADING, AdapterPhase.READY, AdapterPhase.RESTING
        return next((a for a in self._with(*phases) if a.name == name), None)

    def named(self, phase: AdapterPhase = AdapterPhase.READY) -> tuple[Named, ...]:
        """Those that are listed, or those that rest."""
        return tuple(Named(a.name, a.number, a.source, a.pinned) for a in self._with(phase))

    def part(self, number: int) -> str:
        """What the namespace of a request with this adapter says."""
        adapter = self.by_number.get(number)
        return adapter_part(number, "" if adapter is None else adapter.fingerprint) if number else ""

    def slot_of(self, namespace: str) -> int:
        """Where the adapter of a request is that is being admitted; 0: it has none."""
        number = adapter_of(namespace)
        return self.by_number[number].slot if number else 0

    def refusal(self, namespace: str) -> str:
        """Why a new request cannot have its adapter; empty when it can."""
        number = adapter_of(namespace)
        adapter = self.by_number.get(number)
        if not number or (adapter is not None and adapter.phase in MAY_BE_NAMED):
            return ""
        return f"its adapter is not loaded any more; loaded: {self.listed()}"

    def went_live(self, namespace: str, now: float) -> None:
        """A request that names an adapter is taken: the adapter is ready, if it rested, and another one rests."""
        adapter = self.by_number.get(adapter_of(namespace))
        if adapter is not None and adapter.phase is AdapterPhase.RESTING:
            self._move(adapter, AdapterEvent.RECALLED, now)
            self._use(adapter)
            self._make_room(now)

    def listed(self) -> str:
        """The names that requests may use, for people."""
        return ", ".join(adapter.name for adapter in self.named()) or "none"

    @property
    def owed(self) -> set[int]:
        """Who waits for an answer."""
        return {adapter.asker for adapter in self.by_number.values()} - {0}

    def _with(self, *phases: AdapterPhase) -> Iterator[Adapter]:
        return (adapter for adapter in self.by_number.values() if adapter.phase in phases)

    # ---- load and unload ----

    def load(self, name: str, source: str, pinned: bool, asker: int, now: float, number: int | None = None) -> str:
        """Somebody wants an adapter. Why not; empty when it is on its way. Where as many as may be are loaded, the one
        used the longest time ago makes way for it, once it has been read. `number`: its own, above all before it; one
        of its name that is ready goes, as not all replicas have that. None: the next one."""
        before, may_go = self.of_name(name), (AdapterPhase.RESTING,) if number is None else MAY_BE_NAMED
        if before is not None and before.phase not in may_go:
            return already_loaded(name)
        others = [each for each in self.by_number.values() if each is not before]
        if pinned and sum(a.pinned for a in others) + 1 >= self.num_slots:
            return (
                f"to pin {name!r} would mean starvation for adapters that are not pinned: "
                f"of {self.num_slots} slots at least one must stay free for them"
            )
        staying = [each for each in others if each.phase in (AdapterPhase.LOADING, AdapterPhase.READY)]
        if sum(each.pinned or each.phase is AdapterPhase.LOADING for each in staying) >= self.most:
            return f"{self.most} adapters are loaded, and none of them may go; unload one first"
        if before is not None:
            self._move(before, AdapterEvent.UNLOAD, now)
            self._make_room(now)
        self._newest = self._newest + 1 if number is None else number
        self.by_number[self._newest] = Adapter(self._newest, name, source, pinned, asker=asker)
        return ""

    def unload(self, name: str, asker: int, now: float) -> str:
        """No request may name it any more. Why not; empty when it is on its way."""
        adapter = self.of_name(name)
        if adapter is None:
            return f"adapter {name!r} is not loaded; loaded: {self.listed()}"
        if adapter.phase is AdapterPhase.LOADING:
            return still_loading(name)
        self._move(adapter, AdapterEvent.UNLOAD, now)
        adapter.asker = asker
        self._make_room(now)
        return ""

    def _make_room(self, now: float) -> None:
        """No more are ready than may be loaded, and no more rest than are remembered. Who they are is told."""
        ready = list(self._with(AdapterPhase.READY))
        idle = sorted((a for a in ready if not a.pinned), key=lambda adapter: adapter.used)
        for adapter in idle[: max(len(ready) - self.most, 0)]:
            self._move(adapter, AdapterEvent.MADE_WAY, now)
        resting = sorted(self._with(AdapterPhase.RESTING), key=lambda adapter: adapter.used)
        for adapter in resting[: max(len(resting) - MOST_RESTING, 0)]:
            self._move(adapter, AdapterEvent.UNLOAD, now)
        self._effects.named(self.named(), self.named(AdapterPhase.RESTING))

    def loaded(self, ticket: int, fingerprint: str, now: float) -> None:
        """It is in its slot."""
        adapter = self._reading(ticket)
        if adapter is None:
            return
        if adapter.fingerprint not in ("", fingerprint):
            self._effects.empty(adapter.slot)
            self.refused(ticket, CHANGED, now)
            return
        first = adapter.phase is AdapterPhase.LOADING
        self._use(adapter)
        self._move(adapter, AdapterEvent.LOADED, now, slot=adapter.slot, fingerprint=fingerprint)
        adapter.ticket = 0
        if first:
            self._make_room(now)
            self._tell(adapter, True, "")

    def refused(self, ticket: int, message: str, now: float) -> None:
        """It cannot be read; its slot is empty."""
        adapter = self._reading(ticket)
        if adapter is None:
            return
        self._move(adapter, AdapterEvent.REFUSED, now)
        adapter.ticket = 0
        if adapter.phase is AdapterPhase.GONE:
            del self.by_number[adapter.number]
            self._tell(adapter, False, message)
        for row in [row for row in self._waiting() if self._of(row) is adapter]:
            text = f"adapter {adapter.name!r} cannot be read again: {message}"
            self._loop.requests.leave(row, Event.ABORT, Cause.ADAPTER, now, message=text)

    def recovered(self, now: float) -> None:
        """The loop has failed in the middle of something: what was asked for, or told, may be lost."""
        for number, adapter in list(self.by_number.items()):
            if adapter.phase is AdapterPhase.GONE:
                del self.by_number[number]  # whose asker is told of the failure
            elif adapter.ticket and adapter.slot:
                adapter.ticket = self._new_ticket()
                self._effects.read(adapter.ticket, adapter.slot, adapter.source)
            else:
                adapter.ticket = 0
        self._make_room(now)
        for adapter in self._with(AdapterPhase.READY):
            self._tell(adapter, True, "")

    def _reading(self, ticket: int) -> Adapter | None:
        """Whose reading this is; None for late news."""
        return next((a for a in self.by_number.values() if a.ticket == ticket), None) if ticket else None

    def _tell(self, adapter: Adapter, ok: bool, message: str) -> None:
        asker, adapter.asker = adapter.asker, 0
        if asker:
            self._answer(asker, ok, message)

    def _move(
        self, adapter: Adapter, event: AdapterEvent, now: float, *, slot: int = 0, fingerprint: str | None = None
    ) -> None:
        """Take an edge; this slot is its own then."""
        fingerprint, phase = fingerprint or adapter.fingerprint, ADAPTER.next(adapter.phase, event)
        slot = adapter.slot if event in KEEPS_SLOT else slot
        self._journal.adapter(adapter, event, phase, slot, fingerprint, now)
        adapter.phase, adapter.slot, adapter.fingerprint = phase, slot, fingerprint

    # ---- with the loop ----

    @property
    def writes_weights(self) -> bool:
        return any(adapter.ticket for adapter in self.by_number.values())

    def turning(self, now: float) -> None:
        if not self.by_number:
            return
        self._forget_unused(now)
        waiting = self._waiting()
        wanted, may_start = self._shares(waiting)
        for number in wanted:
            adapter = self.by_number[number]
            slot = 0 if adapter.slot or self._loop.released else self._slot_for(wanted, now)
            if slot:
                adapter.ticket = self._new_ticket()  # before the slot is its own: nobody computes with it meanwhile
                self._move(adapter, AdapterEvent.READ, now, slot=slot)
                self._effects.read(adapter.ticket, slot, adapter.source)
        for row in waiting:
            own = self._of(row)
            ready = own is None or (row in may_start and own.resident)
            state = self.queues.table.state[row]
            if state == State.QUEUED and not ready:
                self._journal.move(self.queues.table, row, Event.LOAD, Cause.NONE, now)
            elif state == State.QUEUED_LOADING and ready:
                self._journal.move(self.queues.table, row, Event.LOADED, Cause.NONE, now)

    def launching(self, scheduled: ScheduledBatch) -> None:
        for row in scheduled.admitted:
            adapter = self._of(row)
            if adapter is not None:
                self._use(adapter)

    def _use(self, adapter: Adapter) -> None:
        self._uses += 1
        adapter.used = self._uses

    def _of(self, row: int) -> Adapter | None:
        return self.by_number.get(int(self.queues.table.adapter[row]))

    def _new_ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _waiting(self) -> list[int]:
        """Rows with an adapter that wait for room, for pages of a lower tier, or for it, in the order of admission."""
        queues, states = self.queues, (State.QUEUED, State.QUEUED_FETCHING, State.QUEUED_LOADING)
        rows = np.array((*queues.retracted, *queues.waiting), np.intp)
        rows = rows[queues.table.adapter[rows] != 0]
        return [row for row in rows.tolist() if queues.table.state[row] in states]

    def _computed(self) -> set[int]:
        """Numbers of those that a step in flight, or somebody at work, is computed with."""
        # Who has ended keeps the row until no step in flight names it.
        rows = [self.queues.running(), *(scheduled.rows for scheduled in self._loop.in_flight)]
        return set(self.queues.table.adapter[np.concatenate(rows)].tolist()) & self.by_number.keys()

    def _forget_unused(self, now: float) -> None:
        """Those that are being unloaded go when nobody is live who named them, and no step in flight does."""
        draining = list(self._with(AdapterPhase.DRAINING))
        if not draining:
            return
        table = self.queues.table
        named = set(table.adapter[table.live_rows()].tolist()) | self._computed()
        for adapter in draining:
            if adapter.number in named or adapter.ticket:
                continue
            slot = adapter.slot
            self._move(adapter, AdapterEvent.UNUSED, now)
            if slot:
                self._effects.empty(slot)
            del self.by_number[adapter.number]
            self._tell(adapter, True, "")

    def _shares(self, rows: list[int]) -> tuple[dict[int, None], set[int]]:
        """(numbers of the adapters that are to have slots, waiting rows that may start with one of these)"""
        pinned = [a.number for a in self.by_number.values() if a.pinned and a.slot]
        wanted = dict.fromkeys([*pinned, *sorted(self._computed())])
        claimed, closed, may_start = set(pinned), set[int](), set[int]()
        for row, number in self._claims(rows):
            if number not in wanted and len(wanted) < self.num_slots:
                wanted[number] = None
            if number in wanted and number not in closed:
                claimed.add(number)
                may_start.add(row)
            elif number not in wanted:
                open_ones = [self.by_number[n] for n in wanted if n not in claimed and n not in closed]
                closed.update(a.number for a in sorted(open_ones, key=lambda a: a.used)[:1])
        return wanted, may_start

    def _claims(self, rows: list[int]) -> Iterator[tuple[int, int]]:
        """(row, or -1 of a load, number of the adapter) of those that wait, the first to be served first."""
        queues, loads = self.queues, self._with(AdapterPhase.LOADING)
        retracted = set(queues.retracted)
        waiting = [(row, adapter.number) for row in rows if (adapter := self._of(row)) is not None]
        yield from (each for each in waiting if each[0] in retracted)
        yield from ((-1, adapter.number) for adapter in loads)
        yield from (each for each in waiting if each[0] not in retracted)

    def _slot_for(self, wanted: dict[int, None], now: float) -> int:
        """A slot that is free, or the one of an adapter that is not wanted; 0: there is none yet."""
        taken = {adapter.slot for adapter in self.by_number.values()}
        free = [slot for slot in range(1, self.num_slots + 1) if slot not in taken]
        if free:
            return free[0]
        unwanted = [a for a in self.by_number.values() if a.resident and a.number not in wanted]
        if not unwanted:
            return 0
        evicted = min(unwanted, key=lambda adapter: adapter.used)
        slot = evicted.slot
        self._move(evicted, AdapterEvent.EVICTED, now)
        return slot

    # ---- checkpoints ----

    def snapshot(self) -> Plain:
        adapters = [msgspec.to_builtins(adapter) for adapter in self.by_number.values()]
        return {"adapters": adapters, "newest": self._newest, "tickets": self._tickets, "uses": self._uses}

    def restore(self, plain: Plain) -> None:
        adapters = msgspec.convert(plain["adapters"], list[Adapter])
        self.by_number = {adapter.number: adapter for adapter in adapters}
        self._newest, self._tickets, self._uses = plain["newest"], plain["tickets"], plain["uses"]

    def check(self) -> None:
        slots = [adapter.slot for adapter in self.by_number.values() if adapter.slot]
        if len(set(slots)) < len(slots) or not all(0 < slot <= self.num_slots for slot in slots):
            raise AssertionError(f"adapters are in slots {slots}, of {self.num_slots}")
