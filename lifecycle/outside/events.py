"""A run of any scheduler as lines of JSON, one event each, and the records that they become.

docs/checking.md has the events and their fields. Fields that are not known are ignored, so that an exporter may write
more. What is read is bounded: the length of a line, how many requests live at once, and what is kept of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeAlias

import msgspec

from pawl.lifecycle.columns import PageCounts
from pawl.lifecycle.outside.recorder import OutsideRecorder, Part
from pawl.lifecycle.properties.history import MOST_PAGES
from pawl.lifecycle.records import Record
from pawl.lifecycle.request import MAX_STOP_TOKENS
from pawl.lifecycle.states import Cause
from pawl.lifecycle.trace.reader import Damage, DamageKind

MOST_LINE = 16 << 20
"""Bytes of one line."""
MOST_REQUESTS = 16_384
"""Requests that live at once, and some that have ended."""
MOST_TOKENS = 1 << 24
"""Requests that are kept, times the tokens of the longest output."""
MOST_IN_FLIGHT = 1024
"""Steps."""

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 30)]
Positive = Annotated[int, msgspec.Meta(ge=1, lt=1 << 30)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float | None = None
    """Seconds on any clock that does not go back; None: that of the event before."""


class StartedEvent(_Event, frozen=True, kw_only=True, tag="started"):
    scheduler: str = ""
    pages: Annotated[int, msgspec.Meta(ge=0, le=MOST_PAGES)] = 0
    page_size: Positive = 1
    reproducible: bool = False


class SubmittedEvent(_Event, frozen=True, kw_only=True, tag="submitted"):
    request: Name
    prompt: list[Count]
    max_new_tokens: Count
    stop_token_ids: Annotated[list[Count], msgspec.Meta(max_length=MAX_STOP_TOKENS)] = []
    eos_token_ids: Annotated[list[Count], msgspec.Meta(max_length=MAX_STOP_TOKENS)] = []
    priority: int = 0
    namespace: str = ""


class AdmittedEvent(_Event, frozen=True, kw_only=True, tag="admitted"):
    request: Name
    cached: Count = 0


class SegmentFields(msgspec.Struct, frozen=True, kw_only=True):
    request: Name
    start: Count
    count: Positive
    draws: bool
    pages: list[Count] | None = None


class PlannedEvent(_Event, frozen=True, kw_only=True, tag="planned"):
    step: Positive
    segments: Annotated[list[SegmentFields], msgspec.Meta(min_length=1)]


class PagesFields(msgspec.Struct, frozen=True, kw_only=True):
    free: Count
    owned: Count
    cached: Count = 0


class CommittedEvent(_Event, frozen=True, kw_only=True, tag="committed"):
    step: Positive
    tokens: dict[str, list[Count]] = {}
    pages: PagesFields | None = None


class LostEvent(_Event, frozen=True, kw_only=True, tag="lost"):
    step: Positive


class PreemptedEvent(_Event, frozen=True, kw_only=True, tag="preempted"):
    request: Name
    keeps: bool = False


class FinishedEvent(_Event, frozen=True, kw_only=True, tag="finished"):
    request: Name
    reason: Literal["length", "stop", "eos"]
    told: Count | None = None


class AbortedEvent(_Event, frozen=True, kw_only=True, tag="aborted"):
    request: Name
    told: Count | None = None


class StoppedEvent(_Event, frozen=True, kw_only=True, tag="stopped"):
    pages: PagesFields | None = None


Event: TypeAlias = (
    StartedEvent
    | SubmittedEvent
    | AdmittedEvent
    | PlannedEvent
    | CommittedEvent
    | LostEvent
    | PreemptedEvent
    | FinishedEvent
    | AbortedEvent
    | StoppedEvent
)
_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_CAUSES = {"length": Cause.LENGTH, "stop": Cause.STOP_TOKEN, "eos": Cause.EOS}


class NotAnEvent(Exception):
    """A line is none of the events, or says what cannot be said there."""


class EventReader:
    """Streams the records of a file of events, and says what is wrong with it: with the face of a `TraceReader`.

    Reading stops at the first line that is no event; what was yielded before it is sound.
    """

    def __init__(self, path: Path) -> None:
        self.damage: list[Damage] = []
        self.num_blocks = 0
        """Lines that were read."""
        self.num_records = 0
        self._path = path
        self._size = path.stat().st_size
        self._num_bytes = 0
        self._made: list[Record] = []
        self._recorder = OutsideRecorder(self._made.append)
        self._numbers: dict[str, int] = {}
        """Name -> number, of requests whose records are kept."""
        self._num_named = 0
        self._names: dict[int, str] = {}
        self._begun = False

    @property
    def share(self) -> float:
        """Which part of the file is read, 0 to 1."""
        return min(1.0, self._num_bytes / max(self._size, 1))

    def __iter__(self) -> Iterator[Record]:
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[list[Record]]:
        """The records of each line."""
        with self._path.open("rb") as stream:
            for line in self._lines(stream):
                try:
                    if line.strip():
                        self._take(_DECODER.decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, NotAnEvent) as error:
                    self.damage.append(self._damage_of(line, error))
                    return
                records = self._made[:]
                self._made.clear()
                self.num_blocks += 1
                self.num_records += len(records)
                yield records

    def _lines(self, stream: BinaryIO) -> Iterator[bytes]:
        while line := stream.readline(MOST_LINE):
            self._num_bytes += len(line)
            if len(line) == MOST_LINE and not line.endswith(b"\n"):
                reason = f"more than {MOST_LINE >> 20} MiB in line {self.num_blocks + 1}"
                self.damage.append(Damage(DamageKind.CORRUPT, self.num_blocks, reason))
                return
            yield line

    def _damage_of(self, line: bytes, error: Exception) -> Damage:
        """What is wrong with a line that is no event. The last one may be torn off: then it is no JSON."""
        if not (line.endswith(b"\n") or isinstance(error, msgspec.ValidationError | NotAnEvent)):
            return Damage(DamageKind.TORN, self.num_blocks, f"it ends inside line {self.num_blocks + 1}")
        return Damage(DamageKind.CORRUPT, self.num_blocks, f"line {self.num_blocks + 1}: {error!s:.300}")

    # ---- one event ----

    def _take(self, event: Event) -> None:
        """Raises NotAnEvent."""
        recorder = self._recorder
        if event.time is not None:
            recorder.time = event.time
        if isinstance(event, StartedEvent) == self._begun:
            raise NotAnEvent("it is started twice" if self._begun else "the first event must be `started`")
        match event:
            case StartedEvent():
                self._begun = True
                recorder.started(
                    scheduler=event.scheduler,
                    num_pages=event.pages,
                    page_size=event.page_size,
                    reproducible=event.reproducible,
                )
            case SubmittedEvent():
                self._submit(event)
            case AdmittedEvent():
                recorder.admitted(self._number(event.request), event.cached)
            case PreemptedEvent():
                recorder.preempted(self._number(event.request), keeps=event.keeps)
            case PlannedEvent():
                self._plan(event)
            case CommittedEvent():
                self._commit(event)
            case LostEvent():
                self._in_step(event.step)
                recorder.lost(event.step)
            case FinishedEvent():
                recorder.finished(self._number(event.request), _CAUSES[event.reason], event.told)
            case AbortedEvent():
                recorder.aborted(self._number(event.request), told=event.told)
            case StoppedEvent():
                recorder.stopped(_counts(event.pages))
        for number in recorder.take_forgotten():
            name = self._names.pop(number)
            if self._numbers.get(name) == number:
                del self._numbers[name]

    def _submit(self, event: SubmittedEvent) -> None:
        if not event.prompt:
            raise NotAnEvent(f"request {event.request!r:.80} has no prompt")
        if len(event.stop_token_ids) + len(event.eos_token_ids) > MAX_STOP_TOKENS:
            raise NotAnEvent(f"request {event.request!r:.80} has more than {MAX_STOP_TOKENS} stop and eos tokens")
        if self._recorder.num_rows >= MOST_REQUESTS:
            raise NotAnEvent(f"more than {MOST_REQUESTS} requests live at once")
        number = self._numbers.get(event.request)
        # One that is used again while its request lives is the same request, submitted twice.
        if number is None or self._recorder.has_ended(number):
            self._num_named += 1
            number = self._num_named
            self._numbers[event.request], self._names[number] = number, event.request
        self._recorder.submitted(
            number,
            event.prompt,
            event.max_new_tokens,
            rid=event.request,
            stop_token_ids=event.stop_token_ids,
            eos_token_ids=event.eos_token_ids,
            priority=event.priority,
            namespace=event.namespace,
        )

    def _plan(self, event: PlannedEvent) -> None:
        if self._recorder.num_in_flight >= MOST_IN_FLIGHT:
            raise NotAnEvent(f"more than {MOST_IN_FLIGHT} steps in flight")
        parts = [
            Part(self._number(each.request), each.start, each.count, each.draws, each.pages) for each in event.segments
        ]
        self._recorder.planned(event.step, parts)

    def _commit(self, event: CommittedEvent) -> None:
        tokens = {self._number(name): drawn for name, drawn in event.tokens.items()}
        for number in tokens.keys() - self._in_step(event.step):
            raise NotAnEvent(f"step {event.step} has no part of request {self._names[number]!r:.80}")
        self._recorder.committed(event.step, tokens, _counts(event.pages))
        if self._recorder.num_rows * self._recorder.longest > MOST_TOKENS:
            raise NotAnEvent(f"{self._recorder.num_rows} requests, and an output of {self._recorder.longest} tokens")

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            raise NotAnEvent(f"no request is called {name!r:.80}")
        return number

    def _in_step(self, step: int) -> frozenset[int]:
        """Requests of a step in flight."""
        try:
            return self._recorder.requests_of(step)
        except KeyError:
            raise NotAnEvent(f"no step {step} is in flight") from None


def _counts(pages: PagesFields | None) -> PageCounts | None:
    return None if pages is None else PageCounts(pages.free, pages.owned, pages.cached, 0, 0)
