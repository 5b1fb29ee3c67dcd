"""The table and its two executors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.lifecycle.machine import (
    CAUSES,
    GUARDS,
    ILLEGAL,
    NEXT_STATE,
    TABLE,
    TERMINAL,
    IllegalTransition,
    Traveller,
    advance,
    advance_rows,
    reference_machine,
)
from pawl.lifecycle.states import ABORT_CAUSES, Cause, Event, State

STATES = st.sampled_from(State)
EVENTS = st.sampled_from(Event)
CAUSE = st.sampled_from(Cause)


def compiled(state: State, event: Event, cause: Cause) -> State | None:
    try:
        return advance(state, event, cause)
    except IllegalTransition:
        return None


def referred(state: State, event: Event, cause: Cause) -> State | None:
    traveller = Traveller(state)
    try:
        reference_machine().fire(traveller, event, cause)
    except IllegalTransition:
        assert traveller.state == state.name
        return None
    return State[traveller.state]


def vectorised(state: State, event: Event, cause: Cause) -> State | None:
    try:
        return State(int(advance_rows(np.array([state], np.uint8), event, cause)[0]))
    except IllegalTransition:
        return None


@pytest.mark.parametrize("state", State)
def test_three_ways_to_run_the_table_agree_on_every_state_event_and_cause(state: State) -> None:
    for event in Event:
        for cause in Cause:
            expected = referred(state, event, cause)
            assert compiled(state, event, cause) == expected, (event, cause)
            assert vectorised(state, event, cause) == expected, (event, cause)


@given(st.lists(st.tuples(EVENTS, CAUSE), max_size=30))
def test_the_executors_agree_along_any_sequence(steps: list[tuple[Event, Cause]]) -> None:
    state, traveller = State.NEW, Traveller(State.NEW)
    for event, cause in steps:
        target = compiled(state, event, cause)
        try:
            reference_machine().fire(traveller, event, cause)
        except IllegalTransition:
            assert target is None
        else:
            assert target is not None
            state = target
        assert traveller.state == state.name


@given(st.lists(st.tuples(STATES, EVENTS), min_size=1, max_size=50))
def test_a_batch_moves_like_its_rows_or_names_the_first_illegal_one(pairs: list[tuple[State, Event]]) -> None:
    states = np.array([state for state, _ in pairs], np.uint8)
    events = np.array([event for _, event in pairs], np.uint8)
    requests = np.arange(100, 100 + len(pairs))
    before = states.copy()
    targets = [compiled(state, event, Cause.NONE) for state, event in pairs]
    if None in targets:
        first = targets.index(None)
        with pytest.raises(IllegalTransition) as caught:
            advance_rows(states, events, Cause.NONE, requests)
        error = caught.value
        assert (error.index, error.request) == (first, 100 + first)
        assert (error.state, error.event) == pairs[first]
    else:
        assert advance_rows(states, events).tolist() == targets
    assert (states == before).all()


def test_an_empty_batch_moves_nothing() -> None:
    assert len(advance_rows(np.empty(0, np.uint8), Event.TOKEN)) == 0


def test_the_matrix_without_causes_has_exactly_the_pairs_of_the_table() -> None:
    expected = np.full((max(State) + 1, max(Event) + 1), ILLEGAL, np.uint8)
    for edge in TABLE:
        expected[edge.source, edge.event] = edge.target
    assert (expected == NEXT_STATE).all()


def test_an_illegal_transition_carries_its_facts() -> None:
    with pytest.raises(IllegalTransition, match=r"request 7: TOKEN\(none\) is not allowed in FINISHED") as caught:
        advance(State.FINISHED, Event.TOKEN, Cause.NONE, 7)
    error = caught.value
    assert (error.request, error.state, error.event, error.cause) == (7, State.FINISHED, Event.TOKEN, Cause.NONE)


def test_terminal_states_are_never_left() -> None:
    for edge in TABLE:
        assert not edge.source.terminal or edge.target == edge.source


def test_an_abort_ends_a_request_in_every_state_and_for_every_abort_cause() -> None:
    for state in State:
        for cause in ABORT_CAUSES:
            assert compiled(state, Event.ABORT, cause) == (None if state.terminal else State.ABORTED)


def test_a_terminal_state_can_be_reached_from_everywhere() -> None:
    reach = {state: {state} for state in State}
    for _ in State:
        for edge in TABLE:
            reach[edge.source] |= reach[edge.target]
    for state in State:
        assert reach[state] & set(TERMINAL), state
    assert reach[State.NEW] == set(State)


def test_every_event_and_every_cause_but_the_empty_one_is_used_by_some_edge() -> None:
    assert {edge.event for edge in TABLE} == set(Event)
    assert {cause for edge in TABLE for cause in edge.causes} == set(Cause)


def test_every_guard_is_explained_and_every_explanation_used() -> None:
    assert {edge.guard for edge in TABLE} - {None} == set(GUARDS)


def test_cause_codes_are_small() -> None:
    assert len(CAUSES) < ILLEGAL


def test_importing_the_table_does_not_import_the_reference_library() -> None:
    code = "import sys, lifecycle.machine; sys.exit('transitions' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
