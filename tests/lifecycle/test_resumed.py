"""A request that a lost replica had goes on in another one with what is recorded of it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from pawl.actors.simulation.case import Case
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.exploration import explore
from pawl.lifecycle.records import (
    Answered,
    Checkpoint,
    Gap,
    PageCounts,
    Record,
    Started,
    StepCommitted,
    Submitted,
    Transition,
)
from pawl.lifecycle.resumed import GoneOn, Held, Name, Replica, gone_on, replica_of
from pawl.lifecycle.states import Cause, Event, State
from pawl.testing.exploring import STRATEGIES, most_steps, scenario_of
from tests.lifecycle.story import Segment, planned, started, submitted
from tests.mutants.in_replicas import REPLICAS
from tests.mutants.mutant import planted
from tests.mutants.places import SCHEDULES, place_of

PROMPT = [1, 2, 3]


def begun(replica: int = 0, wall: float = 100.0, role: str = "unified") -> Started:
    return started(role, time=50.0, wall=wall, replica=replica)


def trace(
    *tokens: int,
    came_with: Sequence[int] = (),
    retractions: int = 0,
    rid: str = "client",
    prompt: Sequence[int] = PROMPT,
    answered: bool = False,
    ends: bool = False,
    began: float = 100.0,
) -> list[Record]:
    """A replica takes request 7 and draws these tokens of it, one a second."""
    arrival = submitted(7, rid, prompt, came_with, time=50.0, num_retractions=retractions)
    records: list[Record] = [begun(wall=began), arrival]
    records.append(Transition(7, 0, State.NEW, Event.SUBMIT, State.QUEUED, Cause.NONE, 0, 50.0))
    records.append(Transition(7, 0, State.QUEUED, Event.ADMIT, State.PREFILLING, Cause.NONE, 0, 50.0, 0))
    known = len(prompt) + len(came_with)
    for step, drawn in enumerate(tokens, start=1):
        start, length = (0, known) if step == 1 else (known + step - 2, 1)
        event = Event.FIRST_TOKEN if step == 1 else Event.TOKEN
        records.append(planned(step, 50.0 + step, Segment(0, start, length)))
        columns = np.array([event], np.uint8), np.array([drawn], np.int32)
        records.append(StepCommitted(step, 50.0 + step, *columns, PageCounts(5, 3, 0, 0, 0)))
    if ends:
        records.append(Transition(7, 0, State.DECODING, Event.FINISH, State.FINISHED, Cause.LENGTH, 0, 60.0, None, 1))
    if answered:
        records.append(Answered(7, Cause.LENGTH, len(tokens), 61.0, 1))
    return records


def compared(*traces: Sequence[Record]) -> GoneOn:
    return gone_on([replica_of(each) for each in traces])


LOST = trace(5, 6, 7)


@pytest.mark.parametrize(
    "others",
    [
        [trace(8, came_with=[5, 6, 7], retractions=1, answered=True)],
        [trace(7, came_with=[5, 6], retractions=1, answered=True)],
        [trace(5, came_with=[], retractions=1)],
        [trace(9, came_with=[5, 6, 7, 8], retractions=1)],  # its trace was lost with it, to the end of a block
        [trace(7, 8, came_with=[5, 6], retractions=1), trace(9, came_with=[5, 6, 7, 8], retractions=2)],
        # What the first had done beyond what its client had, the second has done otherwise.
        [trace(1, 2, came_with=[5, 6], retractions=1), trace(9, came_with=[5, 6, 1, 2], retractions=2)],
        [trace(9, came_with=[1, 2], retractions=2)],  # what the one in between did is in no trace
        [trace(5, 6), trace(5, 6)],  # nobody had heard of its admission
        [trace(8, ends=True, answered=True, rid="another"), trace(8, prompt=[1, 2], answered=True)],
    ],
)
def test_what_goes_on_from_what_was_recorded_is_sound(others: list[list[Record]]) -> None:
    assert compared(LOST, *others).faults == ()
    assert compared(*others[::-1], LOST).faults == ()


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([trace(8, came_with=[5, 9], retractions=1)], "not what the one before it had recorded"),
        ([trace(8, came_with=[5, 6, 8], retractions=1)], "not what the one before it had recorded"),
        ([trace(8, came_with=[6], retractions=1)], "not what the one before it had recorded"),
        (
            [trace(1, came_with=[5], retractions=1), trace(9, came_with=[5, 2, 3], retractions=2)],
            "not what the one before it had recorded",
        ),
        (
            [trace(6, came_with=[5, 6], retractions=1), trace(9, came_with=[5, 7, 8], retractions=3)],
            "neither goes on from the other",
        ),
        ([trace(answered=True), trace(8, came_with=[5], retractions=1, answered=True)], "its end from two replicas"),
    ],
)
def test_what_goes_on_from_something_else_is_named(others: list[list[Record]], words: str) -> None:
    for traces in ((LOST, *others), (*others[::-1], LOST)):
        (fault,) = compared(*traces).faults
        assert fault.startswith("request 7 ")
        assert words in fault


def test_a_request_that_has_ended_keeps_what_it_had() -> None:
    assert compared(trace(5, 6, ends=True), trace(1, came_with=[5, 7], retractions=1)).faults


def also(number: int, records: Sequence[Record]) -> list[Record]:
    """The trace of a replica in which the same has become of a second request, in another row."""
    seconds: list[Record] = []
    for record in records:
        if isinstance(record, Submitted | Transition | Answered):
            fields = {"request": number} if isinstance(record, Answered) else {"request": number, "row": 1}
            seconds.append(msgspec.structs.replace(record, **fields))
    return [*records, *seconds]


def test_every_request_that_is_open_at_the_end_has_what_it_had_by_then() -> None:
    both = replica_of(also(8, trace(came_with=[5, 6], retractions=1)))
    assert both is not None
    assert [(held.name.number, held.output) for held in both.held] == [
        (number, np.array([5, 6], np.int32).tobytes()) for number in (7, 8)
    ]


def test_every_request_of_every_engine_is_compared() -> None:
    wrong = trace(8, came_with=[5, 9], retractions=1)
    before = [LOST, wrong]
    after = [
        [msgspec.structs.replace(first, wall=200.0), *rest] for first, *rest in before if isinstance(first, Started)
    ]
    found = compared(*before, *after)
    assert (found.requests, len(found.faults)) == (2, 2)
    assert compared(*before, *after[:1]).requests == 1
    assert compared(*after, *before[:1]).requests == 1


def test_only_what_several_replicas_had_is_counted() -> None:
    assert compared(LOST, trace(8, came_with=[5], retractions=1), trace(5, rid="another")).requests == 1
    assert compared(LOST).requests == 0
    assert gone_on([]) == GoneOn(0, ())


def test_replicas_that_were_never_there_together_are_of_two_engines() -> None:
    before, after = trace(5, answered=True), trace(6, answered=True, began=200.0)
    assert compared(before, after) == GoneOn(0, ())
    beside = [begun(2, 90.0), Transition(9, 1, State.NEW, Event.SUBMIT, State.QUEUED, Cause.NONE, 0, 160.0)]
    assert compared(before, beside, after).requests == 1, "a third was there with both"
    assert compared(after, before, beside).requests == 1
    assert compared(before, after, [*beside[:1]]).requests == 0


def test_a_replica_is_there_from_its_start_to_its_last_record() -> None:
    found = replica_of(trace(5, 6, answered=True))
    name = Name(7, "client", np.array(PROMPT, np.int32).tobytes())
    held = Held(name, b"", 0, np.array([5, 6], np.int32).tobytes(), True)
    assert found == Replica(100.0, 111.0, [held])
    assert replica_of([begun()]) == Replica(100.0, 100.0, [])


@pytest.mark.parametrize("first", [begun(role="prefill"), msgspec.structs.replace(begun(), config={"loop": {}})])
def test_who_answers_nobody_and_who_is_alone_has_no_request_of_another(first: Started) -> None:
    assert replica_of([first, *LOST[1:]]) is None
    assert replica_of([]) is None
    assert replica_of(LOST[1:]) is None


def test_a_trace_without_its_beginning_is_compared_from_its_checkpoint_on() -> None:
    found = replica_of([Checkpoint(begun(), None, "what a policy keeps", 50.0), *LOST[1:]])
    assert found is not None
    assert (found.began, found.ended) == (100.0, 103.0)


@pytest.mark.parametrize("gap", [Gap(0, 1), msgspec.structs.replace(LOST[1], tokens=b"abc", row=1, request=8)])
def test_behind_what_is_lost_or_no_record_nothing_is_known(gap: Record) -> None:
    *begun, last = LOST
    found = replica_of([*begun, gap, last])
    assert found is not None
    assert [len(held.output) for held in found.held] == [8]


@pytest.mark.parametrize("name", ["last_known_token_is_another", "what_came_with_a_request_is_recorded_as_its_prompt"])
def test_defects_of_what_comes_with_a_request_show_in_the_traces_of_a_simulated_run(name: str) -> None:
    """Whichever property names them first there."""
    place, cases = place_of(name), list[Any]()
    scenario = scenario_of(place.workload, place.faults)

    def kept(source: ChoiceSource) -> Case:
        cases.append(scenario(source))
        return cast(Case, cases[-1])

    with planted(next(mutant for mutant in REPLICAS if mutant.name == name)):
        strategy = STRATEGIES[place.strategy](place.seed)
        explore(kept, strategy, SCHEDULES, max_steps=most_steps(place.workload), most_shrink_runs=0)
    (fault,) = compared(*(replica.trace.records for replica in cases[-1].replicas)).faults
    assert fault.endswith("not what the one before it had recorded")
