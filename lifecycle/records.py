"""What a trace is made of: one record for each step and for each change in a request's life, none for each token.

How the life of a request reads from them, in this order:

    Submitted            the request has a row; it is NEW. Until the row's terminal edge, the row means this request.
    Transition           every edge that a single request takes: submit, admit, retract, finish, abort, …
    StepPlanned          a step is launched. The edges of planning it (retract, admit) come just before it.
    StepCommitted        its tokens are applied. Carries the edges of all its segments (chunk, first_token, token,
                         stale_token), one event for each; there is no Transition for them. What follows from its
                         tokens (finish) comes after it.
    StepRolledBack       the step never happened. Its admissions are undone (restore, cause step_lost) without a
                         Transition of their own; a request that has left work meanwhile stays where it is.

Arrays are numpy when a record is made, never changed, encoded later, and bytes when read (`lifecycle/columns.py`).
"""

from __future__ import annotations

import hashlib
from enum import Enum
from functools import lru_cache
from typing import Any, TypeAlias, get_args

import msgspec
import numpy as np

from pawl.lifecycle.columns import Bools as Bools
from pawl.lifecycle.columns import CacheChange as CacheChange
from pawl.lifecycle.columns import Embedded as Embedded
from pawl.lifecycle.columns import Float32Column as Float32Column
from pawl.lifecycle.columns import Int32Column as Int32Column
from pawl.lifecycle.columns import Int32s as Int32s
from pawl.lifecycle.columns import PageCounts as PageCounts
from pawl.lifecycle.columns import PageKeys as PageKeys
from pawl.lifecycle.columns import Scores as Scores
from pawl.lifecycle.columns import UInt8Column as UInt8Column
from pawl.lifecycle.columns import UInt8s as UInt8s
from pawl.lifecycle.columns import encode_column
from pawl.lifecycle.columns import float32s as float32s
from pawl.lifecycle.columns import int32s as int32s
from pawl.lifecycle.columns import uint8s as uint8s
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.machines.adapter import AdapterEvent, AdapterPhase
from pawl.lifecycle.machines.weight_group import GroupEvent, GroupPhase
from pawl.lifecycle.machines.weights import WeightEvent, Weights
from pawl.lifecycle.marks import Answered as Answered
from pawl.lifecycle.marks import AnswersClosed as AnswersClosed
from pawl.lifecycle.marks import Contained as Contained
from pawl.lifecycle.marks import Digest as Digest
from pawl.lifecycle.marks import Flushed as Flushed
from pawl.lifecycle.marks import Gap as Gap
from pawl.lifecycle.marks import Idled as Idled
from pawl.lifecycle.marks import MemoryMoved as MemoryMoved
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause, Event, State

STOPPED = "stopped"
"""`Closed.reason` of an engine that stopped as it should: every request has had its terminal edge."""


class Started(msgspec.Struct, frozen=True, array_like=True, tag=0, kw_only=True):
    """The engine is up. The first record of every trace."""

    version: str
    model: str
    config: dict[str, Any]
    """Whatever a replay needs to build the same engine; msgpack types only."""
    num_pages: int
    page_size: int
    num_slots: int
    seed: int
    time: float
    """Monotonic seconds, as in every other record."""
    wall: float
    """Seconds since the epoch at `time`."""


class Submitted(msgspec.Struct, frozen=True, array_like=True, tag=1, kw_only=True, eq=False):
    """The scheduler has received a request. It is NEW until the Transition that follows (submit, or abort)."""

    request: int
    row: int
    rid: str
    tokens: Int32Column
    """The prompt, [n]."""
    sampling: SamplingParameters
    priority: int
    namespace: str
    deadline: float | None
    """When its time is over, on the clock of `time`; None: never."""
    time: float
    output: Int32Column = b""
    """What it has had from replicas that were lost, [n]. The next two are as its client is told."""
    num_cached: int = 0
    num_retractions: int = 0
    """Times that it has lost its memory: at least 1 where one of those had begun it."""
    num_older: int = 0
    """Tokens of `output` that other weights have drawn than those that are served."""


