"""Replay of a recorded run: the same inputs into a fresh loop, every record it makes compared with the recorded one.

A trace holds inputs and decisions in one sequence. A record that the loop does not make by itself is an input:

    Submitted                 a request arrived
    Delivered                 the loop was given an order: an abort, a stop string, a flush, a deadline that passed
    StepPlanned, Idled,       the loop was told to turn
      Transition retract, admit,
      load; AdapterMoved
    Transition abort,         the worker answered: it has no token or vector for a request, and why,
    StepCommitted             and the step's tokens, and digests of its vectors
    StepRolledBack            the worker lost it
    TierTold                  the cache tiers below the device said something

What the gateway records (Answered) is not followed, nor are log-probabilities: nothing is decided from them. Everything
else follows from these, endings, flushes and changes of the prefix cache ahead of what caused them included, and must
come out as it was recorded, times and digests included. No model is needed: the tokens are in the trace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from pawl.lifecycle.columns import digests_of
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.properties.history import MOST_PAGES, MOST_ROWS
from pawl.lifecycle.records import (
    ENCODER,
    AdapterMoved,
    Answered,
    AnswersClosed,
    Cached,
    Checkpoint,
    Closed,
    Contained,
    Delivered,
    Gap,
    Idled,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    TierTold,
    Transition,
    int32s,
)
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause, Event
from pawl.lifecycle.step import Embedding, StepResult
from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.lifecycle.weight_source import Sent
from pawl.loops.adapter import AdapterEffects, Named
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.intake import Intake, Order, Outcome
from pawl.loops.orders import order_of
from pawl.loops.select import LoopConfig, make_loop
from pawl.loops.snapshot import checkpoint, restore
from pawl.loops.tiers import PageFetch, PrefillOrder
from pawl.loops.weights import Served
from pawl.memory.arrays import Indices, Int32s
from pawl.memory.violation import MemoryViolation

_NO_VECTOR = np.zeros(0, np.float32)


class Diverged(Exception):
    """The loop decided otherwise than it is recorded to have done."""

    def __init__(self, number: int, recorded: Record | None, made: Record | None) -> None:
        super().__init__(f"record {number}: recorded {recorded}, made again {made}")
        self.number = number
        """Number of the recorded record, counted from 0."""
        self.recorded = recorded
        self.made = made


class NotReplayable(Exception):
    """The trace does not hold what a replay needs."""


class Impossible(Exception):
    """What is recorded cannot be done to any loop; whoever wrote it was none."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error!s:.300}")
        self.number = number
        """Number of the record, counted from 0."""


