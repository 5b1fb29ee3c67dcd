"""What the gateway knows of the replicas behind a router."""

from __future__ import annotations

from collections import deque

from pawl.actors.answer_traces import AnswerTraces
from pawl.actors.messages.replicas import (
    FromRouter,
    NotReplaced,
    Parted,
    Placed,
    ReplicaCounts,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaLost,
)
from pawl.actors.names import ROUTER
from pawl.actors.open_requests import OpenRequests
from pawl.actors.runtime.actor import Lane
from pawl.actors.trace_losses import Host, TraceLosses

MOST_REASONS = 16
"""That are told why replicas were not replaced."""


class KnownReplicas:
    """Who had which request, and who leaves."""

    def __init__(self, host: Host, requests: OpenRequests, trace: AnswerTraces | None, losses: TraceLosses) -> None:
        self.counts: ReplicaCounts | None = None
        """None: there is no router."""
        self.not_replaced: deque[str] = deque(maxlen=MOST_REASONS)
        """Why fewer serve than were started, one reason for each of the last."""
        self._host = host
        self._requests = requests
        self._trace = trace
        self._losses = losses
        self._leaving: list[ReplicaLeft] = []

    def hear(self, message: FromRouter) -> None:
        """The router says so."""
        match message:
            case Placed(request, recorder):
                self._requests.placed(request, recorder)
            case ReplicaCounts():
                self.counts = message
            case ReplicaJoined() | ReplicaLost():
                if self._trace is not None:
                    self._trace.replica(message)
                if isinstance(message, ReplicaLost):
                    self._losses.give_up(message.gone)
                    self._leaving = [each for each in self._leaving if each.recorder != message.recorder]
            case ReplicaLeft():
                self._leaving.append(message)
            case NotReplaced(reason):
                self.not_replaced.append(reason)

    def part(self) -> None:
        """Let go of those that leave, once no open request was theirs last: what they said may still be on its way."""
        for left in [each for each in self._leaving if not self._requests.are_of(each.recorder)]:
            context = self._host.context
            if self._trace is not None:
                self._trace.left(left.recorder, context.now(), whole=left.whole)
            self._losses.give_up(left.gone)
            context.send(ROUTER, Parted(left.replica), Lane.CONTROL)
            self._leaving.remove(left)