class Transition(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """One request took one edge of the table."""

    request: int
    row: int
    source: State
    event: Event
    target: State
    cause: Cause
    step: int
    """The step being planned or committed when it happened; 0 before the first."""
    time: float
    num_cached: int | None = None
    """ADMIT: leading tokens that the prefix cache had; the first segment starts there. GRANT, RECEIVE: no more than so
    many of these count as cached, as those behind are computed elsewhere for this very request. FETCH: leading tokens
    that the prefix cache has, and keeps until the fetch ends."""
    num_output: int | None = None
    """FINISH, ABORT: output tokens that count. Less than were committed only when a stop string cut them."""


class StepPlanned(msgspec.Struct, frozen=True, array_like=True, tag=3, eq=False):
    """A step was launched. Segment i is positions starts[i] .. starts[i]+lengths[i]-1 of the request in rows[i]."""

    step: int
    time: float
    rows: Int32Column
    slots: Int32Column
    starts: Int32Column
    lengths: Int32Column
    chained: UInt8Column
    """1: the input is the token that the worker drew last for this slot."""
    samples: UInt8Column
    """1: one token is drawn from the last position."""
    page_slots: Int32Column
    """page_table[page_slots[j], page_indices[j]] = pages[j]: pages taken, and the cached pages of an admission."""
    page_indices: Int32Column
    pages: Int32Column


class StepCommitted(msgspec.Struct, frozen=True, array_like=True, tag=4, eq=False):
    """The oldest step in flight is done."""

    step: int
    time: float
    events: UInt8Column
    """The event of each segment, in the order of StepPlanned: CHUNK, FIRST_TOKEN, TOKEN; STALE_TOKEN for a segment
    (sampled or not) whose request left work after the step was planned."""
    tokens: Int32Column
    """Of each segment that samples, in that order; those of requests that have left work included."""
    pages: PageCounts
    digest: int = 0
    """Of memory, as the step came back and before anything followed from it: 64 bits, unsigned. Two runs that took the
    same decisions have the same. 0: not recorded."""
    counts: Int32Column | None = None
    """Tokens of each segment, 0 where it samples none: what counts of the run that was drawn. None: one each."""
    scores: Scores | None = None
    """Log-probabilities that the step gave to clients; None: nobody had asked."""
    embedded: Embedded | None = None
    """Vectors that the step gave to clients; None: there are none."""


class StepRolledBack(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The newest step in flight was undone."""

    step: int
    reason: str
    time: float
    blameless: bool = False  # what computed it was lost, and no request of it has a part in that


class Delivered(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The loop was told something. With arrivals, answers of the workers and what lower tiers say, these are the inputs
    of a replay: what follows from one is recorded after it."""

    kind: str
    """The order's tag."""
    fields: dict[str, Any]
    """Its fields by name; plain values."""
    number: int
    """Of whoever waits for its outcome, unlike all others of the run; 0: nobody does."""
    time: float


class TierTold(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Something came from the cache tiers below the device, or of a prefill elsewhere. Only replay needs it: what
    follows from it is recorded."""

    kind: str
    """kept, dropped (of `keys`); filled, fenced, expired (of the fetch `ticket`); received, overdue (of the prefill
    elsewhere `ticket`); prefiller_up, prefiller_down (number `ticket`)."""
    ticket: int
    count: int
    """filled: pages that were written; received: pages that were sent."""
    keys: PageKeys
    time: float
    num_cached: int = 0
    """received: leading tokens that the cache of the prefill replica had."""


class Cached(msgspec.Struct, frozen=True, array_like=True, tag=13, eq=False):
    """What has changed in the prefix cache since the record before. What follows from a record comes after it, so this
    stands ahead of the first record that knows of the change."""

    changes: tuple[CacheChange, ...]


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, tag=17, eq=False):
    """All that decides what the engine does next, at a moment without a step in flight: a replay may begin here."""

    started: Started
    state: bytes | None
    """What `loops/snapshot.py` makes of it; None where something cannot be written out, which `missing` names."""
    missing: str
    time: float


class WeightsMoved(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """An update of the weights has begun, has come further, or has ended."""

    source: Weights
    event: WeightEvent
    target: Weights
    version: str
    """What replies call the weights that serve from here on."""
    fingerprint: str
    """Of these."""
    time: float


class AdapterMoved(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Something has become of an adapter."""

    number: int
    """Of this incarnation, which no other of the run has."""
    name: str
    source: AdapterPhase
    event: AdapterEvent
    target: AdapterPhase
    slot: int
    """That is its own from here on; 0: it has none."""
    fingerprint: str
    """Of its content; empty until it is known."""
    time: float


class WeightGroupMoved(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """The engine has joined, uses, or has left a group in which a trainer broadcasts weights."""

    number: int
    """Counts the groups of a run."""
    source: GroupPhase
    event: GroupEvent
    target: GroupPhase
    time: float


class Counts(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Totals since start, as the engine's own counters have them."""

    received: int
    """Requests that reached the scheduler."""
    finished: int
    aborted: int
    live: int
    prompt_tokens: int
    """Of requests that were not refused at submission."""
    output_tokens: int
    """That count: committed, and not cut by a stop string."""
    retractions: int


class Closed(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The last record of a complete trace."""

    reason: str
    counts: Counts
    pages: PageCounts | None = None


Record: TypeAlias = (
    Started
    | Submitted
    | Transition
    | StepPlanned
    | StepCommitted
    | StepRolledBack
    | Delivered
    | Digest
    | Gap
    | Closed
    | Idled
    | Flushed
    | TierTold
    | Cached
    | Answered
    | AnswersClosed
    | Contained
    | Checkpoint
    | WeightsMoved
    | AdapterMoved
    | WeightGroupMoved
    | MemoryMoved
)
RECORD_TYPES: tuple[type[msgspec.Struct], ...] = get_args(Record)


DRAWS: Bools = np.isin(np.arange(256), (Event.TOKEN, Event.FIRST_TOKEN))
"""By number of an event: whether it gives the request a token."""


def num_tokens(events: UInt8s, counts: Int32Column | None) -> Int32s:
    """Tokens that each segment of a committed step has given its request, int32 [n]."""
    drew = DRAWS.take(events)
    return drew.astype(np.int32) if counts is None else np.where(drew, int32s(counts), 0)


# ---- encoding ----

ENCODER = msgspec.msgpack.Encoder(enc_hook=encode_column)
"""Encodes one record, or a sequence of them; arrays become bytes."""
DECODER: msgspec.msgpack.Decoder[list[Record]] = msgspec.msgpack.Decoder(list[Record])
"""Decodes a msgpack array of records. Raises msgspec.ValidationError or msgspec.DecodeError."""


@lru_cache(maxsize=1)
def schema_hash() -> bytes:
    """8 bytes that change whenever a record type, its fields or a vocabulary does."""
    kinds: tuple[type[msgspec.Struct], ...] = (*RECORD_TYPES, Counts, SamplingParameters, Grammar)
    lines = [
        f"{kind.__name__} {kind.__struct_config__.tag}: "
        + ", ".join(f"{name}: {kind.__annotations__[name]}" for name in kind.__struct_fields__)
        for kind in kinds
    ]
    of_machines: tuple[type[Enum], ...] = (Weights, WeightEvent, AdapterPhase, AdapterEvent)
    vocabularies: tuple[type[Enum], ...] = (State, Event, Cause, GrammarKind, *of_machines)
    for words in vocabularies:
        lines.append(f"{words.__name__}: " + ", ".join(f"{word.name}={word.value}" for word in words))
    lines += [f"{kind.__name__}: {kind._fields}" for kind in (PageCounts, CacheChange, Scores, Embedded)]
    return hashlib.sha256("\n".join(lines).encode()).digest()[:8]
