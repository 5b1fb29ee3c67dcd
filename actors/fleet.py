"""The replicas behind a router: those that take requests, those that prefill, those that join; what each says of
itself, and how one that is lost is replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import delitem
from typing import Any

import msgspec
import structlog

from pawl.actors.agenda import Agenda, Step, Steps
from pawl.actors.asks import AskExpired
from pawl.actors.control import Ask, row_of
from pawl.actors.fleet_size import FleetSize
from pawl.actors.joining import Joining
from pawl.actors.messages.control import Reply
from pawl.actors.messages.replicas import (
    NoneLeft,
    NotReplaced,
    Parted,
    ReplicaFailed,
    ReplicaJoined,
    ReplicaUp,
)
from pawl.actors.messages.weights import AS_STARTED, WeightsServed
from pawl.actors.names import FRONT, PREFILL, Names
from pawl.actors.placement import Load
from pawl.actors.prefillers import Prefillers
from pawl.actors.present import Held
from pawl.actors.replica_asks import ReplicaAsks
from pawl.actors.routed import MERGED, NOBODY, Replica, Said, named_by_all, released_by_any, slowest, that_needs
from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.scaling import Rule
from pawl.actors.starter import Starter
from pawl.loops.orders.requests import Drain
from pawl.loops.orders.weight_groups import JoinWeightGroup
from pawl.loops.recovery import FAILED

log = structlog.get_logger("pawl.router")

STARTING = "a replica is being started again"
LEAVING = "a replica leaves, and would not be in the group for long: try again once it is gone"
STOPPING = "the server is shutting down"
OTHER_WEIGHTS = "it serves other weights than those that serve here: they were changed where they were read from"


class Fleet:
    """All that are not lost."""

    def __init__(
        self,
        actor: Actor,
        replicas: Sequence[Names],
        starter: Starter,
        place_again: Callable[[int], None],
        num_open: Callable[[], int],
        *,
        rule: Rule | None,
        linked: bool,
    ) -> None:
        """`actor` sends for it; `place_again` is called with the number of one that is lost, or leaves, or with NOBODY
        when there is another one, or will be none: requests that it has, or nobody, are to be given away. `num_open` is
        the load, by which `rule` says how many there are; None: as many as now. `linked`: each lives in a process of
        its own."""
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
        rule = rule or Rule(len(self.replicas), len(self.replicas))
        ways = self._add, self._left, self._is_busy, num_open, self.questions.leaves
        self.size = FleetSize(actor, self.replicas, rule, *ways)
        self.size.why_fixed = lambda: self.questions.fixed
        self._role = next(iter(self.replicas.values())).names.role
        self.agenda = Agenda()
        """What follows for the others when replicas come and go."""
        self._parting: dict[int, Replica] = {}
        """Those that have left, of which something is still to be told to clients."""
        self._draining: Drain | None = None

    def started(self) -> None:
        """Tell who takes requests."""
        for replica in self.replicas.values():
            self._send_gateway(ReplicaJoined(replica.names.recorder))
        self.size.tell()
        self.prefillers.started()

    def loads(self) -> list[Load]:
        """Of those that take requests, in rising order of the replicas' numbers."""
        return [replica.load for replica in self.size.taking]

    def ask(self, message: Ask) -> None:
        """A question or an order of the gateway."""
        if row_of(message.message).at_router:
            why_not = self.lost or (STOPPING if self._draining else "")
            self._reply(message, self.size.order(message.message, why_not))
        elif isinstance(message.message, JoinWeightGroup) and self.size.leaving:
            self._reply(message, Reply(0, False, LEAVING))
        else:
            self.questions.ask(message, self.lost or STARTING)

    def answer(self, message: Reply | AskExpired) -> None:
        """A replica answers, or has not in time: one that leaves may have nothing to do any more."""
        self.questions.answered(message)
        self.size.let_go()

    def _reply(self, to: Ask, reply: Reply) -> None:
        self._actor.context.send(to.reply_to, msgspec.structs.replace(reply, ticket=to.ticket))

    def drain(self, message: Drain) -> None:
        """No more requests come, and no replicas."""
        self._draining = message
        self.size.on_load = False
        for replica in self.replicas.values():
            self._actor.context.send(replica.names.scheduler, message, Lane.CONTROL)

    def stopped(self, reason: str) -> None:
        """The engine stops: who waits for an answer is told so."""
        self._joining.stopped()
        self.questions.asks.fail(f"the engine stopped: {reason}")

    def hear(self, message: Any) -> None:
        """What replicas tell the gateway. Of what only some say, it hears what holds of all."""
        if self._joining.hears(message):
            return
        replica = self.replicas.get(getattr(message, "replica", NOBODY))
        if replica is not None and isinstance(message, Said):
            replica.hears(message)
        merge = MERGED.get(type(message))
        if merge is None:
            # What weights serve is said by those that take requests.
            if replica is not None or not isinstance(message, WeightsServed):
                self._send_gateway(message)
        elif replica is not None:
            self._send_gateway(merge(self.replicas))

    # ---- replicas that come and go ----

    def changes(self, message: ReplicaUp | ReplicaFailed | Down) -> None:
        """One was started, could not be, or has lost an actor. Given the message again, it goes on where it failed."""
        self.agenda.take(message, partial(self._changed, message))
        self.agenda.go_on()
        self.size.tell()

    def _changed(self, message: ReplicaUp | ReplicaFailed | Down) -> Steps:
        match message:
            case ReplicaUp(names):
                meets = partial(self._meet, Replica(names))
                if names.role == PREFILL:
                    return [meets]
                return [partial(self._send_gateway, ReplicaJoined(names.recorder)), meets]
            case ReplicaFailed(reason, role):
                told = partial(self._not_replaced, f"a replica could not be started again: {reason}")
                if role == PREFILL:
                    return [told]
                settle = partial(self._settle, "a replica that was started", reason)
                return [told, self.size.failed, self.size.settle_for_less, settle]
            case Down(name, reason):
                return self._down(name, reason)

    def parted(self, message: Parted) -> None:
        """Its clients have had all."""
        parting = self._parting.pop(message.replica, None)
        if parting is not None:
            try:
                self._starter.end(parting.names)
            except Exception:
                self._parting[message.replica] = parting  # it is ended when this is heard again
                raise

    def _left(self, replica: Replica) -> None:
        """It leaves: it is none of these any more. What it has goes on in others."""
        self.prefillers.decoder_down(replica, "it leaves")
        log.info("a replica has left", replica=replica.number, open=replica.num_open)
        self._send_gateway(replica.left(whole=not replica.num_open))
        self._place_again(replica.number)
        self._parting[replica.number] = self.replicas.pop(replica.number)  # until here all is done again if it fails
        self._keep_to_the_weights_without(replica)
        self._not_among(replica, "its replica has left")
        self.size.tell()

    def _is_busy(self, replica: Replica) -> bool:
        """It has requests, or is at what it was ordered."""
        return bool(replica.num_open) or self.questions.waits_for(replica.number)

    def _not_among(self, gone: Replica, why: str) -> None:
        """What follows for those that are left."""
        self._send_gateway(slowest(self.replicas))  # it may have been the one that is gone, which says nothing any more
        self._tell_adapters()  # and the only one that did not have one yet
        if gone.released.tags:  # or that lacked some memory
            self._send_gateway(released_by_any(self.replicas))
        self.questions.lost(gone.number, why)

    def _keep_to_the_weights_without(self, gone: Replica) -> None:
        """It may have been the only one that had taken the weights that were ordered last: then those that are left
        serve others, and so will who comes."""
        left = next(iter(self.replicas.values()), None)
        if left is not None and all(each.weights != gone.weights for each in self.replicas.values()):
            self.questions.present.weights = Held(left.held)
            self._send_gateway(left.served or AS_STARTED)

    def _add(self) -> str:
        """Start one more. Why that cannot be, if so."""
        return self.questions.present.untellable or self._starter.add(self._role)

    def _meet(self, replica: Replica) -> Steps:
        """It was started. One that it fails to be told to is given up: it may have been told a part."""
        named = {each.name for each in named_by_all(self.replicas).adapters} if self.replicas else None
        try:
            self._joining.begin(replica, self.questions.present.orders(named))
        except Exception as error:
            self._actor.told_of(error, replica=replica.number)
            return [partial(self._joining.forget, replica), *self._give_up(replica, replica.names.scheduler, FAILED)]
        return None

    def _up(self, replica: Replica) -> None:
        """It is as the others are."""
        self.agenda.add(partial(self._take_in, replica))

    def _take_in(self, replica: Replica) -> Steps:
        forget = partial(self._joining.forget, replica)
        if replica.names.role == PREFILL:
            return [forget, *self.prefillers.up(replica)]
        if self.replicas and all(each.weights != replica.weights for each in self.replicas.values()):
            return self._turn_away(replica, OTHER_WEIGHTS)
        return [
            forget,
            partial(self._enter, replica),
            partial(self._tell_of_it, replica),
            *self.prefillers.decoder_up(replica),
            partial(self._drain_too, replica),
            self.size.joined,
            partial(self._place_again, NOBODY),
        ]

    def _enter(self, replica: Replica) -> None:
        """It is one of these, and none of those that are started."""
        replica.held = Held(self.questions.present.weights)
        self.replicas[replica.number], self.size.num_starting = replica, self.size.num_starting - 1

    def _tell_of_it(self, replica: Replica) -> None:
        if len(self.replicas) == 1:  # what the gateway has heard is of others, that are gone
            self._send_gateway(replica.served or AS_STARTED)
            self._send_gateway(released_by_any(self.replicas))
            self._send_gateway(named_by_all(self.replicas))
        else:
            self._tell_adapters()

    def _drain_too(self, replica: Replica) -> None:
        if self._draining is not None:
            self._actor.context.send(replica.names.scheduler, self._draining, Lane.CONTROL)

    def _down(self, name: str, reason: str) -> Steps:
        if (steps := self.prefillers.lost(name, reason)) is not None:
            return [*steps, self.questions.lost_others]
        if (joining := that_needs(self._joining.replicas, name)) is not None:
            return [partial(self._joining.forget, joining), *self._give_up(joining, name, reason)]
        if (replica := that_needs(self.replicas, name)) is not None:
            return self._lose(replica, name, reason)
        if (parting := that_needs(self._parting, name)) is not None:
            lost = partial(self._send_gateway, parting.lost(name, reason))
            return [lost, partial(self.parted, Parted(parting.number))]
        log.warning("a helper is gone; requests are served on", actor=name, reason=reason)
        return None

    def _refused(self, replica: Replica, reason: str) -> None:
        """It cannot be brought to where the others are, and the next one could not be either."""
        self.agenda.add(partial(self._turn_away, replica, reason))

    def _turn_away(self, replica: Replica, reason: str) -> list[Step]:
        steps = self._give_up(replica, replica.names.scheduler, reason, why_not=reason)
        return [partial(self._joining.forget, replica), *steps]

    def _give_up(self, joining: Replica, name: str, reason: str, why_not: str = "") -> list[Step]:
        """One that did not take part yet."""
        log.error("a replica that joins is lost", replica=joining.number, actor=name, reason=reason)
        return [
            *([] if joining.names.role == PREFILL else [self.size.failed]),
            partial(self._replace, joining, why_not),
            partial(self._send_gateway, joining.lost(name, reason)),
            partial(self.questions.lost, joining.number, f"{name} is gone: {reason}"),
            partial(self._settle, name, reason),
        ]

    def _lose(self, replica: Replica, name: str, reason: str) -> list[Step]:
        """A replica that has lost one of its actors is given up as a whole: what it still says is dropped."""
        why = f"{name} is gone: {reason}"
        log.error("a replica is lost", replica=replica.number, actor=name, reason=reason, open=replica.num_open)
        return [
            partial(delitem, self.replicas, replica.number),
            partial(self._keep_to_the_weights_without, replica),
            partial(self.prefillers.decoder_down, replica, why),
            self.size.call_back,
            partial(self._replace, replica),
            partial(self._send_gateway, replica.lost(name, reason)),
            partial(self._not_among, replica, why),
            partial(self._settle, name, reason),
            partial(self._place_again, replica.number),
        ]

    def _replace(self, lost: Replica, why_not: str = "") -> Steps:
        """Have another one started in its place, if one is missing, or tell why that cannot be."""
        enough = lost.names.role != PREFILL and self.size.num_missing <= 0
        if enough:
            why_not = "as many as are wanted are there"
        elif not why_not:
            why_not = "the server drains" if self._draining else self.questions.present.untellable
        return [partial(self._replaced, lost, enough, self._starter.restart(lost.names, why_not=why_not))]

    def _replaced(self, lost: Replica, enough: bool, why_not: str) -> Steps:
        """What is to be told and counted. `why_not`: none is started."""
        if not why_not:
            return None if lost.names.role == PREFILL else [self.size.begun]
        text = f"replica {lost.number} is lost, and none is started in its place: {why_not}"
        return None if enough else [partial(self._not_replaced, text)]

    def _not_replaced(self, reason: str) -> None:
        log.error("one replica less serves from now on", reason=reason)
        self.size.settle_for_less()
        self._send_gateway(NotReplaced(reason))

    def _settle(self, name: str, reason: str) -> Steps:
        """Where nobody is left, and nobody is to come, all is over."""
        if self.replicas or self.size.num_starting or self.lost:
            return None
        return [
            partial(setattr, self, "lost", f"{name} is gone: {reason}"),
            partial(self._send_gateway, NoneLeft(name, reason)),
            partial(self._starter.over, name, reason),
            partial(self._place_again, NOBODY),
        ]

    def _tell_adapters(self) -> None:
        """Which ones requests may name, by who is there now."""
        if any(each.adapters for each in self.replicas.values()):
            self._send_gateway(named_by_all(self.replicas))

    def _send_gateway(self, message: Any) -> None:
        self._actor.context.send(FRONT.gateway, message, Lane.CONTROL)
