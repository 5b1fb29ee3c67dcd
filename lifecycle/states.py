"""The vocabulary of a request's life: states, substates, events and causes.

The numeric values are stable: they are written to traces and index the compiled transition matrix.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class State(IntEnum):
    """Where a request is. Substates of one public state share that state's `phase`."""

    NEW = 0
    """Entered: never stored for a request; the source of `submit`. Left by `submit`."""
    QUEUED = 1
    """Entered by `submit`, or by `retract` from work. Owns nothing. Left by `admit`, `abort`, and by
    `finish` when a stop string is found in output from before a retraction."""
    QUEUED_COMPILING = 2
    """Entered by `submit_grammar`: waits for its grammar. Owns nothing. Left by `grammar_ready`, `abort`."""
    QUEUED_FETCHING = 3
    """Entered by `fetch`: its prefix comes from a lower cache tier. Owns, together with those that wait for the same
    pages, a hold and a reservation. Left by `fetched`, `restore`, `abort`."""
    QUEUED_RESERVING = 4
    """Entered by `reserve` (decode role): waits for room below the device for what a prefill replica will send. Owns
    nothing. Left by `grant`, `restore`, `abort`."""
    QUEUED_RECEIVING = 5
    """Entered by `grant` (decode role): a prefill replica computes its prompt, and sends the pages. Owns room below the
    device. Left by `receive`, `restore`, `abort`."""
    PREFILLING = 6
    """Entered by `admit`. Owns a slot, a prefix hold, and pages for every token computed or in flight."""
    # 7 was for a prefill that waits for its receiver, which nothing does: what is sent is a copy.
    DECODING = 8
    """Entered by `first_token`. Owns as PREFILLING, and has output."""
    FINISHED = 9
    """Entered by `finish`. Owns nothing. Never left."""
    ABORTED = 10
    """Entered by `abort`. Owns nothing. Never left."""
    QUEUED_LOADING = 11
    """Entered by `load`: waits for a slot of its adapter, and for the adapter to be read into it. Owns nothing. Left by
    `loaded`, `abort`."""

    @property
    def phase(self) -> Phase:
        """The public state this (sub)state belongs to."""
        return _PHASES[self]

    @property
    def terminal(self) -> bool:
        """Whether no event can change this state any more."""
        return self in (State.FINISHED, State.ABORTED)

    @property
    def owns_memory(self) -> bool:
        """Whether a request in this state has a slot, and pages for what it has computed."""
        return self in _OWNERS


_OWNERS = frozenset({State.PREFILLING, State.DECODING})


class Phase(StrEnum):
    """The five public states."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
    ABORTED = "aborted"


_PHASES: dict[State, Phase] = {
    State.NEW: Phase.QUEUED,
    State.QUEUED: Phase.QUEUED,
    State.QUEUED_COMPILING: Phase.QUEUED,
    State.QUEUED_FETCHING: Phase.QUEUED,
    State.QUEUED_LOADING: Phase.QUEUED,
    State.QUEUED_RESERVING: Phase.QUEUED,
    State.QUEUED_RECEIVING: Phase.QUEUED,
    State.PREFILLING: Phase.PREFILLING,
    State.DECODING: Phase.DECODING,
    State.FINISHED: Phase.FINISHED,
    State.ABORTED: Phase.ABORTED,
}


class Event(IntEnum):
    """What can happen to a request. A stale token is named here; it is no exception to the table."""

    SUBMIT = 0
    SUBMIT_GRAMMAR = 1
    GRAMMAR_READY = 2
    FETCH = 3
    FETCHED = 4
    RESERVE = 5
    GRANT = 6
    RECEIVE = 7
    ADMIT = 8
    CHUNK = 9
    FIRST_TOKEN = 10
    TOKEN = 11
    # 12 was for a prefill that waits for its receiver.
    FINISH = 13
    RETRACT = 14
    RESTORE = 15
    ABORT = 16
    STALE_TOKEN = 17
    """The token of a step that was in flight when the request left work: dropped, and recorded."""
    LOAD = 18
    LOADED = 19


class Cause(StrEnum):
    """Why an edge was taken. Reaches the client, the trace and the metrics."""

    NONE = "none"
    # finish causes
    LENGTH = "length"
    EOS = "eos"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    EMBEDDED = "embedded"
    HANDED_OVER = "handed_over"
    # abort causes
    CLIENT = "client"
    DISCONNECT = "disconnect"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    INVALID = "invalid"
    GRAMMAR = "grammar"
    TOO_LONG = "too_long"
    NEVER_FITS = "never_fits"
    WORKER_LOST = "worker_lost"
    DRAINED = "drained"
    INTERNAL = "internal"
    # retract causes
    MEMORY = "memory"
    STEP_LOST = "step_lost"
    PAUSED = "paused"
    WEIGHTS = "weights"
    # an abort cause
    ADAPTER = "adapter"


FINISH_CAUSES = frozenset(
    {Cause.LENGTH, Cause.EOS, Cause.STOP_TOKEN, Cause.STOP_STRING, Cause.EMBEDDED, Cause.HANDED_OVER}
)
ABORT_CAUSES = frozenset(
    {
        Cause.CLIENT,
        Cause.DISCONNECT,
        Cause.TIMEOUT,
        Cause.OVERLOADED,
        Cause.INVALID,
        Cause.GRAMMAR,
        Cause.TOO_LONG,
        Cause.NEVER_FITS,
        Cause.WORKER_LOST,
        Cause.DRAINED,
        Cause.INTERNAL,
        Cause.ADAPTER,
    }
)
RETRACT_CAUSES = frozenset({Cause.MEMORY, Cause.STEP_LOST, Cause.PAUSED, Cause.WEIGHTS})