class Replay:
    """One run again, record by record."""

    def __init__(self, started: Started, core: str | None = None) -> None:
        """Builds the loop that `started` describes, with this core of the cache where one is given. Raises
        NotReplayable."""
        try:
            config = msgspec.convert(started.config["loop"], LoopConfig)
        except (KeyError, msgspec.ValidationError) as error:
            raise NotReplayable(f"the trace does not say how its loop was set up: {error}") from error
        if msgspec.to_builtins(config) != started.config["loop"]:
            raise NotReplayable("the trace does not say how its loop was set up: a setting is missing, or is none")
        if max(config.num_pages, config.num_window_pages or 0) > MOST_PAGES or config.max_running > MOST_ROWS:
            raise NotReplayable("its loop has more pages or rows than any engine")
        if core is not None:
            config = msgspec.structs.replace(config, cache_core=core)
        self._made: deque[Record] = deque()
        self._ahead: list[Cached] = []
        """Recorded changes of the cache whose cause is in a record to come."""
        try:
            self.loop = make_loop(config, self, Journal(self._made.append, started), self)
        except Exception as error:  # settings may be anything
            raise NotReplayable(f"its loop cannot be set up: {type(error).__name__}: {error}") from error
        self.members = self
        self.intake = Intake(self.loop, self, config.served)
        self.violations: list[MemoryViolation] = []
        """Properties of memory that were found broken on the way."""
        self.number = 0
        """Records taken in, `started` included."""
        self._newest_asker = 0
        """Of the orders so far."""
        self.closed = False
        """Whether the end of the run has been taken in."""

    @classmethod
    def begin(cls, first: Record | None) -> Replay:
        """The run that begins with this record: the start of an engine, or a checkpoint. Raises NotReplayable, and
        Impossible, MemoryViolation or Diverged for a checkpoint that no loop has written."""
        if isinstance(first, Started):
            run = cls(first)
            run.number = 1
            return run
        if not isinstance(first, Checkpoint):
            raise NotReplayable("the beginning of the run is not in the trace")
        if first.state is None:
            raise NotReplayable(f"the trace begins with a checkpoint that leaves out {first.missing}")
        # A restored cache is one in Python; what it decides is the same.
        run = cls(first.started, core="python")
        try:
            restore(run.intake, msgspec.msgpack.decode(first.state))
            run._newest_asker = max(run.intake.waiting, default=0)
            run.loop.check_all()
        except MemoryViolation:
            raise
        except Exception as error:  # it may be anything
            raise Impossible(0, error) from error
        run.feed(first)
        return run

    # ---- effects ----

    def opened(self, row: int, info: RequestInfo, tokens: Int32s) -> None: ...

    def launch(self, scheduled: ScheduledBatch) -> None: ...

    def output(
        self, rows: Indices, tokens: Int32s, scheduled: ScheduledBatch | None, result: StepResult | None
    ) -> None: ...

    def ended(self, ending: Ending) -> None: ...

    def answered(self, number: int, outcome: Outcome) -> None: ...

    def remind(self, delay_s: float, order: Order) -> None: ...

    def stage(self, ticket: int, source: Sent, last: bool) -> None: ...

    def exchanged(self, served: Served) -> None: ...

    @property
    def adapter_effects(self) -> AdapterEffects:
        return self

    def read(self, ticket: int, slot: int, source: str) -> None: ...

    def empty(self, slot: int) -> None: ...

    def named(self, adapters: tuple[Named, ...], resting: tuple[Named, ...]) -> None: ...

    def join_group(self, number: int, place: Place) -> None: ...

    def receive_weights(self, number: int, ticket: int, specs: Sequence[TensorSpec], flat: bool) -> None: ...

    def keep_groups(self, numbers: Sequence[int]) -> None: ...

    def violated(self, violation: MemoryViolation) -> None:
        self.violations.append(violation)

    def save(self, number: int, pages: Int32s, keys: tuple[bytes, ...]) -> None: ...

    def fetch(self, order: PageFetch) -> None: ...

    def fence(self, ticket: int) -> None: ...

    def empty_host(self, era: int) -> None: ...

    def prefill(self, order: PrefillOrder) -> None: ...

    def cancel(self, ticket: int, prefiller: int) -> None: ...

    def end_of_pages(self, request: int, num_cached: int) -> None: ...

    # ---- records ----

    def feed(self, record: Record) -> None:
        """Take in the next record: check it if it was decided, act on it if it was an input. Raises Diverged,
        NotReplayable, Impossible, or MemoryViolation."""
        try:
            self._feed(record)
        except (Diverged, NotReplayable, MemoryViolation):
            raise
        except Exception as error:  # what is recorded may be anything: no loop was meant to survive it
            raise Impossible(self.number, error) from error

    def _feed(self, record: Record) -> None:
        self.number += 1
        if isinstance(record, Gap):
            raise NotReplayable(f"record {self.number}: {record.count} records were lost here ({record.reason})")
        if isinstance(record, Contained):
            raise NotReplayable(f"record {self.number}: the scheduler failed here, and went on ({record.failure})")
        if isinstance(record, Answered | AnswersClosed):
            return
        if not self._made:
            if isinstance(record, Cached):
                self._ahead.append(record)
                return
            self._act(record)
        self.closed = isinstance(record, Closed)
        if isinstance(record, StepCommitted) and record.scores is not None:
            record = msgspec.structs.replace(record, scores=None)
        ahead, self._ahead = self._ahead, []
        for each in (*ahead, record):
            made = self._made.popleft() if self._made else None
            if made is None or ENCODER.encode(made) != ENCODER.encode(each):
                raise Diverged(self.number, each, made)

    def finish(self) -> None:
        """The trace ends here. Raises Diverged when the loop decided more than is recorded."""
        if self._made:
            raise Diverged(self.number, None, self._made[0])
        if self._ahead:
            raise Diverged(self.number, self._ahead[0], None)

    def _act(self, record: Record) -> None:
        loop = self.loop
        match record:
            case Submitted():
                self._submit(record)
            case Delivered():
                self._asked(record.number)
                self.intake.deliver(self._order(record), record.time, record.number)
            case Transition(event=Event.ABORT, cause=Cause.INTERNAL | Cause.GRAMMAR) if record.row in self._answered():
                loop.requests.no_answer(record.row, record.cause, record.time)
            case Transition() | StepPlanned() | Idled() | AdapterMoved():
                loop.turn(record.time)
            case StepCommitted() if loop.in_flight and loop.in_flight[0].step == record.step:
                loop.executed(_result(record, loop.in_flight[0]), record.time)
            case StepRolledBack() if loop.in_flight:
                loop.failed(loop.in_flight[0].step, record.reason, record.time, record.blameless)
            case TierTold():
                for companion in loop.companions:
                    companion.told(record)
            case Checkpoint():
                checkpoint(self.intake, record.time)
            case Closed():
                loop.journal.closed(record.reason, loop.counters, len(loop.table), loop.memory.pages)
            case _:
                pass

    def _asked(self, number: int) -> None:
        """Whoever waits for an order's outcome has a number that nobody had before."""
        if number and number <= self._newest_asker:
            raise ValueError(f"order {number} comes behind order {self._newest_asker}: each has a number of its own")
        self._newest_asker = max(number, self._newest_asker)

    def _answered(self) -> list[int]:
        """Rows that were to get something of the oldest step."""
        return self.loop.in_flight[0].answered_rows if self.loop.in_flight else []

    def _submit(self, record: Submitted) -> None:
        info = RequestInfo(record.request, record.rid, record.sampling, record.namespace, record.time)
        info.num_cached, info.num_older = record.num_cached, record.num_older
        info.num_retractions = info.num_resumed = record.num_retractions
        deadline = float("inf") if record.deadline is None else record.deadline
        tokens = np.array(int32s(record.tokens))
        self.intake.submit(info, tokens, record.priority, deadline, record.time, int32s(record.output))

    def _order(self, record: Delivered) -> Order:
        """Raises Diverged for an order that no loop was ever given."""
        try:
            return order_of(record.kind, record.fields)
        except msgspec.ValidationError:
            raise Diverged(self.number, record, None) from None


def _result(record: StepCommitted, scheduled: ScheduledBatch) -> StepResult:
    """What the worker answered, as far as it counts."""
    counts = None if record.counts is None else int32s(record.counts)[scheduled.batch.samples]
    embeddings: list[Embedding] = []
    if record.embedded is not None:
        slots = dict(zip(scheduled.rows.tolist(), scheduled.batch.slots.tolist(), strict=True))
        rows, digests = int32s(record.embedded.rows).tolist(), digests_of(record.embedded)
        embeddings = [Embedding(slots[row], _NO_VECTOR, digest) for row, digest in zip(rows, digests, strict=True)]
    return StepResult(record.step, int32s(record.tokens), counts=counts, embeddings=tuple(embeddings))


def replay(records: Iterable[Record]) -> Replay:
    """Replay a whole trace, or what is left of one from a checkpoint on. Raises Diverged at the first difference,
    NotReplayable when something is missing, and Impossible or MemoryViolation for what no loop can have done."""
    records = iter(records)
    run = Replay.begin(next(records, None))
    for record in records:
        run.feed(record)
    run.finish()
    return run
