"""The steps that records tell of: columns that fit together."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.records import (
    DRAWS,
    Bools,
    Delivered,
    Int32s,
    StepCommitted,
    StepPlanned,
    Transition,
    UInt8s,
    int32s,
    uint8s,
)
from pawl.lifecycle.requests import Indices
from pawl.lifecycle.states import Event

Int64s: TypeAlias = NDArray[np.int64]


class Malformed(Exception):
    """A record contradicts the records before it, or itself."""

    def __init__(self, explanation: str, request: int | None = None) -> None:
        super().__init__(explanation)
        self.request = request


class Step(NamedTuple):
    """One step in flight; the columns are of its segments."""

    step: int
    rows: Indices
    starts: Int32s
    ends: Int32s
    lengths: Int32s
    chained: Bools
    samples: Bools
    requests: Int64s
    departures: Int32s
    """Times that the request had left work when the step was planned."""
    admitted: tuple[Transition, ...]

    # Whether a bool array has a 0 or a 1, and how many, is asked of its bytes: in a third of the time that numpy takes.

    @property
    def num_decoding(self) -> int:
        """Segments that begin with the token drawn last."""
        return self.chained.tobytes().count(1)

    @property
    def num_prompt_tokens(self) -> int:
        """Positions of the others."""
        return int(self.lengths[~self.chained].sum()) if 0 in self.chained.tobytes() else 0


class Committed(NamedTuple):
    """The columns of a StepCommitted, in the order of its step's segments."""

    events: UInt8s
    tokens: Int32s
    live: Bools
    """The request has not left work since the step was planned."""
    drew: Bools
    """The segment gave its request tokens."""
    counts: Int32s
    """Tokens that the segment gave its request."""
    ends: Int32s
    """Positions of the segment's request that are computed and wanted: of a run, those before what was not accepted."""
    counted: bool
    """The record says how many tokens each segment drew: there may be runs among them."""


_NONE = np.empty(0, np.int32)
_NOBODY: Indices = np.empty(0, np.intp)
_FALSE = _NONE.astype(bool)
NO_STEP = Step(0, _NOBODY, _NONE, _NONE, _NONE, _FALSE, _FALSE, _NONE.astype(np.int64), _NONE, ())
NOT_COMMITTED = Committed(_NONE.astype(np.uint8), _NONE, _FALSE, _FALSE, _NONE, _NONE, False)

_EVENTS = bytes(Event)


class Segments(NamedTuple):
    """The columns of a StepPlanned."""

    rows: Indices
    """A row below zero is made larger than any that there is."""
    slots: Int32s
    starts: Int32s
    ends: Int32s
    lengths: Int32s
    chained: Bools
    samples: Bools


def segments_of(record: StepPlanned) -> Segments:
    """What a step is to compute. Raises Malformed."""
    rows, slots, starts, lengths = (
        int32s(record.rows),
        int32s(record.slots),
        int32s(record.starts),
        int32s(record.lengths),
    )
    chained, samples = uint8s(record.chained).astype(bool), uint8s(record.samples).astype(bool)
    if not len(rows) == len(starts) == len(slots) == len(lengths) == len(chained) == len(samples):
        raise Malformed(f"the columns of step {record.step} differ in length")
    return Segments(rows.view(np.uint32).astype(np.intp), slots, starts, starts + lengths, lengths, chained, samples)


def pages_of(record: StepPlanned) -> tuple[Int32s, Int32s, Int32s]:
    """Slots, indices and pages of what a step enters into the page table. Raises Malformed."""
    slots, indices, pages = int32s(record.page_slots), int32s(record.page_indices), int32s(record.pages)
    if not len(slots) == len(indices) == len(pages):
        raise Malformed(f"the page columns of step {record.step} differ in length")
    return slots, indices, pages


def drawn_of(record: StepCommitted, step: Step) -> tuple[UInt8s, Bools, Int32s, Int32s | None]:
    """What a step gave: the event of each segment, whether it gives the request tokens, the tokens drawn, and how many
    each segment drew where that is said. Raises Malformed."""
    events, tokens, counts = uint8s(record.events), int32s(record.tokens), None
    if len(events) != len(step.rows):
        raise Malformed(f"step {record.step} has {len(step.rows)} segments, its commit {len(events)}")
    num_drawn = step.samples.tobytes().count(1)
    if record.counts is not None:
        counts = np.array(int32s(record.counts))
        if len(counts) != len(step.rows) or ((counts > 0) != step.samples).any():
            raise Malformed(f"step {record.step} draws for {np.flatnonzero(step.samples)}, and counts {counts}")
        num_drawn = int(counts.sum())
    if len(tokens) != num_drawn:
        raise Malformed(f"step {record.step} draws {num_drawn} tokens, and got {len(tokens)}")
    if events.tobytes().translate(None, _EVENTS):
        raise Malformed(f"the commit of step {record.step} has an event {events.max()}, which is none")
    return events, DRAWS.take(events), tokens, counts


def runner_gone(record: object) -> bool:
    """Whether it says that what computes was lost between steps."""
    return isinstance(record, Delivered) and record.kind == "runner_gone"
