"""The table of transitions, and two ways to run it.

`TABLE` is the single source: it guards the running server, is the model of the property tests, judges a recorded
trace, and prints `docs/lifecycle.md`. It is compiled to numpy for the hot path (`advance`, `advance_rows`) and to one
shared `transitions.Machine` (`reference_machine`), which the tests compare with it pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.states import ABORT_CAUSES, RETRACT_CAUSES, Cause, Event, State

UInt8s: TypeAlias = NDArray[np.uint8]

ILLEGAL = 255
"""Entry of `NEXT_STATE` for a pair that is not in the table."""

HAS_OUTPUT = "has_output"
WANTS_NO_OUTPUT = "wants_no_output"
GUARDS = {
    HAS_OUTPUT: "at least one output token of the request is committed",
    WANTS_NO_OUTPUT: "the request asked for zero new tokens",
}
"""Conditions on a request's data, by the name that edges have for them. The caller meets them; the audit checks."""


class Edge(NamedTuple):
    """One line of the table: in `source`, `event` leads to `target` when its cause is one of `causes`.

    `guard` names a condition on the request's data that the caller must have met; the auditor checks it. `reserved`:
    nothing fires it yet; what will is known well enough for the table to have it.
    """

    source: State
    event: Event
    target: State
    causes: frozenset[Cause]
    guard: str | None
    why: str
    reserved: bool


class IllegalTransition(Exception):
    """The table has no such edge. `request` is None where only rows were known."""

    def __init__(self, request: int | None, state: State, event: Event, cause: Cause, index: int | None = None) -> None:
        where = "" if index is None else f" (entry {index} of the batch)"
        super().__init__(f"request {request}{where}: {event.name}({cause}) is not allowed in {state.name}")
        self.request = request
        self.state = state
        self.event = event
        self.cause = cause
        self.index = index


# ---- the table ----

_PLAIN = frozenset({Cause.NONE})
_BROKEN = frozenset({Cause.TIMEOUT, Cause.WORKER_LOST})
_UNDONE = frozenset({Cause.STEP_LOST})
_STOPPED = frozenset({Cause.STOP_STRING})
_HANDED = frozenset({Cause.HANDED_OVER})

WAITING = (
    State.QUEUED,
    State.QUEUED_COMPILING,
    State.QUEUED_FETCHING,
    State.QUEUED_LOADING,
    State.QUEUED_RESERVING,
    State.QUEUED_RECEIVING,
)
WORKING = (State.PREFILLING, State.DECODING)
TERMINAL = (State.FINISHED, State.ABORTED)


def _edge(
    source: State,
    event: Event,
    target: State,
    why: str,
    causes: frozenset[Cause] = _PLAIN,
    guard: str | None = None,
    reserved: bool = False,
) -> Edge:
    return Edge(source, event, target, causes, guard, why, reserved)


