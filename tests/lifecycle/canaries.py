"""Planted violations: for each property some record, or run, that it must report. Of requests and steps.

What is planted in the cache and in outputs is in tests/lifecycle/canaries_shared.py.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from pawl.lifecycle.properties.monitor import WELL_FORMED
from pawl.lifecycle.records import Closed, PageCounts, Record
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.story import AT_REST, PAGES, Segment, changed, planned, sound_run, token, without

STORY = sound_run(answered=False)


def events(*values: Event) -> np.ndarray:
    return np.array(values, np.uint8)


def closed_with(**counts: int) -> list[Record]:
    closed = STORY.records[-1]
    assert isinstance(closed, Closed)
    return changed(STORY, "closed", counts=msgspec.structs.replace(closed.counts, **counts))


def replanned(step: int, *segments: Segment) -> list[Record]:
    records = list(STORY.records)
    records[STORY.labels[f"plan {step}"]] = planned(step, 0.0, *segments)
    return records


def moved(label: str, to: str) -> list[Record]:
    """The request that was submitted there comes before that."""
    at, to_at = STORY.labels[label], STORY.labels[to]
    records = list(STORY.records)
    arrival = records[at : at + 2]
    return [*records[:to_at], *arrival, *records[to_at:at], *records[at + 2 :]]


def back_before_the_loss() -> list[Record]:
    """What the third request was admitted to is lost after something has taken it back to the queue."""
    records, at = list(STORY.records), STORY.labels["rollback 6"]
    back = records[STORY.labels["retract 3"]]
    return [*records[:at], msgspec.structs.replace(back, source=State.PREFILLING, event=Event.FETCHED), *records[at:]]


class Canary(NamedTuple):
    """A planted violation."""

    property: str
    records: list[Record]
    words: str
    """Of the explanation, a regular expression."""
    request: int | None = None


CANARIES: dict[str, Canary] = {
    "an edge of a step outside of one": Canary(
        "legal_lifecycle", changed(STORY, "admit 1", event=Event.CHUNK), "CHUNK outside of a committed step", 1
    ),
    "an edge that the table lacks": Canary(
        "legal_lifecycle", changed(STORY, "admit 1", event=Event.FETCHED), "FETCHED.* is not allowed in QUEUED", 1
    ),
    "a row that is given away while a step names it": Canary(
        "legal_lifecycle", moved("submitted 3", "plan 4"), "row 1 was given away while step 3", 2
    ),
    "a request that is back before its admission is undone": Canary(
        "legal_lifecycle", back_before_the_loss(), "FETCHED.* is not allowed in PREFILLING", 3
    ),
    "an engine without pages": Canary(WELL_FORMED, changed(STORY, "started", num_pages=0), "an engine of 0 pages"),
    "pages of no tokens": Canary(WELL_FORMED, changed(STORY, "started", page_size=0), "pages of 0 tokens"),
    "a row that no engine has": Canary(WELL_FORMED, changed(STORY, "submitted 1", row=-1), "request 1 has row -1", 1),
    "page columns of two lengths": Canary(
        WELL_FORMED, changed(STORY, "plan 1", page_slots=np.zeros(0, np.int32)), "page columns of step 1 differ"
    ),
    "tokens counted where none are drawn": Canary(
        WELL_FORMED, changed(STORY, "commit 1", counts=np.ones(1, np.int32)), "step 1 draws for .., and counts .1."
    ),
    "tokens counted for other segments": Canary(
        WELL_FORMED, changed(STORY, "commit 2", counts=np.ones(3, np.int32)), "step 2 draws for .0 1., and counts"
    ),
    "a cause that the edge does not admit": Canary(
        "legal_lifecycle", changed(STORY, "finish 1", cause=Cause.CLIENT), r"FINISH\(client\) is not allowed", 1
    ),
    "a source that the request is not in": Canary(
        "legal_lifecycle",
        changed(STORY, "finish 1", source=State.PREFILLING),
        "leaves PREFILLING, but the request was in DECODING",
        1,
    ),
    "a target that the edge does not have": Canary(
        "legal_lifecycle", changed(STORY, "abort 2", target=State.FINISHED), "to ABORTED, not to FINISHED", 2
    ),
    "a guard that is not met": Canary(
        "legal_lifecycle",
        changed(STORY, "admit 1", event=Event.FINISH, target=State.FINISHED, cause=Cause.STOP_STRING),
        "needs its guard has_output",
        1,
    ),
    "a second end": Canary(
        "legal_lifecycle",
        [*STORY.records[:-1], STORY.records[STORY.labels["finish 1"]], STORY.records[-1]],
        "leaves DECODING, but the request was in FINISHED",
        1,
    ),
    "no end": Canary("legal_lifecycle", without(STORY, "finish 3"), "no terminal edge when the engine stopped", 3),
    "a number used twice": Canary("incarnation", changed(STORY, "submitted 3", request=2), "before", 2),
    "a number behind a higher one": Canary(
        "incarnation", changed(STORY, "submitted 2", request=9), "behind one with a higher number", 3
    ),
    "a row given away while in use": Canary(
        "legal_lifecycle", changed(STORY, "submitted 2", row=0), "row 0 is given away while request 1 has it", 1
    ),
    "a move in another request's row": Canary(
        "legal_lifecycle", changed(STORY, "finish 1", row=1), "request 1 moves in row 1, which is 2's", 1
    ),
    "a token applied after an abort": Canary(
        "legal_lifecycle",
        changed(STORY, "commit 3", events=events(Event.TOKEN, Event.TOKEN)),
        "TOKEN for a request that has left work since step 3 was planned",
        2,
    ),
    "a token called stale without need": Canary(
        "legal_lifecycle",
        changed(STORY, "commit 3", events=events(Event.STALE_TOKEN, Event.STALE_TOKEN)),
        "STALE_TOKEN for a request that has not left work",
        1,
    ),
    "a first token while decoding": Canary(
        "legal_lifecycle",
        changed(STORY, "commit 4", events=events(Event.FIRST_TOKEN)),
        "FIRST_TOKEN.* is not allowed in DECODING",
        1,
    ),
    "an admission that was not undone with its step": Canary(
        "legal_lifecycle",
        [r for i, r in enumerate(STORY.records) if i not in (STORY.labels["rollback 6"], STORY.labels["plan 6"])],
        "ADMIT leaves QUEUED, but the request was in PREFILLING",
        3,
    ),
    "a page that is nowhere": Canary(
        "conservation", changed(STORY, "commit 3", pages=PAGES._replace(free=PAGES.free - 1)), "16 pages, but: free 9"
    ),
    "a negative count": Canary(
        "conservation", changed(STORY, "commit 3", pages=PageCounts(18, -2, 0, 0, 0)), "owned -2"
    ),
    "a page owned by nobody": Canary(
        "conservation",
        changed(STORY, "closed", pages=AT_REST._replace(free=14, owned=1)),
        "no request is live .* but 1 pages are owned",
    ),
    "a page taken while a request uses it": Canary(
        "conservation",
        replanned(2, Segment(0, 4, 2, pages=((1, 1),)), Segment(1, 0, 5, pages=((0, 0), (1, 3)))),
        "page 0 was taken as free while a request uses it",
        1,
    ),
    "a page taken twice": Canary(
        "conservation",
        replanned(2, Segment(0, 4, 2, pages=((1, 3),)), Segment(1, 0, 5, pages=((0, 2), (1, 2)))),
        "page 2 was taken twice by one step",
    ),
    "a page that does not exist": Canary(
        "conservation", replanned(1, Segment(0, 0, 4, samples=False, pages=((0, 16),))), "page 16 is not one of 16"
    ),
    "a page before the first": Canary(
        "conservation",
        replanned(2, Segment(0, 4, 2, pages=((1, -1),)), Segment(1, 0, 5, pages=((0, 2), (1, 3)))),
        "page -1 is not one of 16",
    ),
    "a page taken while a step may write to it": Canary(
        "no_reuse_before_fence",
        replanned(4, Segment(0, 7, 2, pages=((2, 2),))),
        "page 2 was taken while a step that may touch it was in flight",
    ),
    "a hole in a prompt": Canary(
        "stream_positions",
        replanned(2, Segment(0, 5, 1), Segment(1, 0, 5)),
        "positions 5 to 5, but position 4 is next",
        1,
    ),
    "a position computed twice": Canary(
        "stream_positions", replanned(3, token(0, 5), token(1, 5)), "positions 5 to 5, but position 6 is next", 1
    ),
    "a position past what is known": Canary(
        "stream_positions", replanned(4, Segment(0, 7, 2)), "only 8 tokens are known or in flight", 1
    ),
    "a token drawn from the middle": Canary(
        "stream_positions", changed(STORY, "plan 1", samples=np.array([True])), "draws a token from the last of them", 1
    ),
    "a chained segment that is not the last token": Canary(
        "stream_positions", changed(STORY, "plan 1", chained=np.array([True])), "the worker drew last", 1
    ),
    "an empty segment": Canary(
        "stream_positions", replanned(1, Segment(0, 0, 0, samples=False)), "an empty segment", 1
    ),
    "two segments of one request": Canary(
        "stream_positions", replanned(3, token(0, 6), token(0, 6)), "two segments of one request", 1
    ),
    "work for a request that is not admitted": Canary(
        "stream_positions", without(STORY, "admit 2"), "of a request that is not at work", 2
    ),
    "a prefix hit of the whole prompt": Canary(
        "stream_positions", changed(STORY, "admit 1", num_cached=6), "6 of 6 known tokens are cached", 1
    ),
    "a token lost": Canary(
        "stream_positions", changed(STORY, "commit 4", events=events(Event.CHUNK)), "loses a token that it drew", 1
    ),
    "a token from nowhere": Canary(
        "stream_positions", changed(STORY, "commit 1", events=events(Event.FIRST_TOKEN)), "that it did not draw", 1
    ),
    "more output than was asked for": Canary(
        "stream_positions",
        changed(
            STORY,
            "submitted 1",
            sampling=msgspec.structs.replace(STORY.records[STORY.labels["submitted 1"]].sampling, max_new_tokens=2),  # type: ignore[union-attr]
        ),
        "output token 3 of a request that asked for 2",
        1,
    ),
    "output cut without a stop string": Canary(
        "stream_positions", changed(STORY, "finish 1", num_output=2), "2 output tokens, but 3 were committed", 1
    ),
    "an end for length too early": Canary(
        "stream_positions",
        changed(STORY, "finish 3", cause=Cause.LENGTH, num_output=2),
        "for its length with 2 output tokens of 8",
        3,
    ),
    "a request that nobody counted": Canary(
        "observability_conservation", closed_with(received=2), "the engine counts received = 2, its records show 3"
    ),
    "totals that do not add up": Canary(
        "observability_conservation", closed_with(live=1), "received 3 is not finished 2"
    ),
    "tokens that nobody counted": Canary(
        "observability_conservation", closed_with(output_tokens=6), "output_tokens = 6, its records show 5"
    ),
    "prompt tokens that nobody counted": Canary(
        "observability_conservation", closed_with(prompt_tokens=0), "prompt_tokens = 0, its records show 20"
    ),
    "retractions that nobody counted": Canary(
        "observability_conservation", closed_with(retractions=0), "retractions = 0, its records show 1"
    ),
    "a step committed before an older one": Canary(
        WELL_FORMED, without(STORY, "commit 2"), "step 3 is committed, but it is not the oldest in flight"
    ),
    "a step rolled back that is not the newest": Canary(
        WELL_FORMED, changed(STORY, "rollback 6", step=5), "step 5 is rolled back, but it is not the newest"
    ),
    "a step planned again": Canary(WELL_FORMED, changed(STORY, "plan 4", step=3), "planned after step 3"),
    "columns of different lengths": Canary(
        WELL_FORMED, changed(STORY, "plan 3", starts=np.zeros(1, np.int32)), "columns of step 3 differ in length"
    ),
    "a commit of another length": Canary(
        WELL_FORMED, changed(STORY, "commit 3", events=events(Event.TOKEN)), "2 segments, its commit 1"
    ),
    "a token too many": Canary(
        WELL_FORMED, changed(STORY, "commit 1", tokens=np.zeros(1, np.int32)), "draws 0 tokens, and got 1"
    ),
    "a segment of a row that nobody has": Canary(
        WELL_FORMED, changed(STORY, "plan 1", rows=np.full(1, 9, np.int32)), "a row that no request was given"
    ),
    "an event that is none": Canary(
        WELL_FORMED, changed(STORY, "commit 1", events=np.full(1, 99, np.uint8)), "an event 99, which is none"
    ),
    "a column of three bytes": Canary(WELL_FORMED, changed(STORY, "plan 1", rows=b"abc"), "multiple of element size"),
    "time that goes back": Canary("time_order", changed(STORY, "plan 3", time=0.25), "time goes back from .* to 0.25"),
    "pages of another size than the loop's": Canary(
        "start_agrees", changed(STORY, "started", page_size=8), "page_size = 8, its loop page_size = 4"
    ),
    "a ghost that the kernels compute": Canary(
        "start_agrees", changed(STORY, "started", model="ghost"), "the model is ghost, and native computes it"
    ),
    "a start that does not say what computes": Canary(
        "start_agrees", changed(STORY, "started", config={}), "does not say what computes"
    ),
    "a second start": Canary("start_agrees", [STORY.records[0], *STORY.records], "starts a second time"),
    "records after the end": Canary(WELL_FORMED, [*STORY.records, STORY.records[0]], "the one that closes the trace"),
}
