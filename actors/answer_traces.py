"""What the gateway tells recorders: that a request has had its terminal reply. Each replica's trace has its own."""

from __future__ import annotations

import msgspec

from pawl.actors.messages.replicas import ReplicaJoined, ReplicaLost
from pawl.actors.names import ROUTER, Names
from pawl.actors.recorder import TraceSink
from pawl.actors.trace_losses import Host, to_recorder
from pawl.lifecycle.records import Answered, AnswersClosed
from pawl.lifecycle.states import Cause


class AnswerTrace:
    """One recorder, and how many replies it was told."""

    def __init__(self, sink: TraceSink) -> None:
        self.sink = sink
        self.num_answered = 0


class AnswerTraces:
    """By the recorder's name."""

    def __init__(self, host: Host, names: Names) -> None:
        self._host = host
        self._names = names
        self._traces: dict[str, AnswerTrace] = {}
        self._given_up = False
        if names.recorder != ROUTER:
            self.begin(names.recorder)

    def begin(self, recorder: str) -> None:
        """Replies of requests of this recorder's replica are told to it."""
        names = msgspec.structs.replace(self._names, recorder=recorder)
        source = "" if recorder == self._names.recorder else to_recorder(recorder)
        self._traces[recorder] = AnswerTrace(TraceSink(self._host, names, source))

    def goes_to(self, name: str) -> bool:
        """Whether this is the recorder of a replica that is not lost."""
        return name in self._traces

    def replica(self, message: ReplicaJoined | ReplicaLost) -> None:
        """One takes requests, or was lost, with requests that others answer: then its trace does not say how many
        replies there are."""
        if isinstance(message, ReplicaJoined):
            if not self._given_up:
                self.begin(message.recorder)
        elif (trace := self._traces.pop(message.recorder, None)) is not None:
            trace.sink.flush()

    def left(self, recorder: str, now: float, *, whole: bool) -> None:
        """A replica has left, and was told all replies to its requests; `whole`: they are all there were."""
        trace = self._traces.pop(recorder, None)
        if trace is not None:
            if whole:
                trace.sink.emit(AnswersClosed(trace.num_answered, now))
            trace.sink.flush()

    def give_up(self) -> None:
        """An actor in front of several replicas is gone, and they may not hear of it: their traces do not say how many
        replies there were. A replica that is the only one hears of it from the gateway."""
        if self._names.recorder == ROUTER:
            self.flush()
            self._traces.clear()
            self._given_up = True

    def answered(self, recorder: str, request: int, cause: Cause, num_output: int, now: float) -> None:
        """A request has had its terminal reply. One that no replica was given is in no replica's trace."""
        trace = self._traces.get(recorder or self._names.recorder)
        if trace is not None:
            number = trace.num_answered + 1
            trace.sink.emit(Answered(request, cause, num_output, now, number))
            trace.num_answered = number  # nothing can fail in between

    def flush(self) -> None:
        for trace in self._traces.values():
            trace.sink.flush()

    def close(self, now: float) -> None:
        """All that were open have been answered."""
        for trace in self._traces.values():
            trace.sink.emit(AnswersClosed(trace.num_answered, now))
        self.flush()