def _edges() -> tuple[Edge, ...]:
    # Local names, so that a line of the table fits a line of the file.
    new, queued, compiling, loading = State.NEW, State.QUEUED, State.QUEUED_COMPILING, State.QUEUED_LOADING
    fetching, reserving, receiving = State.QUEUED_FETCHING, State.QUEUED_RESERVING, State.QUEUED_RECEIVING
    prefilling, decoding, finished = State.PREFILLING, State.DECODING, State.FINISHED
    e = Event
    taken = "its memory is needed, its step is lost, the engine is paused, or its weights are exchanged"
    stopped_late = "its stop string was found in output that it had before it lost its memory, or its replica"
    ends = frozenset({Cause.LENGTH, Cause.EOS, Cause.STOP_TOKEN, Cause.STOP_STRING})
    walk = (
        _edge(new, e.SUBMIT, queued, "it may be admitted at once"),
        _edge(new, e.SUBMIT_GRAMMAR, compiling, "its output has a grammar, which may have to be compiled"),
        _edge(compiling, e.GRAMMAR_READY, queued, "its grammar is compiled"),
        _edge(queued, e.FETCH, fetching, "a lower cache tier has more of its prefix"),
        _edge(fetching, e.FETCHED, queued, "what the tier had of its prefix is on the device"),
        _edge(fetching, e.RESTORE, queued, "the tier failed: the prefix is computed instead", _BROKEN),
        _edge(queued, e.LOAD, loading, "its adapter is in no slot, or is to leave its slot for one that waits longer"),
        _edge(loading, e.LOADED, queued, "its adapter is in a slot"),
        _edge(queued, e.RESERVE, reserving, "a prefill replica is to compute its prompt, and there may be no room yet"),
        _edge(reserving, e.GRANT, receiving, "there is room for its pages below the device: the prefill may begin"),
        _edge(reserving, e.RESTORE, queued, "its prompt is computed here instead", _BROKEN),
        _edge(receiving, e.RECEIVE, queued, "what the prefill replica had of its prompt is below the device"),
        _edge(receiving, e.RESTORE, queued, "the prefill failed or took too long: the rest is computed here", _BROKEN),
        _edge(queued, e.ADMIT, prefilling, "it got a slot, a hold on its cached prefix, and pages"),
        _edge(prefilling, e.CHUNK, prefilling, "part of its known tokens is computed"),
        _edge(prefilling, e.FIRST_TOKEN, decoding, "its known tokens are computed, and one more is drawn"),
        _edge(prefilling, e.RESTORE, queued, "the step that admitted it was rolled back", _UNDONE),
        _edge(decoding, e.TOKEN, decoding, "one more token is drawn"),
    )
    end = (
        _edge(prefilling, e.FINISH, finished, "it wants no output", frozenset({Cause.LENGTH}), WANTS_NO_OUTPUT),
        _edge(prefilling, e.FINISH, finished, "its prompt is computed for a decode replica", _HANDED, WANTS_NO_OUTPUT),
        _edge(prefilling, e.FINISH, finished, "its vector is computed", frozenset({Cause.EMBEDDED}), WANTS_NO_OUTPUT),
        *(_edge(s, e.FINISH, finished, stopped_late, _STOPPED, HAS_OUTPUT) for s in (*WAITING, prefilling)),
        _edge(decoding, e.FINISH, finished, "its output is complete", ends, HAS_OUTPUT),
        _edge(prefilling, e.RETRACT, queued, taken, RETRACT_CAUSES),
        _edge(decoding, e.RETRACT, queued, taken, RETRACT_CAUSES),
    )
    aborts = (
        _edge(new, e.ABORT, State.ABORTED, "it was refused when it was submitted", ABORT_CAUSES),
        *(_edge(s, e.ABORT, State.ABORTED, "it ends wherever it is", ABORT_CAUSES) for s in (*WAITING, *WORKING)),
    )
    left = "the token of a step that was in flight when the request left work is dropped"
    # Who fetches has not worked since it was retracted, who compiles or waits for an adapter has never worked; who
    # decodes again has outlived the step, as steps end in order.
    no_step = (compiling, loading, fetching, reserving, receiving, decoding)
    stale = (_edge(s, e.STALE_TOKEN, s, left, reserved=s in no_step) for s in (*WAITING, *WORKING, *TERMINAL))
    return (*walk, *end, *aborts, *stale)


TABLE: tuple[Edge, ...] = _edges()


# ---- causes as numbers ----

CAUSES: tuple[Cause, ...] = tuple(Cause)
"""Index = code. The order of `Cause` is part of the trace format: append only."""
_CODES: dict[Cause, int] = {cause: code for code, cause in enumerate(CAUSES)}


# ---- the compiled executor ----

_NUM_STATES, _NUM_EVENTS = max(State) + 1, max(Event) + 1


def _compile() -> UInt8s:
    """Target state, uint8 [causes, states, events]."""
    compiled = np.full((len(CAUSES), _NUM_STATES, _NUM_EVENTS), ILLEGAL, np.uint8)
    for edge in TABLE:
        for cause in edge.causes:
            if compiled[_CODES[cause], edge.source, edge.event] != ILLEGAL:
                raise ValueError(f"two edges for {edge.source.name}, {edge.event.name}, {cause}")
            compiled[_CODES[cause], edge.source, edge.event] = edge.target
    targets = {(edge.source, edge.event): edge.target for edge in TABLE}
    if any(targets[edge.source, edge.event] != edge.target for edge in TABLE):
        raise ValueError("a pair of state and event has two targets")
    compiled.flags.writeable = False
    return compiled


