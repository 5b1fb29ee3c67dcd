"""The router: stands between the front and several replicas, and poses to each as the other.

    tokenizer ─► router ─► scheduler.0, scheduler.1, …      aborts, orders and questions of the gateway likewise
    detokenizer ◄─ router ◄─┘                               what replicas tell the gateway likewise

It gives each request to one replica (`placement`), and puts the request's stream in place of the scheduler's row, so
that the detokenizer need not know who makes the tokens. It is the only way to a client: tokens that it has passed on
are exactly those that the client has, or gets. When a replica is lost, it gives that one's open requests to others,
with these tokens as known tokens; what the lost one still says is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import structlog

from pawl.actors.asks import AskExpired
from pawl.actors.control import Ask
from pawl.actors.fleet import Fleet
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Generate, Opened, Refused, StepTokens
from pawl.actors.messages.links import FromLinker, LinkAgain, Linked, LinkLost, PeerAddress
from pawl.actors.messages.replicas import (
    FromReplica,
    LeaveNow,
    LookAgain,
    Parted,
    PlaceAgain,
    Placed,
    ReplicaFailed,
    ReplicaUp,
)
from pawl.actors.names import FRONT, Names
from pawl.actors.placement import Placement
from pawl.actors.routed import NOBODY, Others, Passing, Routed, by_stream, count, stream_of
from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.scaling import Rule
from pawl.actors.starter import Starter
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort, Drain, Finish
from pawl.loops.recovery import FAILED, FAILED_ORDER
from pawl.memory.arrays import Int32s

log = structlog.get_logger("pawl.router")

AGAIN_S = 0.05
"""How long requests wait that their replica does not take at once: it is full, or gone and nobody has said so yet."""
_NONE: Int32s = np.empty(0, np.int32)

FromFront: Any = Generate | Abort | Finish | Drain | Ask
ForFront: Any = Opened | StepTokens | Refused | Reply
OfReplicas: Any = FromLinker | LinkAgain | ReplicaUp | ReplicaFailed | Down | Parted | LeaveNow | LookAgain | PlaceAgain
Repeatable: Any = StepTokens | Opened | Abort | Finish | Reply | AskExpired | FromReplica | Drain | OfReplicas
"""What may be handled again where it failed half-way."""


class Router(Actor):
    """Every open request, and the replicas that are not lost."""

    accepts: Any = FromFront | ForFront | FromReplica | AskExpired | OfReplicas
    roams = True

    def __init__(
        self,
        placement: Placement,
        replicas: Sequence[Names],
        starter: Starter,
        *,
        rule: Rule | None = None,
        linked: bool = False,
    ) -> None:
        """`rule`: how many there are at which load; None: as many as now, at any. `linked`: replicas live in processes
        of their own, and those that have to speak need a link."""
        self._placement = placement
        self.fleet = Fleet(
            self, replicas, starter, self._place_again, lambda: len(self.routed), rule=rule, linked=linked
        )
        self.replicas = self.fleet.replicas
        """By number, those that take requests and are not lost."""
        self.routed: dict[int, Routed] = {}
        """By stream."""
        self._retry_due = False
        """`PlaceAgain` is to come."""
        self._others = Others()
        self._passing: Passing | None = None
        """The message of a step that is being passed on."""

    # ---- actor ----

    def started(self) -> None:
        self.fleet.started()

    def receive(self, message: Any) -> None:
        match message:
            case StepTokens():
                self._pass_on(message)
            case Generate():
                self._take(message)
            case Opened():
                self._opened(message)
            case Abort():
                self._abort(message)
            case Finish():
                self._finish(message)
            case Refused():  # by a scheduler, which has no row for it
                known = self._forget(message.request)
                self.fleet.agenda.go_on()
                if known:
                    self._send_gateway(message)
                return  # it is sent once
            case Ask():
                self.fleet.ask(message)
                return  # it is answered once
            case Reply() | AskExpired():
                self.fleet.answer(message)
            case Drain():
                self.fleet.drain(message)
            case PeerAddress() | Linked() | LinkLost() | LinkAgain():
                self.fleet.prefillers.linking(message)
            case ReplicaUp() | ReplicaFailed() | Down():
                self.fleet.changes(message)
            case Parted():
                self.fleet.parted(message)
            case LeaveNow():
                self.fleet.size.leave_now(message)
            case LookAgain():
                self.fleet.size.look_again()
            case PlaceAgain():
                self._retry_due = False
                self._place_again(NOBODY)
            case _:
                self.fleet.hear(message)
        self.fleet.agenda.go_on()
        self._passing = None

    def spares(self, message: Any, error: Exception) -> bool:
        """Who has which request, with which tokens, is what counts; what replicas have to do follows from it. What was
        begun is gone on with, or done again; a request that cannot be taken, or opened, ends."""
        match message:
            case Generate():
                self.contain(message.request, error)
            case Refused(request):
                self.told_of(error, request=request)
                self._forget(request)
                self._send_gateway(message)
            case Ask():
                self.told_of(error, message=type(message.message).__name__)
                self.context.send(message.reply_to, Reply(message.ticket, False, FAILED_ORDER))
            case _ if isinstance(message, Repeatable):
                self.told_of(error, message=type(message).__name__)
                try:
                    self.receive(message)
                except Exception as again:
                    if not isinstance(message, Opened | Finish):
                        raise
                    self.contain(message.request, again)
            case _:
                return False
        count(self.replicas, self.routed)
        self.fleet.size.dismiss()
        self.fleet.agenda.go_on()
        return True

    def end_request(self, request: int) -> None:
        """Its scheduler ends it, if one has it."""
        if stream_of(request) in self.routed:
            self._abort(Abort((request,), Cause.INTERNAL, FAILED))
        else:
            self._send_gateway(Refused(request, Cause.INTERNAL, FAILED, 500))

    def stopped(self, reason: str) -> None:
        self.fleet.stopped(reason)

    # ---- requests, on their way to a replica ----

    def _take(self, message: Generate) -> None:
        """A new request. Those of a kind come in the order of their numbers (`lifecycle/numbers.py`)."""
        early = self._others.came(message.request)
        self.fleet.prefillers.meet()
        routed = Routed(message, self.context.now())
        if early is not None:
            routed.aborted = early.cause, early.message
        self.routed[stream_of(message.request)] = routed
        self.fleet.size.look()
        self._place(routed, message)

    def _place(self, routed: Routed, message: Generate) -> None:
        """Give a request to a replica, or let it wait for one that takes it."""
        request = message.request
        if message.session is not None and (ended := self.fleet.questions.why_ended(message.session.id)):
            self._forget(request)
            self._send_gateway(Refused(request, Cause.INVALID, ended))
            return
        if not self.fleet.loads():
            if self.fleet.lost:
                self._end(routed, Cause.INTERNAL, self.fleet.lost)
            return
        owner = self._owner(message)
        replica = self.replicas[owner]
        self._send_gateway(Placed(request, replica.names.recorder))
        routed.replica = owner if self.context.send(replica.names.scheduler, message) else NOBODY
        if routed.replica == NOBODY:
            if not self._retry_due:
                self.context.after(AGAIN_S, PlaceAgain())
                self._retry_due = True
            return
        replica.num_open += 1
        replica.num_tokens += routed.num_tokens
        if routed.aborted is not None and routed.taken:
            self.context.send(replica.names.scheduler, Abort((request,), *routed.aborted), Lane.CONTROL)

    def _owner(self, message: Generate) -> int:
        """The replica for a request: a turn's is that of its session."""
        session = message.session
        owner = NOBODY if session is None else self.fleet.questions.owner_of(session.id)
        if owner in self.replicas and not self.replicas[owner].leaving:
            return owner
        return self._placement.place(message.tokens, message.namespace, self.fleet.loads())

    def _abort(self, message: Abort) -> None:
        """To those who have these requests."""
        owners: dict[int, list[int]] = {}
        for request in message.requests:
            routed = self.routed.get(stream_of(request))
            if routed is None:
                owner = self._others.abort(request, message)
                if owner in self.replicas and message.cause is Cause.INTERNAL:
                    # Its client is told another end than its replica has said: the trace says why.
                    owners.setdefault(owner, []).append(request)
            elif routed.replica == NOBODY:
                self._end(routed, message.cause, message.message)
            else:
                routed.aborted = routed.aborted or (message.cause, message.message)
                if routed.taken:
                    owners.setdefault(routed.replica, []).append(request)
        for number, requests in owners.items():
            self._send_abort(number, msgspec.structs.replace(message, requests=tuple(requests)))

    def _send_abort(self, owner: int, order: Abort) -> None:
        self.context.send(self.replicas[owner].names.scheduler, order, Lane.CONTROL)

    def _finish(self, message: Finish) -> None:
        """Its client has had the end already."""
        routed = self.routed.get(stream_of(message.request))
        if routed is None:
            return
        routed.finished = message.num_output
        if routed.replica == NOBODY:
            self._end(routed, Cause.STOP_STRING)
        elif routed.taken:
            self.context.send(self.replicas[routed.replica].names.scheduler, message, Lane.CONTROL)

    # ---- requests, on their way to their clients ----

    def _opened(self, message: Opened) -> None:
        replica, stream = self.replicas.get(message.replica), stream_of(message.request)
        routed = self.routed.get(stream)
        if replica is None or routed is None:
            return
        replica.holds(message.row, stream)
        replica.num_tokens -= routed.num_tokens
        routed.prompt = message.prompt if routed.prompt is None else routed.prompt
        replica.num_tokens += routed.num_tokens
        if not routed.taken:
            if routed.finished is not None:
                self.context.send(replica.names.scheduler, Finish(message.request, routed.finished), Lane.CONTROL)
            elif routed.aborted is not None:
                self._send_abort(message.replica, Abort((message.request,), *routed.aborted))
            routed.taken = True
        if not routed.opened:
            routed.opened = self.context.send(FRONT.detokenizer, msgspec.structs.replace(message, row=stream))

    def _pass_on(self, message: StepTokens) -> None:
        """One message for each step of each replica: keep it short."""
        replica = self.replicas.get(message.replica)
        if replica is None:
            return
        passing = self._passing
        if passing is None:
            passing = self._passing = Passing()
        streams, now = replica.streams, self.context.now()
        rows = streams[message.rows]
        for admitted in message.admitted:
            routed = self.routed.get(int(streams[admitted.row]))
            if routed is not None:
                routed.admitted, routed.first_token = admitted, now
        drawn = list(zip(rows.tolist(), message.tokens.tolist(), strict=True))
        for stream, token in drawn[passing.num_drawn :]:
            passing.num_drawn += 1
            try:
                self.routed[stream].drew(token, message.weights)
            except Exception as error:
                self._fail(stream, error)
                replica.num_tokens -= 1
        replica.num_tokens += len(rows)
        passing.sent = passing.sent or self.context.send(FRONT.detokenizer, by_stream(message, streams, rows))
        for end in message.ended:
            self._forget(end.request)

    def _fail(self, stream: int, error: Exception) -> None:
        """The books may not have this token of a request, which can go on nowhere else, and ends."""
        routed = self.routed.get(stream)
        if routed is None:
            raise error
        self.contain(routed.generate.request, error)

    def _forget(self, request: int) -> bool:
        """It has ended. Whether it was there."""
        routed = self.routed.pop(stream_of(request), None)
        replica = None if routed is None else self.replicas.get(routed.replica)
        if routed is not None and replica is not None:
            replica.num_open -= 1
            replica.num_tokens -= routed.num_tokens
            self._others.end(request, replica.number)
            self.fleet.size.let_go()
        self.fleet.size.look()
        return routed is not None

    def _end(self, routed: Routed, cause: Cause, message: str = "") -> None:
        """End a request that no replica has."""
        end = routed.end(cause, message, self.context.now())
        ended = StepTokens(_NONE, _NONE, ended=(end,))
        routed.ended = routed.ended or self.context.send(FRONT.detokenizer, ended)
        self._forget(end.request)

    def _send_gateway(self, message: Any) -> None:
        self.context.send(FRONT.gateway, message, Lane.CONTROL)

    def _place_again(self, owner: int) -> None:
        """Requests of a replica that is lost, or of nobody, in the order of their numbers."""
        now = self.context.now()
        for routed in [routed for routed in self.routed.values() if routed.replica == owner]:
            routed.replica, routed.taken, routed.num_lost = NOBODY, False, routed.num_lost + (owner != NOBODY)
            try:
                self._go_on(routed, now)
            except Exception as error:
                self.contain(routed.generate.request, error)

    def _go_on(self, routed: Routed, now: float) -> None:
        """A request that no replica has ends, if it is to, or is given to one."""
        if routed.finished is not None:
            self._end(routed, Cause.STOP_STRING)
        elif routed.aborted is not None and (not self.replicas or routed.aborted[0] is Cause.INTERNAL):
            self._end(routed, *routed.aborted)
        else:
            self._place(routed, routed.again(now))
