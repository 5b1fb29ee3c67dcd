"""Turns what the loop does into trace records. The loop calls verbs; what a record looks like is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isinf
from typing import Any, Protocol

import msgspec
import numpy as np

from pawl.lifecycle.columns import Int32Column
from pawl.lifecycle.machines.adapter import AdapterEvent, AdapterPhase
from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent
from pawl.lifecycle.machines.weight_group import GroupEvent, GroupPhase
from pawl.lifecycle.machines.weights import WeightEvent, Weights
from pawl.lifecycle.records import (
    AdapterMoved,
    CacheChange,
    Cached,
    Checkpoint,
    Closed,
    Contained,
    Counts,
    Delivered,
    Digest,
    Embedded,
    Flushed,
    Idled,
    MemoryMoved,
    PageCounts,
    Record,
    Scores,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    TierTold,
    Transition,
    UInt8s,
    WeightGroupMoved,
    WeightsMoved,
)
from pawl.lifecycle.requests import Indices, RequestInfo, RequestTable
from pawl.lifecycle.states import Cause, Event, State
from pawl.lifecycle.step import Int32s, StepBatch


class Pages(Protocol):
    """Page counters of a pool."""

    free: int
    owned: int
    cached: int
    deferred: int
    quarantined: int


class Adapter(Protocol):
    """One incarnation, as it is before the edge."""

    number: int
    name: str
    phase: AdapterPhase


class Changes(Protocol):
    """What has happened in the prefix cache."""

    unrecorded: list[Any]
    """Exchanged for an empty list once it is recorded."""

    def changes(self) -> tuple[CacheChange, ...]:
        """All that is unrecorded."""


REQUEST_BYTES, STEP_BYTES, ROW_BYTES, ENTRY_BYTES, TOKEN_BYTES = 800, 360, 48, 16, 4
"""About what records take in a trace: of a request from arrival to end, of a step, and of what these hold."""


class Journal:
    """Writes records through `emit`. With `emit` None (tracing is off) those of steps are not even made."""

    def __init__(
        self, emit: Callable[[Record], object] | None, started: Started | None = None, checkpoint_bytes: int = 0
    ) -> None:
        """A checkpoint is due after about so many bytes of records; 0: never."""
        self.recording = emit is not None
        """Whether anybody takes the records."""
        self._emit = emit or _dropped
        self._started = started
        self._step = 0
        self._planning: StepBatch | None = None
        """The step planned last, and below how many of its admissions are recorded."""
        self._num_admitted = 0
        self._planned: StepBatch | None = None
        """The step whose plan was recorded last."""
        self._rolled_back = 0
        """The step that was recorded last as rolled back."""
        self._checkpoint_bytes = checkpoint_bytes if self.recording else 0
        self._num_bytes = 0
        """Since the last checkpoint, about."""
        self._contained = False
        """A failure has been survived since."""

    @property
    def checkpoint_due(self) -> bool:
        """So much has been recorded that a checkpoint is to be taken at the next moment without a step in flight; or
        something has failed, and a replay, which cannot fail likewise, is to begin again there."""
        return self._contained or 0 < self._checkpoint_bytes <= self._num_bytes

    def precede(self, feed: Changes) -> None:
        """From now on, ask for changes of the prefix cache ahead of every record, and record those first."""
        emit = self._emit

        def emit_after_changes(record: Record) -> None:
            told = feed.changes()
            if told:
                none: list[Any] = []
                emit(Cached(told))
                feed.unrecorded = none
            emit(record)

        self._emit = emit_after_changes

    def submitted(
        self,
        row: int,
        info: RequestInfo,
        tokens: Int32s,
        priority: int,
        deadline: float,
        now: float,
        output: Int32Column = b"",
    ) -> None:
        self._num_bytes += REQUEST_BYTES + TOKEN_BYTES * len(tokens)
        self._emit(
            Submitted(
                request=info.request,
                row=row,
                rid=info.rid,
                tokens=tokens,
                sampling=info.sampling,
                priority=priority,
                namespace=info.namespace,
                deadline=None if isinf(deadline) else deadline,
                time=now,
                output=output,
                num_cached=info.num_cached,
                num_retractions=info.num_retractions,
                num_older=info.num_older,
            )
        )

    def moved(
        self,
        row: int,
        request: int,
        source: State,
        event: Event,
        target: State,
        cause: Cause,
        now: float,
        *,
        num_cached: int | None = None,
        num_output: int | None = None,
    ) -> None:
        """One request took one edge."""
        step = self._step
        self._emit(Transition(request, row, source, event, target, cause, step, now, num_cached, num_output))

    def move(
        self,
        table: RequestTable,
        row: int,
        event: Event,
        cause: Cause,
        now: float,
        *,
        num_cached: int | None = None,
    ) -> None:
        """Fire one event for one request and record it: both, or neither."""
        source = table.state_of(row)
        target = table.move(row, event, cause)
        try:
            self.moved(row, table.info(row).request, source, event, target, cause, now, num_cached=num_cached)
        except Exception:
            table.undo(row, source)
            raise

    def planned(
        self, batch: StepBatch, rows: Indices, admitted: tuple[int, ...], table: RequestTable, now: float
    ) -> None:
        """A step is launched, and with it its admissions. Where that failed half-way it can be done again."""
        if self._planned is batch:
            return
        if self._planning is not batch:
            self._planning = batch
            self._num_admitted = 0
        self._step = batch.step
        if not self.recording:  # once a step: worth not making what nobody takes
            return
        self._num_bytes += STEP_BYTES + ROW_BYTES * len(rows) + ENTRY_BYTES * len(batch.pages)
        if admitted:
            prompts = ~batch.chained
            starts = dict(zip(rows[prompts].tolist(), batch.starts[prompts].tolist(), strict=True))
            for count, row in enumerate(admitted, 1):
                if count <= self._num_admitted:
                    continue
                request = table.info(row).request
                source, event, target = State.QUEUED, Event.ADMIT, State.PREFILLING
                self.moved(row, request, source, event, target, Cause.NONE, now, num_cached=starts[row])
                self._num_admitted = count
        self._emit(
            StepPlanned(
                batch.step,
                now,
                rows.astype(np.int32),
                batch.slots,
                batch.starts,
                batch.lengths,
                batch.chained,
                batch.samples,
                batch.page_slots,
                batch.page_indices,
                batch.pages,
            )
        )
        self._planned = batch

    def weights(
        self, source: Weights, event: WeightEvent, target: Weights, version: str, fingerprint: str, now: float
    ) -> None:
        """The weights took one edge; those that serve now have this name and this fingerprint."""
        self._emit(WeightsMoved(source, event, target, version, fingerprint, now))

    def adapter(
        self,
        adapter: Adapter,
        event: AdapterEvent,
        target: AdapterPhase,
        slot: int,
        fingerprint: str,
        now: float,
    ) -> None:
        """An adapter took one edge; it has this slot then, and this content."""
        number, name, source = adapter.number, adapter.name, adapter.phase
        self._emit(AdapterMoved(number, name, source, event, target, slot, fingerprint, now))

    def weight_group(self, number: int, source: GroupPhase, event: GroupEvent, target: GroupPhase, now: float) -> None:
        """A trainer's group took one edge."""
        self._emit(WeightGroupMoved(number, source, event, target, now))

    def memory(self, event: ResidencyEvent, tags: tuple[MemoryTag, ...], now: float) -> None:
        """These parts of the memory took one edge."""
        self._emit(MemoryMoved(event, tags, now))

    def idled(self, now: float) -> None:
        """There was work, but no step could be planned."""
        self._emit(Idled(now))

    def flushed(self, now: float) -> None:
        """The prefix cache was emptied."""
        self._emit(Flushed(now))

    def tiers(self, kind: str, ticket: int, count: int, keys: Sequence[bytes], now: float, num_cached: int = 0) -> None:
        """Something came from the cache tiers below the device, or of a prefill elsewhere."""
        self._emit(TierTold(kind, ticket, count, b"".join(keys), now, num_cached))

    def committed(
        self,
        step: int,
        events: UInt8s,
        tokens: Int32s,
        counts: Int32s | None,
        pages: Pages,
        now: float,
        *,
        digest: int,
        scores: Scores | None = None,
        embedded: Embedded | None = None,
    ) -> None:
        """The oldest step is done; memory has this digest as it comes back."""
        self._step = step
        if self.recording:
            self._emit(StepCommitted(step, now, events, tokens, _counts(pages), digest, counts, scores, embedded))

    def rolled_back(self, step: int, reason: str, now: float, *, digest: int, blameless: bool = False) -> None:
        """The newest step in flight was undone; memory has this digest after that. Where that failed half-way it can be
        done again."""
        if self._rolled_back != step:
            self._emit(StepRolledBack(step, reason, now, blameless))
            self._rolled_back = step
        self._emit(Digest(step, digest))

    def delivered(self, order: msgspec.Struct, number: int, now: float) -> None:
        """An order reached the loop; `order` has a tag. The number is of whoever waits for its outcome, 0: nobody."""
        fields: dict[str, Any] = msgspec.to_builtins(order)
        self._emit(Delivered(fields.pop("type"), fields, number, now))

    def contained(self, request: int, failure: str, now: float) -> None:
        """Something failed in the middle, for the sake of this request (0: of nobody), and the loop goes on."""
        self._contained = self.recording
        self._emit(Contained(request, failure, now))

    def checkpoint(self, state: bytes | None, missing: str, now: float) -> None:
        """All that decides what comes next is this."""
        self._num_bytes, self._contained = 0, False
        if self._started is not None:
            self._emit(Checkpoint(self._started, state, missing, now))

    def closed(self, reason: str, counters: Any, live: int, pages: Pages) -> None:
        """Last record."""
        counts = Counts(
            received=counters.received,
            finished=counters.finished,
            aborted=counters.aborted,
            live=live,
            prompt_tokens=counters.prompt_tokens,
            output_tokens=counters.generated_tokens,
            retractions=counters.retractions,
        )
        self._emit(Closed(reason, counts, _counts(pages)))


def _dropped(record: Record) -> None:
    """Takes a record when tracing is off."""


def _counts(pages: Pages) -> PageCounts:
    return PageCounts(pages.free, pages.owned, pages.cached, pages.deferred, pages.quarantined)