NEXT_STATE_FOR: UInt8s = _compile()
"""uint8 [num_causes, num_states, num_events], read-only; ILLEGAL where the table has no edge for that cause."""
NEXT_STATE: UInt8s = NEXT_STATE_FOR.min(axis=0)
"""uint8 [num_states, num_events], read-only: the target whatever the cause. A pair has one target for all causes."""
NEXT_STATE.flags.writeable = False

_FLAT = NEXT_STATE_FOR.reshape(len(CAUSES), -1)
_TARGETS: dict[tuple[int, int, Cause], State] = {
    (edge.source, edge.event, cause): edge.target for edge in TABLE for cause in edge.causes
}


def advance(state: int, event: Event, cause: Cause = Cause.NONE, request: int | None = None) -> State:
    """The state after `event`. Raises IllegalTransition."""
    target = _TARGETS.get((state, event, cause))
    if target is None:
        raise IllegalTransition(request, State(state), Event(event), cause)
    return target


def advance_rows(
    states: UInt8s,
    events: UInt8s | Event,
    cause: Cause = Cause.NONE,
    requests: NDArray[Any] | Sequence[int] | None = None,
) -> UInt8s:
    """The states after one event each, uint8 [n], read-only; the arguments stay as they are.

    `events` is uint8 [n], or one event for all. Raises IllegalTransition for the first illegal row; `requests`
    (int [n]) lets it name the request.
    """
    each = np.full(len(states), events, np.uint8) if isinstance(events, Event) else events
    targets, legal = _targets(states.tobytes(), each.tobytes(), cause)
    if not legal:
        index = int((targets == ILLEGAL).argmax())
        request = None if requests is None else int(requests[index])
        raise IllegalTransition(request, State(int(states[index])), Event(int(each[index])), cause, index)
    return targets


@lru_cache(maxsize=64)
def _targets(states: bytes, events: bytes, cause: Cause) -> tuple[UInt8s, bool]:
    """Where each event leads, ILLEGAL where it may not happen, uint8 [n], read-only; and whether all may. Kept, because
    one step after the other moves the same requests alike."""
    # Widened, because state * num_events does not fit uint8.
    wide = np.frombuffer(states, np.uint8).astype(np.intp) * _NUM_EVENTS
    targets: UInt8s = _FLAT[_CODES[cause]].take(wide + np.frombuffer(events, np.uint8))
    targets.flags.writeable = False
    return targets, ILLEGAL not in targets.tobytes()


# ---- the reference executor ----


class Traveller:
    """What the reference machine moves: one attribute, the name of its state."""

    __slots__ = ("state",)

    def __init__(self, state: State) -> None:
        self.state = state.name


class ReferenceMachine:
    """The table run by the `transitions` library: slow, independent of `advance`, and shared by all requests."""

    def __init__(self) -> None:
        from transitions import Machine  # here, so that importing the table stays fast

        self.machine: Any = Machine(
            model=None,
            states=[state.name for state in State],
            initial=State.NEW.name,
            auto_transitions=False,
            send_event=True,
        )
        for edge in TABLE:
            self.machine.add_transition(
                edge.event.name, edge.source.name, edge.target.name, conditions=[_Admits(edge.causes)]
            )

    def fire(self, traveller: Traveller, event: Event, cause: Cause = Cause.NONE, request: int | None = None) -> None:
        """Move `traveller`. Raises IllegalTransition, and leaves it where it is."""
        from transitions import MachineError

        try:
            moved = self.machine.events[event.name].trigger(traveller, cause=cause)
        except MachineError:
            moved = False
        if not moved:
            raise IllegalTransition(request, State[traveller.state], event, cause)


class _Admits:
    """Condition of one edge: the cause is one of its causes."""

    def __init__(self, causes: frozenset[Cause]) -> None:
        self._causes = causes

    def __call__(self, event_data: Any) -> bool:
        return event_data.kwargs["cause"] in self._causes


@lru_cache(maxsize=1)
def reference_machine() -> ReferenceMachine:
    """The one reference machine, built at first use."""
    return ReferenceMachine()
