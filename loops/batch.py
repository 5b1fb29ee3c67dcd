"""From decisions to arrays: a `BatchBuilder` collects the segments of one step, `ScheduledBatch` is what was launched.

Segments of decoding requests come as one array and stay one; prefill segments are few and are appended singly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.states import Cause, Event, State
from pawl.lifecycle.step import Bools, SlotAssignment, StepBatch, StepResult
from pawl.loops.speculation import Drafts
from pawl.memory.arrays import Indices, Int32s
from pawl.memory.memory import Memory
from pawl.memory.page_table import NO_ENTRIES, PageEntries
from pawl.memory.transaction import Transaction

UInt8s: TypeAlias = NDArray[np.uint8]

_NO_ROWS: Indices = np.empty(0, np.intp)
_NO_TOKENS: Int32s = np.empty(0, np.int32)


class PrefillSegment(NamedTuple):
    """A chunk of one prompt (or, after a retraction, of prompt and earlier output)."""

    row: int
    slot: int
    start: int
    length: int
    last: bool
    """The chunk reaches the last known token."""
    samples: bool
    """A token is drawn from its last position (the last chunk, unless no output is wanted)."""


class ScheduledBatch(NamedTuple):
    """One launched step: what the commit needs to know again."""

    transaction: Transaction
    batch: StepBatch
    rows: Indices
    attempts: Int32s
    events: UInt8s
    sampled_rows: Indices
    prefills: tuple[PrefillSegment, ...]
    pages: Int32s
    """Pages whose entries are new in this step."""
    admitted: tuple[int, ...]
    runs: bool
    """Whether there are drafts in it: then what follows cannot be planned before its results are known."""
    passes_over: bool
    """The prompt that began first is behind another one."""

    @property
    def step(self) -> int:
        return self.batch.step

    @property
    def decoding_rows(self) -> Indices:
        return self.rows[: len(self.rows) - len(self.prefills)]

    @property
    def num_prompt_tokens(self) -> int:
        """Positions of its chunks; those of a request that starts again count again."""
        return sum([segment.length for segment in self.prefills]) if self.prefills else 0

    def row_of_slot(self, fresh: Bools) -> dict[int, int]:
        """Of the segments that are `fresh`."""
        return dict(zip(self.batch.slots[fresh].tolist(), self.rows[fresh].tolist(), strict=True))

    def first_hits(self, table: RequestTable) -> int:
        """Prompt tokens that the cache had for requests that the step admits for the first time, and that stayed."""
        if not self.admitted:
            return 0
        left = self.rows[table.attempt[self.rows] != self.attempts].tolist()
        infos = [table.info(row) for row in self.admitted if row not in left]
        return sum(info.num_cached for info in infos if not info.num_retractions)

    def at_work(self, table: RequestTable) -> list[int]:
        """Rows whose requests have not left since."""
        rows: list[int] = self.rows[table.attempt[self.rows] == self.attempts].tolist()
        return rows

    def left_without_answer(self, result: StepResult, table: RequestTable) -> list[tuple[int, Cause]]:
        """Rows that still want the tokens they sampled, or the vector of the prompt that ends here, and did not get it
        all, each with why."""
        if result.refused is None and result.unusable is None and not self.prefills:
            return []
        found: dict[int, Cause] = {}
        fresh = table.attempt[self.rows] == self.attempts
        for marks, cause in ((result.refused, Cause.GRAMMAR), (result.unusable, Cause.INTERNAL)):
            if marks is None:
                continue
            if result.counts is not None:
                marks = np.logical_or.reduceat(marks, np.cumsum(result.counts) - result.counts)
            wanted = fresh[self.batch.samples]
            found.update(dict.fromkeys(self.sampled_rows[marks & wanted].tolist(), cause))
        got = {embedding.slot for embedding in result.embeddings}
        for segment, stayed in zip(self.prefills, fresh[len(self.rows) - len(self.prefills) :].tolist(), strict=True):
            wants = segment.last and stayed and segment.slot not in got
            if wants and table.info(segment.row).sampling.embed:
                found[segment.row] = Cause.INTERNAL
        return list(found.items())

    @property
    def answered_rows(self) -> list[int]:
        """Rows that a token is drawn for, or whose prompts end here."""
        ends: list[int] = [segment.row for segment in self.prefills if segment.last]
        return [*self.sampled_rows.tolist(), *ends]


class Applied(NamedTuple):
    """What a step has given to the requests that were still at work."""

    events: UInt8s
    """[segments]"""
    rows: Indices
    """Rows that got tokens."""
    rows_of_tokens: Indices
    tokens: Int32s
    """As many as `rows_of_tokens`, in order."""
    last: Int32s
    """The last token of each row, as many as `rows`."""
    recorded: Int32s
    """`tokens`, and those of requests that have left."""
    counts: Int32s | None
    """Of `recorded`, those of each segment; None: one for each that samples."""
    lengths: Int32s
    """Positions of each segment that are committed, [segments]."""


@dataclass(slots=True)
class GaveWay:
    """A row that was asked to give its memory to others, as it was before."""

    row: int
    state: State
    attempt: int
    recorded: bool = False
    """That it has."""


@dataclass(slots=True)
class LostStep:
    """The oldest step in flight, which the worker lost, until all is done that follows from it."""

    rows: list[int]
    """Its requests that were still at work; empty where it counts for nobody."""
    reason: str
    blameless: bool
    num_blamed: int = 0
    """The first of `rows` that have a strike for it."""


class BatchBuilder:
    """The step being planned. Empty until segments are added."""

    def __init__(self, transaction: Transaction, table: RequestTable, ahead: Sequence[Indices] = ()) -> None:
        self.transaction = transaction
        self.ahead = ahead
        """Rows of the steps in flight, oldest first."""
        self._table = table
        self.decode_rows: Indices = _NO_ROWS
        self.decode_slots: Indices = _NO_ROWS
        self.decode_starts: Int32s = _NO_TOKENS
        self.drafts: Drafts | None = None
        """None: one position each."""
        self.prefills: list[PrefillSegment] = []
        self.admissions: list[SlotAssignment] = []
        self.entries: list[PageEntries] = []
        self.admitted: list[int] = []
        """Rows admitted by this step."""
        self.short = False
        """There are no pages for the next chunk of a prompt that has begun."""
        self.oldest_prompt: int | None = None
        """The row whose prompt began first, of those that had begun before this step."""
        self.trying: int | None = None
        """The waiting row whose admission is being tried, or that was admitted last and nobody was tried after it."""
        self.retracted: list[GaveWay] = []
        """Who gave way to this step; final, whatever becomes of the step. Each may be among the admitted as well."""

    @property
    def empty(self) -> bool:
        return not len(self.decode_rows) and not self.prefills

    def decode(
        self, rows: Indices, slots: Indices, starts: Int32s, entries: PageEntries, drafts: Drafts | None = None
    ) -> None:
        """One position for each of `rows`, and those of `drafts`."""
        self.decode_rows, self.decode_slots, self.decode_starts = rows, slots, starts
        self.drafts = drafts
        if len(entries.pages):
            self.entries.append(entries)

    def prefill(self, segment: PrefillSegment, entries: PageEntries) -> None:
        """One chunk. `entries`: the pages that the row has got for it; with its first, all that it has."""
        self.prefills.append(segment)
        if len(entries.pages):
            self.entries.append(entries)

    def admit(self, row: int, slot: int, adapter: int = 0) -> None:
        """The row takes `slot`, and starts with a chunk. `adapter`: the slot of its adapter; 0: it has none."""
        self.admitted.append(row)
        sampling = self._table.info(row).sampling
        num_tokens, num_prompt = self._table.num_tokens.item(row), self._table.num_prompt.item(row)
        history = self._table.tokens[row, :num_tokens].copy() if needs_history(sampling) else _NO_TOKENS
        num_output = num_tokens - num_prompt
        self.admissions.append(SlotAssignment(slot, sampling, num_prompt, history, num_output, adapter))

    def close(self, memory: Memory) -> ScheduledBatch:
        """The finished step, with the page-table entries that `memory` has replaced since the step before."""
        replaced = memory.take_replaced()
        entries = _concatenate([*replaced, *self.entries])
        count = len(self.decode_rows)
        rows, slots, starts = self.decode_rows, self.decode_slots.astype(np.int32), self.decode_starts
        lengths, yes, events = _ones(count)
        chained, samples, sampled_rows, tokens = yes, yes, rows, _NO_TOKENS
        if self.drafts is not None:
            lengths, tokens = self.drafts
        if self.prefills:
            new = np.array(self.prefills, np.int32).T
            rows = np.concatenate((rows, new[0]))
            slots = np.concatenate((slots, new[1]))
            starts = np.concatenate((starts, new[2]))
            lengths = np.concatenate((lengths, new[3]))
            chained = np.concatenate((chained, np.zeros(len(self.prefills), np.bool_)))
            samples = np.concatenate((samples, new[5].astype(np.bool_)))
            events = np.concatenate((events, _CHUNK_EVENTS.take(new[5])))
            sampled_rows = rows[samples]
            chunks = [self._table.tokens[s.row, s.start : s.start + s.length] for s in self.prefills]
            tokens = np.concatenate((tokens, *chunks), dtype=np.int32)
        batch = StepBatch(
            self.transaction.epoch,
            slots,
            starts,
            lengths,
            tokens,
            chained,
            samples,
            *entries,
            memory.window_pages(entries.pages),
            tuple(self.admissions),
        )
        attempts = self._table.attempt[rows]
        return ScheduledBatch(
            self.transaction,
            batch,
            rows,
            attempts,
            events,
            sampled_rows,
            tuple(self.prefills),
            entries.pages,
            tuple(self.admitted),
            self.drafts is not None,
            bool(self.prefills) and self.oldest_prompt not in (None, self.prefills[0].row),
        )


def needs_history(sampling: SamplingParameters) -> bool:
    """Whether the worker looks at the tokens so far."""
    return sampling.penalised or sampling.grammar is not None


_CHUNK_EVENTS: UInt8s = np.array((Event.CHUNK, Event.FIRST_TOKEN), np.uint8)
"""Of a chunk that does not sample, and of one that does."""


def _concatenate(entries: list[PageEntries]) -> PageEntries:
    match entries:
        case []:
            return NO_ENTRIES
        case [only]:
            return only
        case _:
            return PageEntries(*(np.concatenate(column) for column in zip(*entries, strict=True)))


@lru_cache(maxsize=64)
def _ones(count: int) -> tuple[Int32s, Bools, UInt8s]:
    """Of `count` requests that decode: a length of one position, true, and the event of a token; read-only. Made once,
    as the next step has mostly as many."""
    ones = np.ones(count, np.int32), np.ones(count, np.bool_), np.full(count, Event.TOKEN, np.uint8)
    for array in ones:
        array.flags.writeable = False
    return ones
