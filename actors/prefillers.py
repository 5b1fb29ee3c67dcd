"""The prefill replicas behind a router: who is there, and who is told of whom.

They take no requests of clients. Each decode replica knows them, and asks them by itself (`pawl.actors.prefill_desk`).
Where they live in processes of their own, a pair is told of each other while it has a link (`pawl.actors.links`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from operator import delitem, setitem

import structlog

from pawl.actors.agenda import Step, Steps
from pawl.actors.links import Links
from pawl.actors.messages.hand_over import DecoderDown, DecoderUp, PrefillerDown, PrefillerUp
from pawl.actors.messages.links import FromLinker, LinkAgain
from pawl.actors.messages.replicas import ReplicaLost
from pawl.actors.names import DECODE, FRONT, PREFILL, Names
from pawl.actors.routed import Replica, that_needs
from pawl.actors.runtime.actor import Actor, Lane

log = structlog.get_logger("pawl.router")


class Prefillers:
    """Those that are not lost, by number."""

    def __init__(
        self,
        actor: Actor,
        replicas: Collection[Names],
        replace: Callable[[Replica], Steps],
        serving: Mapping[int, Replica],
        *,
        linked: bool,
    ) -> None:
        """Of all `replicas`; `actor` sends for it; `replace` has another one started where one is lost; `serving` are
        those that take requests, and are not lost: a view. `linked`: each lives in a process of its own."""
        self.replicas = {each.replica: Replica(each) for each in replicas if each.role == PREFILL}
        self._actor = actor
        self._replace = replace
        self._serving = serving
        self._links = Links(actor, self._turned) if linked else None
        self._met = False

    def started(self) -> None:
        """Have all linked."""
        for prefiller in self.replicas.values():
            for replica in self._serving.values():
                self._link(prefiller, replica)

    def linking(self, message: FromLinker | LinkAgain) -> None:
        """What is to be known of links."""
        if self._links is not None:
            self._links.receive(message)

    def up(self, prefiller: Replica) -> list[Step]:
        """One more prefills: what is to be done."""
        links = [partial(self._link, prefiller, replica) for replica in self._serving.values()]
        enter = partial(setitem, self.replicas, prefiller.number, prefiller)
        return [enter, *links, partial(self._introduce, prefiller)]

    def lost(self, name: str, reason: str) -> list[Step] | None:
        """What is to be done where one of them cannot go on without the actor `name`, which is gone; None: they can."""
        lost = that_needs(self.replicas, name)
        return None if lost is None else self._lose(lost, name, reason)

    def meet(self) -> None:
        """There are requests: from here on everybody is told of everybody. A system that stops before there were any
        has nobody to tell."""
        if not self._met and self._links is None:
            self._met = True
            try:
                for prefiller in self.replicas.values():
                    self._introduce(prefiller)
            except Exception:
                self._met = False  # the next request tells them, some twice
                raise

    def _introduce(self, prefiller: Replica) -> None:
        for replica in self._serving.values():
            self._meet(prefiller, replica)

    def _meet(self, prefiller: Replica, replica: Replica) -> None:
        # The desk first: whoever asks is known there, if nothing is slow.
        reachable = self._met if self._links is None else self._links.up(prefiller.number, replica.number)
        if reachable and replica.names.role == DECODE:
            names = replica.names
            self._send(prefiller.names.detokenizer, DecoderUp(names.scheduler, names.storage))
            self._send(names.scheduler, PrefillerUp(prefiller.names.detokenizer))

    def _part(self, prefiller: Names, decoder: Names) -> None:
        self._send(decoder.scheduler, PrefillerDown(prefiller.detokenizer, prefiller.storage))
        self._send(prefiller.detokenizer, DecoderDown(decoder.scheduler))

    def _link(self, prefiller: Replica, replica: Replica) -> None:
        if self._links is not None and replica.names.role == DECODE:
            self._links.begin(prefiller.names, replica.names)

    def _turned(self, number: int, decoder: int, up: bool) -> None:
        """Two replicas can reach each other, or cannot any more."""
        prefiller, replica = self.replicas[number], self._serving[decoder]
        if up:
            self._meet(prefiller, replica)
        else:
            self._part(prefiller.names, replica.names)

    def _lose(self, lost: Replica, name: str, reason: str) -> list[Step]:
        log.error("a prefill replica is lost", replica=lost.number, actor=name, reason=reason)
        return [
            partial(delitem, self.replicas, lost.number),
            partial(self._tell_decoders, lost),
            partial(self._unlink, lost.names, f"{name} is gone: {reason}"),
            partial(self._tell_gateway, lost.lost(name, reason)),
            partial(self._replace, lost),
        ]

    def _tell_decoders(self, lost: Replica) -> None:
        """That it is gone."""
        for replica in self._serving.values():
            if replica.names.role == DECODE:
                self._send(replica.names.scheduler, PrefillerDown(lost.names.detokenizer, lost.names.storage))

    def _tell_gateway(self, message: ReplicaLost) -> None:
        self._actor.context.send(FRONT.gateway, message, Lane.CONTROL)

    def decoder_up(self, replica: Replica) -> list[Step]:
        """One more replica takes requests: what is to be done."""
        pairs = [(prefiller, replica) for prefiller in self.replicas.values()]
        return [partial(done, *pair) for pair in pairs for done in (self._link, self._meet)]

    def decoder_down(self, replica: Replica, reason: str) -> None:
        """A replica that took requests is given up."""
        if replica.names.role == DECODE:
            for prefiller in self.replicas.values():
                self._send(prefiller.names.detokenizer, DecoderDown(replica.names.scheduler))
            self._unlink(replica.names, reason)

    def _unlink(self, lost: Names, reason: str) -> None:
        if self._links is not None:
            self._links.forget(lost, reason)

    def _send(self, to: str, message: DecoderUp | DecoderDown | PrefillerUp | PrefillerDown) -> None:
        self._actor.context.send(to, message, Lane.CONTROL)
