"""Ranks as processes of their own: started, talked to, and ended.

A process for each rank, spawned: nothing of this one is in it but the ends of two lines, and what `Setup` says. It ends
when this process does, however that ends, for its lines are closed then.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

import msgspec

from pawl.gpu.children import OwnFolder, start
from pawl.gpu.parallel.link import Frame, LineClosed, LineTimeout, Link
from pawl.gpu.parallel.ranks import IN_VAIN, RankLost, StartRefused, check_ready
from pawl.gpu.parallel.topology import Place, Topology
from pawl.gpu.parallel.wire import (
    Answer,
    Beside,
    Here,
    Loading,
    NextStage,
    Ready,
    Setup,
    StageWeights,
    ToRank,
    Waits,
)
from pawl.gpu.weights.report import Report, unheard

GRACE_S = 3.0
"""For the others, once one rank has refused: what it refuses they refuse at once, or they wait for it in vain."""
START_S = 1800.0
"""For reading the model."""
BY_OTHERS = -signal.SIGKILL
"""How a process ends that somebody, or the system for want of memory, has ended; other signals to end it does not
heed."""


class Wire(Protocol):
    """A codec. Raises ValueError for frames that are no message."""

    def encode(self, message: Any) -> list[Frame]: ...

    def decode(self, frames: Sequence[Frame]) -> Any: ...


class OneRank(Protocol):
    """A rank, on whichever host."""

    @property
    def rank(self) -> int:
        """Its number."""

    @property
    def steps(self) -> Link: ...

    @property
    def beside(self) -> Link: ...

    @property
    def ended(self) -> bool:
        """Its process has."""

    def lost(self) -> RankLost:
        """It has closed its line: why."""


class SomeRanks(Protocol):
    """Ranks of one start that live on one host."""

    @property
    def ranks(self) -> Sequence[OneRank]: ...

    def end(self) -> None:
        """End them, also where they are stopped; whoever waits for them waits no more. May be called twice."""


class RankProcess:
    """One rank, of this host."""

    def __init__(self, command: Sequence[str], rank: int, here: str = "") -> None:
        """`command` runs it; the ends of its lines, as numbers of open files, and `here` are its last arguments."""
        self.rank = rank
        pairs = [socket.socketpair() for _ in range(2)]
        theirs = [pair[1].fileno() for pair in pairs]
        try:
            self._child = start(
                [*command, *map(str, theirs), here],
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
                start_new_session=True,  # an interrupt from a terminal is for the server alone
            )
        except BaseException:
            for own, _ in pairs:
                own.close()
            raise
        finally:
            for _, given in pairs:
                given.close()
        self.steps, self.beside = (Link(pair[0]) for pair in pairs)

    def kill(self) -> None:
        """End it, also where it is stopped; whoever waits for it waits no more."""
        self._child.kill()
        self.steps.shut()
        self.beside.shut()
        self._child.wait()

    @property
    def ended(self) -> bool:
        """Its process has."""
        return self._child.poll() is not None

    def lost(self) -> RankLost:
        """It has closed its line: why."""
        try:
            code = self._child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return RankLost(self.rank, "has closed its line", blameless=False)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with status {code}"
        return RankLost(self.rank, f"(process {self._child.pid}) {how}", blameless=code == BY_OTHERS)


class RanksHere:
    """`SomeRanks` of this host."""

    def __init__(self, command: Sequence[str], numbers: Sequence[int], here: Callable[[int, Path], Here]) -> None:
        """`here` of each rank; those of a start meet at a path that nobody else can open."""
        self._folder = OwnFolder("ranks")
        self._here = here  # and the memory in which they meet
        self.ranks: list[RankProcess] = []
        try:
            for number in numbers:
                told = msgspec.json.encode(here(number, self._folder.path / "store")).decode()
                self.ranks.append(RankProcess(command, number, told))
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """See `SomeRanks.end`."""
        for rank in self.ranks:
            rank.kill()
        self._folder.close()


class ProcessLine:
    """`Line` to processes."""

    def __init__(self, ranks: Sequence[OneRank], links: Sequence[Link], wire: Wire, send_limit_s: float) -> None:
        self._ranks, self._links, self._wire, self._send_limit_s = ranks, links, wire, send_limit_s
        self._busy = Lock()
        """Held by whoever says or hears something."""

    def tell(self, message: ToRank | Beside) -> None:
        """See `Line.tell`: encoded once."""
        if isinstance(message, StageWeights):
            from pawl.gpu.parallel.sent import sendable

            message = sendable(message)
        with self._busy:
            frames = self._wire.encode(message)
            for rank, link in zip(self._ranks, self._links, strict=True):
                try:
                    link.send(frames, self._send_limit_s)
                except LineClosed:
                    raise rank.lost() from None
                except LineTimeout:
                    raise RankLost(rank.rank, f"has taken no message for {self._send_limit_s:g} s") from None

    def close(self) -> None:
        """When all ranks have ended."""
        with self._busy:
            for link in self._links:
                link.close()

    def answers(self, limit_s: float) -> Sequence[Answer]:
        """See `Line.answers`."""
        answers = [self._checked(answer) for answer in self.receive(limit_s)]
        if any(answer.kind for answer in answers):
            # Whoever hears a rank end in the middle of a step fails, and is not the one to name.
            for rank in self._ranks:
                if rank.ended:
                    raise rank.lost()
        return answers

    def receive(self, limit_s: float, report: Report = unheard) -> list[Any]:
        """The next message of each, but for those of ranks that load, which `report` hears. Raises RankLost."""
        until = time.monotonic() + limit_s
        found: dict[int, Any] = {}
        shares = [0.0] * len(self._links)
        with self._busy, selectors.DefaultSelector() as selector:
            for number, link in enumerate(self._links):
                if link.fileno() < 0:
                    raise self._ranks[number].lost()
                selector.register(link.fileno(), selectors.EVENT_READ, number)
            while len(found) < len(self._links):
                ready = selector.select(max(0.0, until - time.monotonic()))
                if not ready:
                    raise self._late(found, limit_s)
                for key, _ in ready:
                    told = self._next(key.data, until)
                    if isinstance(told, Loading):
                        shares[key.data] = told.share
                        report(sum(shares) / len(shares))
                        continue
                    found[key.data] = told
                    selector.unregister(key.fd)
                    if getattr(told, "kind", ""):
                        until = min(until, time.monotonic() + GRACE_S)
        return [found[number] for number in range(len(self._links))]

    def _late(self, found: Mapping[int, Any], limit_s: float) -> RankLost:
        """Why some have not answered: they hang, or wait for one that has failed."""
        for number, told in found.items():
            if (kind := getattr(told, "kind", "")) not in ("", IN_VAIN):
                return RankLost(number, f"alone has failed: {kind}: {told.refusal}", blameless=False)
        late = next(rank for number, rank in enumerate(self._ranks) if number not in found)
        return RankLost(late.rank, f"has not answered within {limit_s:g} s")

    def _next(self, number: int, until: float) -> Any:
        rank = self._ranks[number]
        try:
            return self._wire.decode(self._links[number].receive(max(0.0, until - time.monotonic())))
        except LineClosed:
            raise rank.lost() from None
        except LineTimeout:
            raise RankLost(rank.rank, "has stopped in the middle of an answer") from None
        except ValueError as error:
            raise RankLost(rank.rank, f"says what no rank says: {error}") from None

    def _checked(self, answer: Any) -> Answer:
        assert isinstance(answer, Answer), "ranks are ready once"
        return answer


class RankProcesses:
    """`Ranks` that are processes."""

    def __init__(
        self,
        topology: Topology,
        hosts: Sequence[Callable[[], SomeRanks]],
        setup: Callable[[int], Setup],
        wire: Callable[[], Wire],
        step_limit_s: float,
        report: Report = unheard,
    ) -> None:
        """Each of `hosts` starts those of one, in their order; `setup` of each rank; `wire` makes a codec for a line;
        `report` hears how far they have loaded. Returns when all are ready. Raises RankLost, or StartRefused."""
        self._hosts: list[SomeRanks] = []
        try:
            for start_there in hosts:
                self._hosts.append(start_there())
        except BaseException:
            self._kill()
            raise
        ranks = [rank for host in self._hosts for rank in host.ranks]
        self.steps = ProcessLine(ranks, [rank.steps for rank in ranks], wire(), step_limit_s)
        self.beside = ProcessLine(ranks, [rank.beside for rank in ranks], wire(), START_S)
        try:
            self._tell(ranks, wire(), [setup(rank.rank) for rank in ranks])
            if len(hosts) > 1:
                waits = [_expected(Waits, told).address for told in self.steps.receive(START_S)]
                self._tell(ranks, wire(), next_stages(topology, waits))
            self.ready: Sequence[Ready] = [_expected(Ready, each) for each in self.steps.receive(START_S, report)]
            check_ready(self.ready, topology)
        except BaseException:
            self.end()
            raise

    def _tell(self, ranks: Sequence[OneRank], wire: Wire, messages: Sequence[Setup | NextStage]) -> None:
        """Each another one."""
        for rank, message in zip(ranks, messages, strict=True):
            with suppress(LineClosed):  # it has ended, and `receive` says why
                rank.steps.send(wire.encode(message))

    def end(self) -> None:
        """See `Ranks.end`."""
        self._kill()
        for line in (self.steps, self.beside):
            line.close()

    def _kill(self) -> None:
        for host in self._hosts:
            host.end()


Told = TypeVar("Told", Waits, Ready)


def _expected(kind: type[Told], told: Any) -> Told:
    if isinstance(told, kind):
        return told
    raise StartRefused(f"{told.kind}: {told.refusal}")


def next_stages(topology: Topology, waits: Sequence[str]) -> list[NextStage]:
    """For each rank, of all that wait there: the one with its tensor number in the next stage, and behind the last
    stage in the first one."""
    start, found = os.urandom(16), []
    for rank in range(topology.size):
        stage, tensor = topology.place(rank)
        behind = topology.rank(Place((stage + 1) % topology.pipeline, tensor))
        found.append(NextStage(waits[behind], start))
    return found
