"""Planted violations of what control messages owe: flushes, pauses, sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pawl.lifecycle.records import Delivered, Flushed, Record, Started, Submitted
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.canaries import STORY, Canary
from tests.lifecycle.canaries_shared import planted
from tests.lifecycle.story import PAGE_SIZE, Segment, Story, changed, token

PAUSED = Delivered("pause", {"retract": False}, 0, 0.0)
RETRACTING = Delivered("pause", {"retract": True}, 0, 0.0)
CONTINUED = Delivered("continue", {}, 0, 0.0)
SLOWED = Delivered("slow_down", {"forward_sleep_time": 60.0}, 0, 0.0)


def limited(**limits: int) -> Delivered:
    """Limits are set."""
    return Delivered("set_state", limits, 0, 0.0)


def as_turn(
    *,
    capacity: int = 0,
    closed: bool = False,
    parent: str | None = None,
    tokens: Sequence[int] = (0,),
    announced: Sequence[dict[str, Any]] = ({},),
) -> list[Record]:
    """The story, whose third request is said to be a turn of a session, as often as it is `announced`, each time with
    other fields; the first two are such turns."""
    records = [STORY.records[0], Delivered("open_session", {"session": "s", "capacity": capacity}, 0, 0.0)]
    own = {1: list(range(6)), 2: list(range(5)), 3: list(tokens)}
    for record in STORY.records[1:]:
        if isinstance(record, Submitted):
            if closed and record.request == 3:
                records.append(Delivered("close_session", {"session_id": "s"}, 0, 0.0))
            fields: dict[str, Any] = {"request": record.request, "rid": record.rid, "session": "s"}
            fields |= {"tokens": own[record.request], "max_new_tokens": record.sampling.max_new_tokens}
            if record.request == 3:
                records += [Delivered("begin_turn", fields | {"parent": parent} | each, 0, 0.0) for each in announced]
            elif not capacity:
                records.append(Delivered("begin_turn", fields, 0, 0.0))
        records.append(record)
    return records


def refused(records: Sequence[Record], cause: Cause = Cause.INVALID) -> list[Record]:
    """The last request is refused as soon as it is there."""
    at, taken = max((at, each) for at, each in enumerate(records) if getattr(each, "event", None) == Event.SUBMIT)
    refusal = {"event": Event.ABORT, "target": State.ABORTED, "cause": cause, "num_output": 0}
    return [*records[:at], msgspec.structs.replace(taken, **refusal)]


def beside(*, alone: bool, prompts: int, waiting: int = 0, max_step_s: float = 1.1) -> list[Record]:
    """A request decodes, `alone` or never so yet, and then beside a prompt of which this much is computed, while so
    many wait. A step may take so long for the sake of prompts; one of 6 positions took half a second, and so did the
    one that decodes alone."""
    story = Story()
    story.start()
    started = story.records[0]
    assert isinstance(started, Started)
    settings = started.config["loop"] | {"max_step_s": max_step_s}
    story.records[0] = msgspec.structs.replace(started, config=started.config | {"loop": settings})
    story.submit(1, 0, 6, 6)
    story.submit(2, 1, 12, 6)
    for number in range(waiting):
        story.submit(3 + number, 2 + number, 6, 6)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 6, pages=((0, 0), (1, 1))))
    story.commit(1, [Event.FIRST_TOKEN], 1)
    if alone:
        story.plan(2, token(0, 6))
        story.commit(2, [Event.TOKEN], 1)
    story.admit(2, 1)
    step, pages = story.step + 1, tuple((index, 4 + index) for index in range(-(-prompts // PAGE_SIZE)))
    story.plan(step, token(0, 5 + step), Segment(1, 0, prompts, samples=prompts == 12, pages=pages))
    return story.records


CONTROL_CANARIES: dict[str, Canary] = {
    "work for a request that came when the engine drained": Canary(
        "abort_is_total",
        planted("submitted 2", Delivered("drain", {"grace_s": 9.0}, 0, float("inf"))),
        "step 5 is planned and the request",
        3,
    ),
    "a flush of a live request": Canary(
        "quiescent_flush", planted("admit 2", Flushed(float("inf"))), "flushed with 2 requests live", 1
    ),
    "a flush that leaves something": Canary(
        "quiescent_flush", planted("finish 3", Flushed(float("inf"))), "the cache was flushed, and has 1 pages"
    ),
    "a flush while paused, of a request that has kept its memory": Canary(
        "quiescent_flush", planted("admit 2", PAUSED, Flushed(float("inf"))), "flushed with 2 requests live", 1
    ),
    "a step while paused": Canary(
        "paused_is_still", planted("commit 3", PAUSED), "a step was planned while the engine was paused"
    ),
    "an admission while paused": Canary(
        "paused_is_still", planted("submitted 3", PAUSED), "its admission was planned while the engine was paused", 3
    ),
    "a pause that retracts, and leaves somebody at work": Canary(
        "paused_is_still", planted("commit 2", RETRACTING, CONTINUED), "everybody to be retracted, and it is at work", 1
    ),
    "a step that has not waited": Canary(
        "limits_hold", planted("commit 1", SLOWED), "step 2 has waited for .* s, where steps wait for 60 s"
    ),
    "more at work than may run": Canary(
        "limits_hold", planted("admit 1", limited(max_running=1)), "2 requests run with it, where 1 may", 2
    ),
    "more who wait than may": Canary(
        "limits_hold",
        planted("started", limited(max_queued=1)),
        "it comes to wait beside 1 requests, where 1 may",
        2,
    ),
    "one who is refused beside free places": Canary(
        "limits_hold",
        refused(STORY.records, Cause.OVERLOADED),
        "it is refused beside . requests that wait, where 8 may",
        3,
    ),
    "more prompt tokens than a step may compute": Canary(
        "limits_hold", planted("commit 1", limited(prefill_chunk=5)), "step 2 computes 7 prompt tokens, where 5 may be"
    ),
    "more prompt tokens than there is time for": Canary(
        "bounded_gaps", beside(alone=True, prompts=12), "12 prompt tokens beside 1 requests .* have time for 7"
    ),
    "more than there is time for, of those who wait": Canary(
        "bounded_gaps",
        beside(alone=True, prompts=12, waiting=3, max_step_s=0.1),
        "12 prompt tokens beside 1 requests .* have time for 10",
    ),
    "a prompt beside requests that were to be measured alone": Canary(
        "bounded_gaps", beside(alone=False, prompts=4), "4 prompt tokens beside 1 requests .* have time for 0"
    ),
    "a retraction by a pause that was none": Canary(
        "true_causes", changed(STORY, "retract 3", cause=Cause.PAUSED), "retracted by a pause, and none says so", 3
    ),
    "a turn whose prompt is not what it goes on from": Canary(
        "session_atomicity", as_turn(parent="r1"), "not what it goes on from and its own: .0, 1, 2, 3, 4, 5, ", 3
    ),
    "a turn that goes on from one that was aborted": Canary(
        "session_atomicity", as_turn(parent="r2", tokens=list(range(9))), "turn 'r2' has not finished", 3
    ),
    "a turn that is announced as another request": Canary(
        "session_atomicity", as_turn(announced=[{"request": 4}]), "request 4 was announced, whose turn it is", 3
    ),
    "a turn that is announced with more output": Canary(
        "session_atomicity", as_turn(announced=[{"max_new_tokens": 99}]), "announced as turn 'r3' of 99 tokens", 3
    ),
    "a turn that never comes": Canary(
        "session_atomicity", as_turn(announced=[{"request": 4}, {}]), "announced, and it never came", 4
    ),
    "a turn of a session that is closed": Canary(
        "session_atomicity", as_turn(closed=True, tokens=list(range(9))), "its session is not open", 3
    ),
    "a turn that is refused for nothing": Canary(
        "session_atomicity", refused(as_turn(tokens=list(range(9)))), "could have been one", 3
    ),
    "a session that holds more than it may": Canary(
        "session_atomicity", as_turn(capacity=5, tokens=list(range(9))), "its session has no room for it", 3
    ),
}
