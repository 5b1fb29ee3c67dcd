"""How many replicas take requests: as many as were ordered, or as the load asks for. Who is too many leaves.

One that leaves gets no more requests. It has left once it has none, or once they have had time enough to end: then
others get them, as those of a lost replica. What it said may still be on its way to clients, so it is ended when the
gateway says that nothing of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import structlog

from pawl.actors.control.scaling import ScaleReplicas
from pawl.actors.messages.control import Reply
from pawl.actors.messages.replicas import LeaveNow, LookAgain, ReplicaCounts
from pawl.actors.names import FRONT
from pawl.actors.routed import Replica
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.scaling import Rule, Since, scaled

log = structlog.get_logger("pawl.router")

GRACE_S = 30.0
"""How long requests may take to end in a replica that leaves because there is little load."""


class FleetSize:
    """The number, and who is missing or too many."""

    def __init__(
        self,
        actor: Actor,
        replicas: Mapping[int, Replica],
        rule: Rule,
        add: Callable[[], str],
        left: Callable[[Replica], None],
        is_busy: Callable[[Replica], bool],
        num_open: Callable[[], int],
        leaves: Callable[[Replica], None],
    ) -> None:
        """`replicas` take requests, or leave: a view. `add` starts one more, or says why not; `leaves` hears of one
        that is to leave, and `left` lets go of it, whether or not it `is_busy`; `num_open` is the load."""
        self.rule = rule
        self.wanted = len(replicas)
        self.num_starting = 0
        """How many are started, or join."""
        self.on_load = rule.most > rule.least
        self.decide = scaled
        self.why_fixed: Callable[[], str] = str
        """Why there can be no other number now; empty: there can."""
        self._actor = actor
        self._replicas = replicas
        self._add = add
        self._leaves = leaves
        self._left = left
        self._is_busy = is_busy
        self._num_open = num_open
        self._since, self._looked_at = Since(), (self.wanted, rule)
        """What the look before has found of so many replicas, by which rule."""
        self._refused = False
        """No more could be started, and the load has been high ever since."""
        self._look_due = False
        """`LookAgain` is to come."""
        self._grace_s = GRACE_S
        self._num_orders = 0
        self._told: ReplicaCounts | None = None

    @property
    def taking(self) -> list[Replica]:
        """Those that take requests, in rising order of their numbers."""
        return [self._replicas[number] for number in sorted(self._replicas) if not self._replicas[number].leaving]

    @property
    def leaving(self) -> list[Replica]:
        """Those that take none any more."""
        return [replica for replica in self._replicas.values() if replica.leaving]

    @property
    def num_missing(self) -> int:
        """How many more should take requests, or be on their way to; negative: how many are too many."""
        return self.wanted - self.num_starting - len(self.taking)

    def order(self, order: ScaleReplicas, why_not: str) -> Reply:
        """Somebody wants so many. `why_not`: why there can be no other number now, if so."""
        least, most, wanted = self.rule.least, self.rule.most, order.replicas
        if why_not := why_not or self.why_fixed():
            return Reply(0, False, why_not)
        if not least <= wanted <= most:
            room = f"replicas: {least} to {most}, as --dp and --max-dp say, not {wanted}"
            return Reply(0, False, room if most > least else f"{room}; --max-dp makes room for more")
        if order.on_load is not None:
            self.on_load = order.on_load and most > least
        why_not = self._set(wanted, order.grace_s)
        reply = Reply(0, not why_not, why_not, msgspec.structs.asdict(self._counts()))
        self.look()
        return reply

    def look(self) -> None:
        """The load has changed, or time has passed."""
        now, rule, num_open = self._actor.context.now(), self.rule, self._num_open()
        self._refused = self._refused and num_open >= rule.at * self.wanted
        if not self.on_load or self.why_fixed():
            rule = rule._replace(least=self.wanted, most=self.wanted)
        elif self._refused:
            rule = rule._replace(most=self.wanted)
        since = self._since if self._looked_at == (self.wanted, rule) else Since()
        verdict = self.decide(rule, since, now, self.wanted, num_open)
        if verdict.wanted != self.wanted:
            log.info("the load asks for another number of replicas", replicas=verdict.wanted, before=self.wanted)
            self._set(verdict.wanted, GRACE_S)
        self._since, self._looked_at = verdict.since, (verdict.wanted, rule)
        if verdict.due is not None and not self._look_due:
            self._look_due = True
            self._actor.context.after(verdict.due - now, LookAgain())
        self.tell()

    def look_again(self) -> None:
        """The timer says so."""
        self._look_due = False
        self.look()

    def let_go(self) -> None:
        """Those that leave may have nothing to do any more."""
        for replica in self.leaving:
            if not self._is_busy(replica):
                self._left(replica)

    def leave_now(self, message: LeaveNow) -> None:
        """It has had its time, unless it was called back."""
        replica = self._replicas.get(message.replica)
        if replica is not None and replica.leaving == message.order:
            self._left(replica)

    def begun(self) -> None:
        """One more is started."""
        self.num_starting += 1

    def joined(self) -> None:
        """One that was started takes requests."""
        self.dismiss()
        self.look()

    def failed(self) -> None:
        """One that was started does not come."""
        self.call_back()
        self.num_starting -= 1

    def call_back(self) -> None:
        """Who leaves takes requests again, if too few do: one that is started may come late, or not at all."""
        for replica in self.leaving[: max(0, self.wanted - len(self.taking))]:
            replica.leaving = 0

    def settle_for_less(self) -> None:
        """Who is missing does not come, until the number is another one again."""
        self.wanted -= max(0, self.num_missing)

    def tell(self) -> None:
        """Have the gateway know, where it does not."""
        counts = self._counts()
        if counts != self._told:
            self._actor.context.send(FRONT.gateway, counts, Lane.CONTROL)
            self._told = counts

    def _counts(self) -> ReplicaCounts:
        serving, leaving = len(self.taking), len(self.leaving)
        return ReplicaCounts(self.wanted, serving, self.num_starting, leaving, self.on_load)

    def _set(self, wanted: int, grace_s: float) -> str:
        """Why there are fewer, if so."""
        self.wanted, self._grace_s, why_not = wanted, grace_s, ""
        self.call_back()
        while self.num_missing > 0 and not why_not:
            self.num_starting += not (why_not := self._add())
        self._refused = bool(why_not)
        if why_not:
            log.error("a replica cannot be started", reason=why_not)
            self.settle_for_less()
        self.dismiss()
        return why_not

    def dismiss(self) -> None:
        """Those leave that are too many and have the least to do; of such, the newest."""
        taking = sorted(self.taking, key=lambda each: (each.num_open, each.num_tokens, -each.number))
        for replica in taking[: max(0, len(taking) - self.wanted)]:
            log.info("a replica leaves", replica=replica.number, open=replica.num_open)
            self._leaves(replica)
            if self._is_busy(replica):
                self._actor.context.after(self._grace_s, LeaveNow(replica.number, self._num_orders + 1))
            # Last: until here all is done again if it fails.
            self._num_orders = replica.leaving = self._num_orders + 1
        self.let_go()
