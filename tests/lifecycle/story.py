"""A small sound run, record by record: what the tests of traces, properties and audit start from.

Two requests share steps under overlap; one is aborted while a step with it is in flight, one runs to its length. A
third begins with a page that the first has left in the cache; it is retracted as the next step cannot be planned,
admitted again by a step that is lost, and ends by a stop string that cuts its last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from pawl.lifecycle.records import (
    ENCODER,
    STOPPED,
    Answered,
    AnswersClosed,
    CacheChange,
    Cached,
    Checkpoint,
    Closed,
    Contained,
    Counts,
    Delivered,
    Digest,
    PageCounts,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
)
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause, Event, State
from pawl.lifecycle.trace.writer import TraceWriter

PLENTY = 1 << 30
NUM_PAGES = 16
PAGE_SIZE = 4
PAGES = PageCounts(10, 4, 1, 1, 0)
NOTHING_CACHED = PageCounts(10, 5, 0, 1, 0)
AT_REST = PageCounts(15, 0, 1, 0, 0)


LOOP = {
    "page_size": PAGE_SIZE,
    "max_running": 4,
    "max_queued": 8,
    "prefill_chunk": 12,
    "pacing": "overlap",
    "mixed": True,
    "weights": "",
}


class Segment(NamedTuple):
    row: int
    start: int
    length: int
    samples: bool = True
    chained: bool = False
    pages: tuple[tuple[int, int], ...] = ()
    """(index, page)"""


def token(row: int, start: int, pages: tuple[tuple[int, int], ...] = ()) -> Segment:
    """A decode segment."""
    return Segment(row, start, 1, chained=True, pages=pages)


def started(role: str, *, time: float = 0.0, wall: float = 0.0, **config: object) -> Started:
    """A small replica of this role begins its trace."""
    told: dict[str, object] = {"loop": {"role": role}} | config
    return Started(
        version="t", model="m", config=told, num_pages=8, page_size=4, num_slots=2, seed=0, time=time, wall=wall
    )


def submitted(
    request: int,
    rid: str,
    tokens: Sequence[int],
    output: Sequence[int] = (),
    *,
    time: float = 0.0,
    num_retractions: int = 0,
) -> Submitted:
    """A request that asks for nothing special comes to row 0, with what has come out of it elsewhere."""
    return Submitted(
        request=request,
        row=0,
        rid=rid,
        tokens=np.array(tokens, np.int32),
        sampling=SamplingParameters(),
        priority=0,
        namespace="",
        deadline=None,
        time=time,
        output=np.array(output, np.int32),
        num_retractions=num_retractions,
    )


def planned(step: int, time: float, *segments: Segment) -> StepPlanned:
    """The record of a step with these segments; the slot of row n is n."""
    columns = np.array([s[:3] for s in segments], np.int32).reshape(-1, 3).T.copy()
    entries = np.array([(s.row, index, page) for s in segments for index, page in s.pages], np.int32)
    chained = np.array([s.chained for s in segments], np.bool_)
    samples = np.array([s.samples for s in segments], np.bool_)
    rows, starts, lengths = columns
    return StepPlanned(step, time, rows, rows, starts, lengths, chained, samples, *entries.reshape(-1, 3).T.copy())


def stored(namespace: str, parent: int | None, *pages: int) -> CacheChange:
    """Pages come into the cache."""
    return CacheChange("stored", namespace, parent, np.array(pages, np.int32))


def removed(*pages: int) -> CacheChange:
    """Pages leave the cache."""
    return CacheChange("removed", "", None, np.array(pages, np.int32))


class Story:
    """Appends records; `labels` names the places that tests change."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.labels: dict[str, int] = {}
        self._time = 0.0
        self.step = 0

    def add(self, record: Record, label: str | None = None) -> None:
        if label is not None:
            self.labels[label] = len(self.records)
        self.records.append(record)

    def now(self) -> float:
        self._time += 0.5
        return self._time

    def start(self) -> None:
        self.add(
            Started(
                version="0.1.0",
                model="story",
                config={"backend": "native", "loop": dict(LOOP)},
                num_pages=NUM_PAGES,
                page_size=PAGE_SIZE,
                num_slots=4,
                seed=7,
                time=self.now(),
                wall=1e9,
            ),
            "started",
        )

    def submit(self, request: int, row: int, num_prompt: int, num_wanted: int) -> None:
        self.add(
            Submitted(
                request=request,
                row=row,
                rid=f"r{request}",
                tokens=np.arange(num_prompt, dtype=np.int32),
                sampling=SamplingParameters(temperature=0.0, max_new_tokens=num_wanted),
                priority=0,
                namespace="",
                deadline=None,
                time=self.now(),
            ),
            f"submitted {request}",
        )
        self.move(request, row, State.NEW, Event.SUBMIT, State.QUEUED)

    def move(
        self,
        request: int,
        row: int,
        source: State,
        event: Event,
        target: State,
        cause: Cause = Cause.NONE,
        num_cached: int | None = None,
        num_output: int | None = None,
    ) -> None:
        record = Transition(request, row, source, event, target, cause, self.step, self.now(), num_cached, num_output)
        self.add(record, f"{event.name.lower()} {request}")

    def admit(self, request: int, row: int, num_cached: int = 0) -> None:
        self.move(request, row, State.QUEUED, Event.ADMIT, State.PREFILLING, num_cached=num_cached)

    def write_down(self) -> None:
        """A checkpoint, which a failure that was survived is followed by."""
        (started,) = (each for each in self.records if isinstance(each, Started))
        self.add(Checkpoint(started, None, "what a policy of the user's own keeps", self.now()))

    def plan(self, step: int, *segments: Segment) -> None:
        self.step = step
        self.add(planned(step, self.now(), *segments), f"plan {step}")

    def commit(self, step: int, events: Sequence[Event], num_tokens: int, pages: PageCounts = PAGES) -> None:
        drawn = np.arange(num_tokens, dtype=np.int32) + 100 * step
        self.add(StepCommitted(step, self.now(), np.array(events, np.uint8), drawn, pages), f"commit {step}")


