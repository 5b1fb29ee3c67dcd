"""Questions and orders of the gateway, put to all replicas, or to the one that has the session they are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec

from pawl.actors.adapter_names import not_now
from pawl.actors.asks import Answer, AskExpired, Asks
from pawl.actors.control import Ask, row_of
from pawl.actors.gathering import Gathering
from pawl.actors.messages.control import Reply
from pawl.actors.present import JOINED, OF_WEIGHTS, Present, lasts
from pawl.actors.routed import NOBODY, Replica, named_by_all
from pawl.actors.runtime.actor import Actor
from pawl.loops.intake import Order
from pawl.loops.orders.memory import ReleaseMemory
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.orders.sessions import CloseSession, OpenSession
from pawl.loops.orders.weight_groups import JoinWeightGroup, LeaveWeightGroup
from pawl.loops.recovery import FAILED_ORDER

MOST_SESSIONS = 1 << 16
"""Names of sessions that are remembered, those that were opened last."""
Replies: TypeAlias = Mapping[int, Reply]
"""By number of the replica."""


class Home(NamedTuple):
    """Where a session is."""

    replica: int
    ticket: int
    """Question of the gateway that opened it."""
    ended: str = ""
    """Why it is no more, if so: `replica` is NOBODY then."""


class ReplicaAsks:
    """The pending questions of the router, which accepts what `asks` needs and passes it on."""

    def __init__(self, actor: Actor, replicas: Mapping[int, Replica], others: Mapping[int, Replica]) -> None:
        """`replicas`: those that take requests and are not lost, by number; a view, as `others`, who are asked only
        what everybody is."""
        self.asks = Asks(actor, "replica")
        self.sessions: dict[str, Home] = {}
        """By name."""
        self.present = Present()
        self._num_ordered = self._last_serving = 0
        """Orders that last, all that were ever given; number of the last of these to pause or go on that was done."""
        self._lasting: dict[int, msgspec.Struct] = {}
        """Orders that last, by number, of which it is not known yet whether all have carried them out."""
        self.ordered: Callable[[Order | None], None] = lambda order: None
        """Hears of each of these when it is known: of one that was carried out, or of None."""
        self._actor = actor
        self._replicas = replicas
        self._others = others
        self._tickets: dict[int, int] = {}
        """Question that was not answered yet -> the replica that it was put to."""

    def ask(self, ask: Ask, why_not: str) -> None:
        """Put it to those whom it concerns, and answer when all have; where there is nobody, with `why_not`."""
        if isinstance(ask.message, CloseSession) and (why_ended := self.why_ended(ask.message.session)):
            del self.sessions[ask.message.session]
            self._answer(ask, {NOBODY: Reply(0, False, why_ended)})
            return
        listed = named_by_all(self._replicas).adapters
        if why_later := not_now(ask.message, self._lasting.values(), listed):
            facts = {"loaded_adapters": {adapter.name: adapter.source for adapter in listed}}
            self._answer(ask, {NOBODY: Reply(0, False, why_later, facts)})
            return
        session = row_of(ask.message).session_of
        numbers = sorted(self._replicas) if session is None else self._owners(session(ask.message))
        if not numbers:
            self._answer(ask, {NOBODY: Reply(0, False, why_not)})
            return
        others = self._others if session is None else {}
        asked = {**{number: self._replicas[number] for number in numbers}, **others}
        message = self.present.numbered(ask.message)
        done: Callable[[Ask, Replies], bool] = self._answer
        if isinstance(message, OpenSession):
            self._remember(message.session, Home(numbers[0], ask.ticket))
        elif isinstance(message, CloseSession):
            done = partial(self._closed, message.session, self.sessions.get(message.session))
        elif lasts(message):
            self._num_ordered += 1
            done = partial(self._carried_out, message, self._num_ordered)
        gathering = Gathering(list(asked), self._is_there, partial(done, ask))
        for number, replica in asked.items():
            answer = partial(self._has_answered, number, message, gathering)
            try:
                self.tell(replica, message, answer)
            except Exception as error:
                self._actor.told_of(error, replica=number)
                answer(Reply(0, False, FAILED_ORDER))
        if lasts(message) and not gathering.over:
            self._lasting[self._num_ordered] = message

    def _has_answered(self, number: int, message: msgspec.Struct, gathering: Gathering, reply: Reply) -> None:
        """What it has carried out, it has in the order of its answers; others may still be at an earlier order."""
        if reply.ok and isinstance(message, OF_WEIGHTS) and number in self._replicas:
            self._replicas[number].held.done(message)
        gathering.answered(number, reply)

    def answered(self, message: Reply | AskExpired) -> None:
        """A replica has answered, or has not in time."""
        if isinstance(message, Reply):
            self.asks.answer(message)
        else:
            self.asks.expire(message.ticket)

    def _is_there(self, number: int) -> bool:
        return number in self._replicas or number in self._others

    def lost_others(self) -> None:
        """Those of the others that are not there answer nothing any more."""
        for number in {asked for asked in self._tickets.values() if not self._is_there(asked)}:
            self.lost(number, "a prefill replica is gone")

    def lost(self, number: int, why: str) -> None:
        """This replica answers nothing any more, and its sessions are gone."""
        self._end_sessions(number, why)
        self.asks.fail(why, [ticket for ticket, asked in self._tickets.items() if asked == number])

    def leaves(self, replica: Replica) -> None:
        """It takes no turns any more: its sessions end, once those that are live have."""
        for session in self._end_sessions(replica.number, "its replica leaves"):
            self.tell(replica, CloseSession(session), lambda reply: None)

    def _end_sessions(self, number: int, why: str) -> list[str]:
        """Names of those that this replica had, which are remembered until they are opened again."""
        ended = [session for session, home in self.sessions.items() if home.replica == number]
        for session in ended:
            self.sessions[session] = self.sessions[session]._replace(replica=NOBODY, ended=why)
        return ended

    def why_ended(self, session: str) -> str:
        """What to tell who goes on with a session that has ended with its replica; empty: it has not."""
        home = self.sessions.get(session)
        if home is None or not home.ended:
            return ""
        return f"session {session!r} has ended: {home.ended}. Open it again, and send what it held"

    def owner_of(self, session: str) -> int:
        """Number of the replica that has this session, or that has not said yet that it is closed."""
        home = self.sessions.get(session)
        return NOBODY if home is None else home.replica

    def _owners(self, session: str) -> list[int]:
        """The replica that has it; one that nobody has is for the one with the least to do that stays."""
        owner = self.owner_of(session)
        if owner in self._replicas:
            return [owner]
        loads = [replica.load for replica in self._replicas.values() if not replica.leaving]
        return [min(loads, key=lambda load: (load.num_open, load.num_tokens, load.replica)).replica] if loads else []

    def _remember(self, session: str, home: Home) -> None:
        self.sessions.pop(session, None)
        self.sessions[session] = home
        if len(self.sessions) > MOST_SESSIONS:
            del self.sessions[next(iter(self.sessions))]

    def _closed(self, session: str, home: Home | None, ask: Ask, replies: Replies) -> bool:
        """Until its replica has said so, who opens one of this name must ask that one; and this may have been done."""
        done = self._answer(ask, replies)
        if done and home is not None and self.sessions.get(session) == home:
            del self.sessions[session]
        return done

    def tell(self, replica: Replica, message: msgspec.Struct, answer: Answer) -> None:
        """Put it to this one alone."""
        row = row_of(message)

        def answered(reply: Reply) -> None:
            self._tickets.pop(reply.ticket, None)
            answer(reply)

        ticket = self.asks.ask(message, row.wait_s(message), answered, to=row.answerer(replica.names))
        if self.asks.waits(ticket):
            self._tickets[ticket] = replica.number

    @property
    def fixed(self) -> str:
        """Why there can be no other number of replicas now; empty: there can."""
        joins = any(isinstance(order, JoinWeightGroup) for order in self._lasting.values())
        return JOINED if joins else self.present.fixed

    @property
    def num_lasting(self) -> int:
        """Orders that last, of which it is not known yet whether all have carried them out."""
        return len(self._lasting)

    def waits_for(self, number: int) -> bool:
        """Whether this replica owes an answer."""
        return number in self._tickets.values()

    def _carried_out(self, order: Any, number: int, ask: Ask, replies: Replies) -> bool:
        self._lasting.pop(number, None)
        # One that has not may be gone, and nobody has said so yet. And who is told to leave a group is in it no more.
        done = any(reply.ok for reply in replies.values()) or isinstance(order, LeaveWeightGroup)
        if isinstance(order, ReleaseMemory):
            # Where one has refused, and serves on, whoever is started later is to serve as well.
            done = done and all(reply.ok or reply.unserved for reply in replies.values())
        if done and isinstance(order, Pause | Continue):
            # Who pauses is answered when steps have come back, and may have been told to go on since.
            done = number > self._last_serving
            self._last_serving = max(number, self._last_serving)
        if done:
            self.present.done(order)
        self.ordered(order if done else None)
        return self._answer(ask, replies)

    def _answer(self, ask: Ask, replies: Replies) -> bool:
        """Whether it was done."""
        row, replied = row_of(ask.message), list(replies.values())
        reply = replied[0] if row.session_of is not None else row.merge(replied)
        self._actor.context.send(ask.reply_to, msgspec.structs.replace(reply, ticket=ask.ticket))
        return reply.ok
