"""The replicas behind a router: those that take requests, those that prefill, those that join; what each says of
itself, and how one that is lost is replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from pawl.actors.control import Ask
from pawl.actors.joining import Joining
from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Stalled
from pawl.actors.messages.replicas import NoneLeft, NotReplaced, ReplicaFailed, ReplicaJoined, ReplicaUp
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.names import FRONT, PREFILL, Names
from pawl.actors.placement import Load
from pawl.actors.prefillers import Prefillers
from pawl.actors.replica_asks import ReplicaAsks
from pawl.actors.routed import NOBODY, Replica, named_by_all, slowest, that_needs
from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.starter import Starter
from pawl.loops.orders.requests import Drain

log = structlog.get_logger("pawl.router")

STARTING = "a replica is being started again"
OTHER_WEIGHTS = "it serves other weights than those that serve here: they were changed where they were read from"


class Fleet:
    """All that are not lost."""

    def __init__(
        self,
        actor: Actor,
        replicas: Sequence[Names],
        starter: Starter,
        place_again: Callable[[int], None],
        *,
        linked: bool,
    ) -> None:
        """`actor` sends for it; `place_again` is called with the number of one that is lost, or with NOBODY when there
        is another one, or will be none: requests that it has, or nobody, are to be given away. `linked`: each lives in
        a process of its own."""
        self.replicas = {each.replica: Replica(each) for each in replicas if each.role != PREFILL}
        """By number, those that take requests."""
        self.prefillers = Prefillers(actor, replicas, self._replace, self.replicas, linked=linked)
        self.questions = ReplicaAsks(actor, self.replicas, self.prefillers.replicas)
        self.lost = ""
        """Why there is no replica any more, and will be none."""
        self._actor = actor
        self._starter = starter
        self._place_again = place_again
        self._joining = Joining(self.questions, self._up, self._refused)
        self.questions.ordered = self._joining.ordered
        self._num_starting = 0
        """Of those that take requests, how many are started, or join."""
        self._draining: Drain | None = None

    def started(self) -> None:
        """Tell who takes requests."""
        for replica in self.replicas.values():
            self._send_gateway(ReplicaJoined(replica.names.recorder))
        self.prefillers.started()

    def loads(self) -> list[Load]:
        """In rising order of the replicas' numbers."""
        return [self.replicas[number].load for number in sorted(self.replicas)]

    def ask(self, message: Ask) -> None:
        """A question or an order of the gateway."""
        self.questions.ask(message, self.lost or STARTING)

    def drain(self, message: Drain) -> None:
        """No more requests come, and no replicas."""
        self._draining = message
        for replica in self.replicas.values():
            self._actor.context.send(replica.names.scheduler, message, Lane.CONTROL)

    def hear(self, message: Any) -> None:
        """What replicas tell the gateway. Of what only some say, it hears what holds of all."""
        if self._joining.hears(message):
            return
        replica = self.replicas.get(getattr(message, "replica", NOBODY))
        if replica is not None and isinstance(message, Stalled | AdaptersNamed | WeightsServed):
            replica.hears(message)
        if isinstance(message, Stalled | AdaptersNamed):
            if replica is None:
                return
            message = slowest(self.replicas) if isinstance(message, Stalled) else named_by_all(self.replicas)
        self._send_gateway(message)

    # ---- replicas that come and go ----

    def changes(self, message: ReplicaUp | ReplicaFailed | Down) -> None:
        """One was started, could not be, or has lost an actor."""
        match message:
            case ReplicaUp(names):
                if names.role != PREFILL:
                    self._send_gateway(ReplicaJoined(names.recorder))
                named = {each.name for each in named_by_all(self.replicas).adapters} if self.replicas else None
                self._joining.begin(Replica(names), self.questions.present.orders(named))
            case ReplicaFailed(reason, role):
                self._not_replaced(f"a replica could not be started again: {reason}")
                if role != PREFILL:
                    self._num_starting -= 1
                    self._settle("a replica that was started", reason)
            case Down(name, reason):
                self._down(name, reason)

    def _up(self, replica: Replica) -> None:
        """It is as the others are."""
        if replica.names.role == PREFILL:
            self.prefillers.up(replica)
            return
        if any(each.weights != replica.weights for each in self.replicas.values()):
            self._refused(replica, OTHER_WEIGHTS)
            return
        self._num_starting -= 1
        self.replicas[replica.number] = replica
        if any(each.adapters for each in self.replicas.values()):
            self._send_gateway(named_by_all(self.replicas))
        self.prefillers.decoder_up(replica)
        if self._draining is not None:
            self._actor.context.send(replica.names.scheduler, self._draining, Lane.CONTROL)
        self._place_again(NOBODY)

    def _down(self, name: str, reason: str) -> None:
        if self.prefillers.lost(name, reason):
            self.questions.lost_others()
        elif (joining := self._joining.without(name)) is not None:
            self._give_up(joining, name, reason)
        elif (replica := that_needs(self.replicas, name)) is not None:
            self._lose(replica, name, reason)
        else:
            log.warning("a helper is gone; requests are served on", actor=name, reason=reason)

    def _refused(self, replica: Replica, reason: str) -> None:
        """It cannot be brought to where the others are, and the next one could not be either."""
        self._give_up(replica, replica.names.scheduler, reason, why_not=reason)

    def _give_up(self, joining: Replica, name: str, reason: str, why_not: str = "") -> None:
        """One that did not take part yet."""
        log.error("a replica that joins is lost", replica=joining.number, actor=name, reason=reason)
        self._replace(joining, why_not)
        self._send_gateway(joining.lost(name, reason))
        if joining.names.role != PREFILL:
            self._num_starting -= 1
        self.questions.lost(joining.number, f"{name} is gone: {reason}")
        self._settle(name, reason)

    def _lose(self, replica: Replica, name: str, reason: str) -> None:
        """A replica that has lost one of its actors is given up as a whole: what it still says is dropped."""
        del self.replicas[replica.number]
        self.prefillers.decoder_down(replica, f"{name} is gone: {reason}")
        log.error("a replica is lost", replica=replica.number, actor=name, reason=reason, open=replica.num_open)
        self._replace(replica)
        self._send_gateway(replica.lost(name, reason))
        self._send_gateway(slowest(self.replicas))  # it may have been the lost one, which says nothing any more
        self.questions.lost(replica.number, f"{name} is gone: {reason}")
        self._settle(name, reason)
        self._place_again(replica.number)

    def _replace(self, lost: Replica, why_not: str = "") -> None:
        """Have another one started in its place, or tell why that cannot be."""
        why_not = why_not or ("the server drains" if self._draining else self.questions.present.untellable)
        why_not = self._starter.restart(lost.names, why_not=why_not)
        if why_not:
            self._not_replaced(f"replica {lost.number} is lost, and none is started in its place: {why_not}")
        elif lost.names.role != PREFILL:
            self._num_starting += 1

    def _not_replaced(self, reason: str) -> None:
        log.error("one replica less serves from now on", reason=reason)
        self._send_gateway(NotReplaced(reason))

    def _settle(self, name: str, reason: str) -> None:
        """Where nobody is left, and nobody is to come, all is over."""
        if not self.replicas and not self._num_starting and not self.lost:
            self.lost = f"{name} is gone: {reason}"
            self._send_gateway(NoneLeft(name, reason))
            self._starter.over(name, reason)
            self._place_again(NOBODY)

    def _send_gateway(self, message: Any) -> None:
        self._actor.context.send(FRONT.gateway, message, Lane.CONTROL)
