"""Each property holds of a sound run, and reports what is planted to break it (its canaries)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.lifecycle import properties
from pawl.lifecycle.columns import int32s
from pawl.lifecycle.machines.weight_group import GroupEvent, GroupPhase
from pawl.lifecycle.machines.weights import WEIGHTS
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.equals import Equals, Fate, Seen
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.monitor import PROPERTIES, WELL_FORMED, Monitor
from pawl.lifecycle.properties.steps import Malformed
from pawl.lifecycle.properties.time_order import TimeOrder
from pawl.lifecycle.properties.turns import FairMicroBatches
from pawl.lifecycle.properties.weight_groups import WeightGroups
from pawl.lifecycle.records import (
    DECODER,
    ENCODER,
    Checkpoint,
    Contained,
    Idled,
    Record,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
    WeightGroupMoved,
)
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause, Event, State
from tests.lifecycle.canaries import CANARIES, STORY
from tests.lifecycle.canaries_adapters import ADAPTER_CANARIES
from tests.lifecycle.canaries_contradicted import CONTRADICTED_CANARIES
from tests.lifecycle.canaries_control import CONTROL_CANARIES, as_turn, refused
from tests.lifecycle.canaries_drafted import DRAFTED_CANARIES
from tests.lifecycle.canaries_embedded import EMBEDDED_CANARIES, embeddings
from tests.lifecycle.canaries_memory import MEMORY_CANARIES
from tests.lifecycle.canaries_scarcity import SCARCITY_CANARIES, brought_in_place, gives_way, gives_way_between_two
from tests.lifecycle.canaries_shared import ANSWERS, SHARED_CANARIES, answered, twins, without_runner
from tests.lifecycle.canaries_turns import TURNS_CANARIES
from tests.lifecycle.canaries_weights import WEIGHT_CANARIES
from tests.lifecycle.cutting import cut, moments
from tests.lifecycle.story import Segment, Story, changed, token, without

ALL = (
    ADAPTER_CANARIES
    | CANARIES
    | SHARED_CANARIES
    | CONTROL_CANARIES
    | EMBEDDED_CANARIES
    | DRAFTED_CANARIES
    | TURNS_CANARIES
    | WEIGHT_CANARIES
    | SCARCITY_CANARIES
    | MEMORY_CANARIES
    | CONTRADICTED_CANARIES
)


def judged(records: Sequence[Record]) -> Monitor:
    monitor = Monitor()
    for record in records:
        monitor.observe(record)
    monitor.finish()
    return monitor


def test_a_sound_run_violates_nothing() -> None:
    assert judged(STORY.records).violations == []


def test_a_sound_run_of_vectors_violates_nothing() -> None:
    assert [each for each in judged(embeddings().records).violations if each.property == "embedded_once"] == []


def test_the_youngest_gives_way_where_pages_are_short() -> None:
    assert judged(gives_way(2, 3)).violations == []


def test_an_older_one_that_stays_at_work_does_not_hide_a_younger_one() -> None:
    (violation, *_) = judged(gives_way_between_two()).violations
    assert "and request 3, which is younger, stays at work" in violation.explanation


def test_pages_that_a_fetch_holds_are_in_use() -> None:
    assert judged(gives_way(2, 4, fetched=4)).violations == []
    assert [each.property for each in judged(gives_way(2, 5, fetched=4)).violations] == ["admission_is_monotone"]


def test_somebody_gives_way_where_nothing_goes_on_before_pages_have_come() -> None:
    assert judged(gives_way(2, 4, fetched=0, idle=True)).violations == []
    assert [each.property for each in judged(gives_way(2, 4, idle=True)).violations] == ["admission_is_monotone"]


def test_a_page_that_its_row_has_given_back_comes_from_below_for_another() -> None:
    assert judged(brought_in_place()).violations == []


def test_who_ran_when_what_computes_was_lost_between_steps_begins_anew() -> None:
    assert judged(without_runner(30)).violations == []
    found = judged(without_runner(30, told=False)).violations
    assert {each.property for each in found} == {"true_causes", "bounded_progress"}


def test_a_reply_may_stand_before_the_end_that_it_tells_of() -> None:
    told = answered(*ANSWERS)
    reply = msgspec.structs.replace(told.pop(len(STORY.records)), time=9.0)
    told.insert(STORY.labels["finish 1"], reply)
    assert judged(told).violations == []


@pytest.mark.parametrize("num_lost", [0, 1])
def test_a_request_that_a_lost_replica_had_may_have_been_answered_there(num_lost: int) -> None:
    records = [
        msgspec.structs.replace(record, num_retractions=num_lost)
        if isinstance(record, Submitted) and record.request == 1
        else record
        for record in answered(*ANSWERS[1:])
    ]
    found = [each.request for each in judged(records).violations if each.property == "legal_lifecycle"]
    assert found == ([] if num_lost else [1])


def test_without_the_start_nothing_is_judged_by_sizes_that_only_it_tells() -> None:
    assert judged(STORY.records[1:]).violations == []


def test_rows_far_apart_are_judged_as_near_ones() -> None:
    def moved(record: Record) -> Record:
        """The same with other rows: those of the story are 0 and 1."""
        if isinstance(record, Submitted | Transition):
            return msgspec.structs.replace(record, row=100 * record.row + 60)
        if isinstance(record, StepPlanned):
            return msgspec.structs.replace(record, rows=(100 * int32s(record.rows) + 60).astype(np.int32))
        return record

    assert judged([moved(record) for record in STORY.records]).violations == []
    canary = [moved(record) for record in changed(STORY, "finish 1", num_output=2)]
    assert "stream_positions" in {violation.property for violation in judged(canary).violations}


@pytest.mark.parametrize("begun", [False, True])
def test_pages_of_a_lost_step_may_be_taken_by_whoever_comes_next(begun: bool) -> None:
    story = Story()
    story.start()
    for request in (1, 2):
        story.submit(request, request, 4, 3)
    story.admit(1, 1)
    if begun:
        story.plan(1, Segment(1, 0, 4, pages=((0, 3),)))
        story.commit(1, [Event.FIRST_TOKEN], 1)
    story.plan(2, token(1, 4, pages=((1, 5),)) if begun else Segment(1, 0, 4, pages=((0, 5),)))
    story.add(StepRolledBack(2, "the worker was lost", story.now()))
    story.admit(2, 2)
    story.plan(3, Segment(2, 0, 4, pages=((0, 5),)))
    assert judged(story.records).violations == judged(story.records[:-1]).violations


def test_every_property_can_judge_a_step_that_comes_back_when_the_one_behind_it_is_lost() -> None:
    story = Story()
    story.start()
    story.submit(1, 0, 4, 3)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 4, pages=((0, 3),)))
    story.plan(2, token(0, 4, pages=((1, 5),)))
    story.add(StepRolledBack(2, "the worker was lost", story.now()))
    story.commit(1, [Event.FIRST_TOKEN], 1)
    assert not judged(story.records).indigestible


def test_a_row_that_is_given_away_while_a_step_in_flight_names_it_is_told() -> None:
    story = Story()
    story.start()
    story.submit(1, 0, 4, 3)
    story.admit(1, 0)
    story.plan(1, Segment(0, 0, 4, pages=((0, 3),)))
    story.move(1, 0, State.PREFILLING, Event.ABORT, State.ABORTED, Cause.CLIENT)
    story.submit(2, 0, 4, 3)
    story.commit(1, [Event.STALE_TOKEN], 1)
    (found,) = [each for each in judged(story.records).violations if "given away while" in each.explanation]
    assert (found.property, found.request) == ("legal_lifecycle", 1)


def test_what_no_property_can_say_of_the_end_is_no_verdict() -> None:
    class Fails(Property):
        name = "fails"

        def finish(self, history: History) -> Sequence[Violation]:
            raise KeyError("nobody knows it")

    monitor = Monitor([Fails()])
    for record in STORY.records:
        monitor.observe(record)
    (told,) = monitor.finish()
    assert monitor.indigestible
    assert told.property == WELL_FORMED
    assert "the whole of it" in told.explanation


def test_equal_requests_with_equal_outputs_violate_nothing() -> None:
    assert judged(twins((7, 8), (7, 8, 9))).violations == []


@pytest.mark.parametrize(
    ("config", "compared"),
    [
        ({"backend": "torch"}, False),
        ({"backend": "triton", "deterministic": True}, True),
        ({"backend": "native"}, True),
    ],
    ids=str,
)
def test_equal_requests_are_compared_where_the_backend_keeps_that_promise(
    config: dict[str, object], compared: bool
) -> None:
    started, *rest = twins((7, 8), (7, 9))
    records = [msgspec.structs.replace(started, config=config), *rest]
    assert any(each.property == "schedule_equivalence" for each in judged(records).violations) == compared


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {"max_new_tokens": 9}, True),
        ({}, {"stop_token_ids": (7,)}, True),
        ({"min_new_tokens": 2}, {"min_new_tokens": 2, "stop_token_ids": (7,)}, False),
        ({"seed": 1}, {"seed": 2}, False),
        ({"seed": 1, "temperature": 0.0}, {"seed": 2, "temperature": 0.0}, True),
        ({}, {"top_k": 3}, False),
    ],
    ids=str,
)
def test_requests_are_equal_if_nothing_that_decides_their_tokens_differs(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    submitted = next(record for record in STORY.records if isinstance(record, Submitted))
    equals, found = Equals(), None
    for number, parameters in enumerate((one, other)):
        request = msgspec.structs.replace(submitted, sampling=SamplingParameters(**parameters))
        found = equals.ended(request, Seen(number, np.array([5, number], np.int32), Fate(False, False, False)))
    assert (found is not None) == same


def test_a_property_sees_the_records_that_concern_it_and_no_others() -> None:
    class Listening(Property):
        name = "listening"

        def __init__(self) -> None:
            self.seen: list[Record] = []

        @on(Submitted, StepPlanned, Event.FINISH)
        def hear(self, record: Record, history: History) -> Sequence[Violation]:
            self.seen.append(record)
            return ()

    listening = Listening()
    monitor = Monitor([listening])
    for record in STORY.records:
        monitor.observe(record)
    assert listening.seen == [
        record
        for record in STORY.records
        if isinstance(record, Submitted | StepPlanned)
        or (isinstance(record, Transition) and record.event == Event.FINISH)
    ]


def test_a_property_that_overrides_observe_sees_everything() -> None:
    class Watching(Property):
        name = "watching"

        def __init__(self) -> None:
            self.seen: list[Record] = []

        def observe(self, record: Record, history: History) -> Sequence[Violation]:
            self.seen.append(record)
            return ()

    watching = Watching()
    monitor = Monitor([watching])
    for record in STORY.records:
        monitor.observe(record)
    assert watching.seen == list(STORY.records)


def test_two_methods_of_a_property_do_not_take_the_same_kind_of_record() -> None:
    with pytest.raises(TypeError, match="two methods"):

        class Twice(Property):
            @on(Transition)
            def every_event(self, record: Record, history: History) -> Sequence[Violation]:
                return ()

            @on(Event.FINISH)
            def one_event(self, record: Record, history: History) -> Sequence[Violation]:
                return ()


def test_a_method_that_is_overridden_takes_what_it_took() -> None:
    class Base(Property):
        name = "overridden"

        @on(Submitted)
        def judge(self, record: Record, history: History) -> Sequence[Violation]:
            return ()

    class Derived(Base):
        def judge(self, record: Record, history: History) -> Sequence[Violation]:
            return (self.violation(history, "found"),)

    monitor = Monitor([Derived()])
    found = [violation for record in STORY.records for violation in monitor.observe(record)]
    assert [violation.explanation for violation in found] == ["found"]


def test_a_sound_run_is_judged_the_same_after_it_was_written_and_read() -> None:
    assert judged(DECODER.decode(ENCODER.encode(STORY.records))).violations == []


@pytest.mark.parametrize("plant", ALL)
def test_a_canary_is_reported(plant: str) -> None:
    canary = ALL[plant]
    explanations = [
        v.explanation
        for v in judged(canary.records).violations
        if v.property == canary.property and canary.request in (None, v.request)
    ]
    assert any(re.search(canary.words, text) for text in explanations), explanations


def test_every_property_has_a_canary_and_a_name_of_its_own() -> None:
    names = [make().name for make in PROPERTIES]
    assert len(set(names)) == len(names)
    assert {canary.property for canary in ALL.values()} == {*names, WELL_FORMED}


ELSEWHERE = {
    "grammar.py": "tests/lifecycle/test_properties_grammar.py",
    "outputs.py": "tests/loops/test_properties_outputs.py",
}
"""What needs an oracle, and where it is tried with one."""


def of_checkpoint(**changes: Callable[[Any], Any]) -> list[Record]:
    """What follows a checkpoint in which some of what it says is other than it was."""
    records = cut(STORY.records, next(at for at in moments(STORY.records) if at > STORY.labels["cached 0"]))
    assert isinstance(records[0], Checkpoint)
    assert records[0].state is not None
    plain = msgspec.msgpack.decode(records[0].state)
    for name, change in changes.items():
        plain[name] = change(plain[name])
    return [msgspec.structs.replace(records[0], state=msgspec.msgpack.encode(plain)), *records[1:]]


def with_one_number(table: dict[str, Any]) -> dict[str, Any]:
    infos = [info | {"request": 1} for info in msgspec.msgpack.decode(table["infos"])]
    return table | {"infos": msgspec.msgpack.encode(infos)}


def with_one_page_twice(memory: dict[str, Any]) -> dict[str, Any]:
    pages = np.zeros(1, np.int32).tobytes()
    nodes = [[None, b"", pages], [None, b"", pages]]
    return memory | {"cache": {"trees": [["", 0, nodes]]}}


def with_more_than_at_the_start(limits: dict[str, Any]) -> dict[str, Any]:
    return limits | {"now": limits["now"] | {"max_running": 99}}


CHECKPOINTS = {
    "two live requests of one number": of_checkpoint(table=with_one_number),
    "cache contradicts itself": of_checkpoint(memory=with_one_page_twice),
    "max_running": of_checkpoint(limits=with_more_than_at_the_start),
}


@pytest.mark.parametrize("words", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_one_is_reported(words: str) -> None:
    assert any(words in violation.explanation for violation in judged(CHECKPOINTS[words]).violations)


def test_every_sentence_that_a_property_has_is_said_for_a_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    said: set[tuple[str, int]] = set()

    def noting(make: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            caller = sys._getframe(1)
            said.add((Path(caller.f_code.co_filename).name, caller.f_lineno))
            return make(*arguments, **keywords)

        return noted

    monkeypatch.setattr(Property, "violation", noting(Property.violation))
    monkeypatch.setattr(Malformed, "__init__", noting(Malformed.__init__))
    for records in (*(canary.records for canary in ALL.values()), *CHECKPOINTS.values()):
        judged(records)
    unsaid = []
    for path in sorted(Path(properties.__path__[0]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("violation", "Malformed"):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                if path.name not in ELSEWHERE and not any((path.name, line) in said for line in lines):
                    unsaid.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert unsaid == []


def test_a_violation_names_the_record_that_shows_it() -> None:
    records = changed(STORY, "finish 1", num_output=2)
    (violation,) = [v for v in judged(records).violations if v.property == "stream_positions"]
    assert violation.record == STORY.labels["finish 1"]


def test_only_the_first_record_that_violates_a_property_is_reported_for_a_request() -> None:
    records = [*STORY.records[:-1], *2 * [STORY.records[STORY.labels["finish 1"]]], STORY.records[-1]]
    (violation,) = [v for v in judged(records).violations if v.property == "legal_lifecycle"]
    assert (violation.request, violation.record) == (1, len(STORY.records) - 1)


def test_judging_ends_at_a_record_that_contradicts_the_ones_before() -> None:
    monitor = judged(CANARIES["a step planned again"].records)
    assert not monitor.judging
    assert [v.property for v in monitor.violations] == [WELL_FORMED]


@given(st.data())
def test_no_order_of_records_makes_the_monitor_raise(data: st.DataObject) -> None:
    records = data.draw(st.lists(st.sampled_from(STORY.records), max_size=40))
    judged(records)


@pytest.mark.parametrize("label", [label for label in STORY.labels if label not in ("started", "closed")])
def test_leaving_out_any_record_of_a_life_or_a_step_is_noticed(label: str) -> None:
    assert judged(without(STORY, label)).violations


def test_a_page_may_be_of_one_token_and_not_of_none() -> None:
    started = msgspec.structs.replace(STORY.records[0], page_size=1)
    History().advance(started)
    with pytest.raises(Malformed, match="pages of 0 tokens"):
        History().advance(msgspec.structs.replace(started, page_size=0))


def test_who_is_at_work_at_a_checkpoint_has_a_page_for_as_much_as_it_has_computed() -> None:
    property, history = FairMicroBatches(), History()
    for record in STORY.records[: STORY.labels["commit 2"] + 1]:
        history.advance(record)
    rows = [0, 1]
    states = dict.fromkeys(rows, State.DECODING)
    beginning: Any = SimpleNamespace(
        started=STORY.records[0], arrivals=(), working=rows, table=SimpleNamespace(state=states)
    )
    property.begin(beginning, history)
    assert vars(property)["_end"][rows].tolist() == [6, 5]


def test_groups_that_were_joined_before_a_checkpoint_may_be_left_after_it() -> None:
    property, history = WeightGroups(), History()
    moved = WeightGroupMoved(2, GroupPhase.JOINED, GroupEvent.LEAVE, GroupPhase.ABSENT, 1.0)
    assert property.methods[WeightGroupMoved](property, moved, history)
    groups = SimpleNamespace(groups={"g": SimpleNamespace(number=2, phase=GroupPhase.JOINED)}, joined=2)
    beginning: Any = SimpleNamespace(weights=SimpleNamespace(state=WEIGHTS.start), groups=groups)
    property.begin(beginning, history)
    assert not property.methods[WeightGroupMoved](property, moved, history)


def test_an_arrival_before_a_checkpoint_may_have_no_time_of_its_own() -> None:
    """What goes on from a lost replica is written out without: its age is not recorded."""
    arrival = next(each for each in STORY.records if isinstance(each, Submitted))
    arrivals = [msgspec.structs.replace(arrival, time=time) for time in (0.5, 0.0)]
    property, history = TimeOrder(), History()
    history.advance(STORY.records[0])
    beginning: Any = SimpleNamespace(started=STORY.records[0], arrivals=arrivals)
    assert property.begin(beginning, history) == ()
    assert [len(property.observe(Idled(time), history)) for time in (0.4, 0.5, 0.6)] == [1, 0, 0]


def test_a_session_about_which_an_order_has_failed_may_refuse_a_turn() -> None:
    records = refused(as_turn(tokens=list(range(9))))
    told = {"session_atomicity"}
    assert {each.property for each in judged(records).violations} >= told
    failed = Contained(0, "ValueError", 0.0)
    assert {each.property for each in judged([*records[:2], failed, *records[2:]]).violations}.isdisjoint(told)
