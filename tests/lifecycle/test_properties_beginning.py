"""Each property judges what follows a checkpoint as it does in a run whose beginning is there."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import pytest

from pawl.lifecycle.properties.ending import Incarnation
from pawl.lifecycle.properties.monitor import WELL_FORMED, Monitor
from pawl.lifecycle.records import AnswersClosed, Delivered, Record, Started, Transition
from pawl.lifecycle.states import Cause, Event
from tests.lifecycle.canaries import STORY, Canary
from tests.lifecycle.canaries_shared import ANSWERS, answered, scored, stopped, twins
from tests.lifecycle.cutting import cut, moments
from tests.lifecycle.test_properties import ALL, judged

SOUND = {
    "the story": STORY.records,
    "with replies": answered(*ANSWERS),
    "with a reply in place of the scheduler, which has failed": answered((1, Cause.INTERNAL, 3), *ANSWERS[1:]),
    "with replies before the end": [
        *STORY.records[:-1],
        *answered(*ANSWERS, time=1e3)[len(STORY.records) : -1],
        STORY.records[-1],
        AnswersClosed(3, 1e9),
    ],
    "with log-probabilities": scored(
        {"top_logprobs": 2, "prompt_logprobs": True}, (1, 5, 2), *((1, position, 2) for position in range(1, 5))
    ),
    "twins": twins((7, 8), (7, 8, 9)),
}

OF_ENDED_REQUESTS = {
    *("a token after an abort", "a reply of another length", "a reply with another reason", "a stop beyond the end"),
    *("a reply that calls it drained before the engine stops", "a reply before the end"),
    *(plant for plant in ALL if plant.startswith("another output, by ")),
}
"""What contradicts the end of a request: it is not in a checkpoint after it."""
OF_WHOLE_RUNS = {
    "a stop that the scheduler is told twice": "the first time may have been before",
    "no reply": "a request that is live may have been told its end before",
    "a vector that its equal has not": "what an equal got that has ended is not known",
    "a request that is never done": "steps are counted anew",
    "a turn before one that has waited longer": "turns are counted anew",
    "the prompt with most left first": "how many pages are free is not known until a step is committed",
    "a draft at once behind one of which nothing was right": "what came of the drafts before is not known",
    "a reply of output before the request came": "when a request came that is live is not known",
    "a step behind a failure of which no checkpoint was taken": "a checkpoint was, behind it",
    "a reply in place of the scheduler, which has not failed": "it may have survived a failure before",
}


def of_several(records: Sequence[Record]) -> list[Record]:
    """The same run, of one of several replicas behind a router."""
    started, *rest = records
    assert isinstance(started, Started)
    return [msgspec.structs.replace(started, config=started.config | {"replica": 1}), *rest]


@pytest.mark.parametrize("run", SOUND)
def test_from_no_moment_on_a_sound_run_of_one_of_several_replicas_violates_anything(run: str) -> None:
    records = of_several(SOUND[run])
    for at in moments(records):
        assert judged(cut(records, at)).violations == [], f"cut before record {at}: {records[at]}"


def test_who_came_from_a_lost_replica_to_one_that_stops_has_had_tokens_and_never_ran_there() -> None:
    run = answered(*ANSWERS, (9, Cause.WORKER_LOST, 2))
    assert ["never ran" in str(fault) for fault in judged(run).violations] == [True]
    assert judged(of_several(run)).violations == []


def test_a_text_may_stop_a_request_of_one_of_several_replicas_that_has_ended_before_a_checkpoint() -> None:
    records = of_several([*STORY.records[:-1], stopped(3, 1), STORY.records[-1]])
    assert any(moment > STORY.labels["finish 3"] for moment in moments(records))
    for moment in moments(records):
        monitor = Monitor([Incarnation()])
        for record in cut(records, moment):
            monitor.observe(record)
        assert monitor.violations == [], f"cut before record {moment}"


def ended(canary: Canary, at: int) -> set[int]:
    """Requests that have ended in the first `at` records."""
    moves = [move for move in canary.records[:at] if isinstance(move, Transition)]
    return {move.request for move in moves if move.event in (Event.FINISH, Event.ABORT)}


def planted_at(canary: Canary) -> int:
    """The first record that is not the sound story's; without one, the first that shows it."""
    differs = (at for at, (a, b) in enumerate(zip(canary.records, STORY.records, strict=False)) if a is not b)
    first = next(differs, len(STORY.records))
    if first:
        return first
    return next(found.record for found in judged(canary.records).violations if found.property == canary.property)


@pytest.mark.parametrize("run", SOUND)
def test_from_no_moment_on_a_sound_run_violates_anything(run: str) -> None:
    records = SOUND[run]
    cuts = list(moments(records))
    assert len(cuts) > 5
    for at in cuts:
        assert judged(cut(records, at)).violations == [], f"cut before record {at}: {records[at]}"


@pytest.mark.parametrize("plant", ALL)
def test_a_canary_after_a_checkpoint_is_reported_from_there(plant: str) -> None:
    canary = ALL[plant]
    for at in moments(canary.records):
        if at > planted_at(canary):
            return
        found = judged(cut(canary.records, at)).violations
        if any(each.property == canary.property and re.search(canary.words, each.explanation) for each in found):
            continue
        if plant in OF_WHOLE_RUNS or (plant in OF_ENDED_REQUESTS and ended(canary, at)):
            continue
        # Of a request that is unknown here it is at least said that it cannot be.
        assert {each.property for each in found} & {canary.property, WELL_FORMED}, f"cut before record {at}"
        assert canary.request in {each.request for each in found}, f"cut before record {at}"


@pytest.mark.parametrize("run", SOUND)
def test_a_clock_that_stands_still_makes_nothing_wrong(run: str) -> None:
    still = [msgspec.structs.replace(each, time=7.0) if hasattr(each, "time") else each for each in SOUND[run]]
    assert judged(still).violations == []


@pytest.mark.parametrize("too_early_s", [0.0, 0.5])
def test_a_client_is_told_that_the_engine_stops_from_that_moment_on(too_early_s: float) -> None:
    *before, last = STORY.records
    replies = answered((1, Cause.DRAINED, 3), *ANSWERS[1:])[len(STORY.records) :]
    stops = Delivered("drain", {}, 0, 1e9 + too_early_s)
    found = {broken.property for broken in judged([*before, stops, last, *replies]).violations}
    assert ("stream_equals_result" in found) is (too_early_s > 0.0)