def sound_run(*, answered: bool = True) -> Story:
    """The run of this module's docstring; every property holds of it. Not `answered`: without the gateway's records."""
    story = Story()
    story.start()
    story.submit(1, 0, 6, 3)
    story.submit(2, 1, 5, 8)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 4, samples=False, pages=((0, 0),)))
    story.commit(1, [Event.CHUNK], 0, NOTHING_CACHED)
    story.add(Cached((stored("", None, 0),)), "cached 0")
    story.admit(2, 1)
    story.plan(2, Segment(0, 4, 2, pages=((1, 1),)), Segment(1, 0, 5, pages=((0, 2), (1, 3))))
    story.plan(3, token(0, 6), token(1, 5))
    story.commit(2, [Event.FIRST_TOKEN, Event.FIRST_TOKEN], 2)
    story.add(Delivered("abort", {"requests": [2]}, 0, story.now()))
    story.move(2, 1, State.DECODING, Event.ABORT, State.ABORTED, Cause.CLIENT, num_output=1)
    story.plan(4, token(0, 7))
    story.commit(3, [Event.TOKEN, Event.STALE_TOKEN], 2)
    story.commit(4, [Event.TOKEN], 1)
    story.move(1, 0, State.DECODING, Event.FINISH, State.FINISHED, Cause.LENGTH, num_output=3)
    story.submit(3, 1, 9, 8)
    _third(story)
    counts = Counts(received=3, finished=2, aborted=1, live=0, prompt_tokens=20, output_tokens=5, retractions=1)
    story.add(Closed(STOPPED, counts, AT_REST), "closed")
    for reply in replies_of(story.records) if answered else ():
        story.add(reply, f"answer {reply.request}" if isinstance(reply, Answered) else "answers closed")
    return story


def replies_of(records: Sequence[Record]) -> Iterator[Answered | AnswersClosed]:
    """What a gateway records that tells each client how its request has ended, and then stops."""
    count = 0
    for record in records:
        if isinstance(record, Transition) and record.event in (Event.FINISH, Event.ABORT):
            count += 1
            yield Answered(record.request, record.cause, record.num_output or 0, record.time, count)
    yield AnswersClosed(count, 1e9)


def _third(story: Story) -> None:
    story.admit(3, 1, num_cached=4)
    story.plan(5, Segment(1, 4, 5, pages=((0, 0), (1, 5), (2, 6))))
    story.commit(5, [Event.FIRST_TOKEN], 1)
    story.add(Digest(5, 2**64 - 1))
    story.add(Contained(0, "OSError at planner.py:40", story.now()))
    story.move(3, 1, State.DECODING, Event.RETRACT, State.QUEUED, Cause.STEP_LOST)
    story.write_down()
    story.admit(3, 1)
    story.plan(6, Segment(1, 0, 10, pages=((0, 7), (1, 8), (2, 9))))
    story.add(StepRolledBack(6, "the worker was lost", story.now()), "rollback 6")
    story.labels["first admit 3"] = story.labels["admit 3"]
    story.admit(3, 1)
    story.plan(7, Segment(1, 0, 10, pages=((0, 7), (1, 8), (2, 9))))
    story.commit(7, [Event.FIRST_TOKEN], 1)
    story.add(Delivered("finish", {"request": 3, "num_output": 1}, 0, story.now()))
    story.move(3, 1, State.DECODING, Event.FINISH, State.FINISHED, Cause.STOP_STRING, num_output=1)


def changed(story: Story, label: str, **fields: object) -> list[Record]:
    """The story's records, one of them with other fields."""
    records = list(story.records)
    index = story.labels[label]
    records[index] = msgspec.structs.replace(records[index], **fields)
    return records


def without(story: Story, label: str) -> list[Record]:
    """The story's records but one."""
    index = story.labels[label]
    return [*story.records[:index], *story.records[index + 1 :]]


def write(directory: Path, records: Sequence[Record], block: int = 8) -> Path:
    """Write `records` as a trace in blocks of `block`; its one file."""
    writer = TraceWriter(directory, PLENTY)
    for index, record in enumerate(records):
        writer.append(record)
        if index % block == block - 1:
            writer.flush()
    writer.close()
    (file,) = writer.path.iterdir()
    return file


def plain(records: Sequence[Record]) -> Iterator[bytes]:
    """Records as values that can be compared, whether they were made or read."""
    return map(ENCODER.encode, records)
