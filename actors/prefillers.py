"""The prefill replicas behind a router: who is there, and who is told of whom.

They take no requests of clients. Each decode replica knows them, and asks them by itself (`pawl.actors.prefill_desk`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog

from pawl.actors.messages.hand_over import DecoderDown, DecoderUp, PrefillerDown, PrefillerUp
from pawl.actors.messages.replicas import ReplicaFailed, ReplicaUp
from pawl.actors.names import DECODE, FRONT, PREFILL, Names
from pawl.actors.routed import Replica
from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.starter import Starter

log = structlog.get_logger("pawl.router")


class Prefillers:
    """Those that are not lost, by number."""

    def __init__(
        self, actor: Actor, replicas: Collection[Names], starter: Starter, serving: Mapping[int, Replica]
    ) -> None:
        """`actor` sends for it; `serving` are the replicas that take requests, and are not lost: a view."""
        self.replicas = {each.replica: Replica(each) for each in replicas}
        self._actor = actor
        self._starter = starter
        self._serving = serving
        self._met = False

    def handles(self, message: ReplicaUp | ReplicaFailed | Down, *, again: bool) -> bool:
        """Whether the message is about one of them, and was dealt with. `again`: one that is lost may be started
        again."""
        match message:
            case ReplicaUp(names) if names.role == PREFILL:
                prefiller = self.replicas[names.replica] = Replica(names)
                self._introduce(prefiller)
            case ReplicaFailed(reason, role) if role == PREFILL:
                log.error("a prefill replica could not be started again", reason=reason)
            case Down(name, reason) if (lost := self._with(name)) is not None:
                self._lose(lost, name, reason, again)
            case _:
                return False
        return True

    def meet(self) -> None:
        """There are requests: from here on everybody is told of everybody. A system that stops before there were any
        has nobody to tell."""
        if not self._met:
            self._met = True
            for prefiller in self.replicas.values():
                self._introduce(prefiller)

    def _introduce(self, prefiller: Replica) -> None:
        for replica in self._serving.values():
            self._meet(prefiller, replica)

    def _meet(self, prefiller: Replica, replica: Replica) -> None:
        # The desk first: whoever asks is known there, if nothing is slow.
        if self._met and replica.names.role == DECODE:
            names = replica.names
            self._send(prefiller.names.detokenizer, DecoderUp(names.scheduler, names.storage))
            self._send(names.scheduler, PrefillerUp(prefiller.names.detokenizer))

    def _with(self, name: str) -> Replica | None:
        """The one that cannot go on without the actor `name`."""
        return next((replica for replica in self.replicas.values() if name in replica.vital), None)

    def _lose(self, lost: Replica, name: str, reason: str, again: bool) -> None:
        del self.replicas[lost.number]
        log.error("a prefill replica is lost", replica=lost.number, actor=name, reason=reason)
        for replica in self._serving.values():
            if replica.names.role == DECODE:
                self._send(replica.names.scheduler, PrefillerDown(lost.names.detokenizer))
        self._actor.context.send(FRONT.gateway, lost.lost(name, reason), Lane.CONTROL)
        self._starter.restart(lost.names, again=again)

    def decoder_up(self, replica: Replica) -> None:
        """One more replica takes requests."""
        for prefiller in self.replicas.values():
            self._meet(prefiller, replica)

    def decoder_down(self, replica: Replica) -> None:
        """A replica that took requests is given up."""
        if replica.names.role == DECODE:
            for prefiller in self.replicas.values():
                self._send(prefiller.names.detokenizer, DecoderDown(replica.names.scheduler))

    def _send(self, to: str, message: DecoderUp | DecoderDown | PrefillerUp | PrefillerDown) -> None:
        self._actor.context.send(to, message, Lane.CONTROL)
