"""The other hosts of a replica's ranks, as its process sees them: an outpost on each (`outpost.py`) starts ranks there.

    group ── RankOverThere ── Tunnel ══ link ══ outpost ── RankProcess

The link is one of its own, with keys, and lives as long as the replica: where it is lost no start helps, and the
replica is given up.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from pawl import __version__
from pawl.actors.codec import make_codec
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.processes.keys import Keys, read_keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.build.ranks_here import Begin, Outward
from pawl.build.ready import Setup
from pawl.build.tunnel import BESIDE, STEPS, EndRanks, Piece, RankEnded, Tunnel
from pawl.gpu.parallel.link import Link
from pawl.gpu.parallel.processes import GRACE_S
from pawl.gpu.parallel.ranks import HostGone, RankLost

log = structlog.get_logger("pawl.build.outposts")

MEET_S = 30.0
"""What an outpost that waits may take to be met."""


def post_of(process: str) -> str:
    """The actor of this replica to which outposts report, and the process in whose name it does."""
    return f"{process}.ranks"


def outpost_of(process: str, number: int) -> str:
    """The actor, and process, of the outpost on the host of this number; 0 is that of the replica itself."""
    return f"{process}.{number}"


class RankOverThere:
    """A rank of another host (`OneRank`)."""

    def __init__(self, posts: Outposts, outpost: str, life: int, rank: int) -> None:
        self.rank = rank
        pairs = [socket.socketpair() for _ in (STEPS, BESIDE)]
        self.steps, self.beside = (Link(own) for own, _ in pairs)
        self._over = Event()
        self._how = RankLost(rank, "has closed its line", blameless=False)
        self._tunnels = [
            Tunnel(f"rank {rank}", theirs, partial(posts.say, outpost, life, rank, line))
            for line, (_, theirs) in enumerate(pairs)
        ]

    @property
    def ended(self) -> bool:
        """See `OneRank.ended`."""
        return self._over.is_set()

    def lost(self) -> RankLost:
        """See `OneRank.lost`."""
        self._over.wait(2.0 * GRACE_S)
        return self._how

    def heard(self, line: int, data: NDArray[np.uint8]) -> None:
        """It says so."""
        self._tunnels[line].put(data)

    def ends(self, why: str, *, blameless: bool) -> None:
        """It says no more."""
        if not self._over.is_set():
            self._how = RankLost(self.rank, why, blameless=blameless)
            self._over.set()
        for tunnel in self._tunnels:
            tunnel.finish()


class RanksOverThere:
    """`SomeRanks` of another host."""

    def __init__(self, posts: Outposts, outpost: str, begin: Begin) -> None:
        self.life = begin.life
        self._posts, self._outpost = posts, outpost
        self.ranks = [RankOverThere(posts, outpost, begin.life, rank) for rank in begin.numbers]

    def end(self) -> None:
        """See `SomeRanks.end`."""
        self._posts.tell(self._outpost, EndRanks(self.life))
        self.all_end("was ended")

    def all_end(self, why: str, *, blameless: bool = True) -> None:
        """None of them says any more."""
        for rank in self.ranks:
            rank.ends(why, blameless=blameless)


class Post(Actor):
    """Hears what outposts say."""

    accepts: Any = Piece | RankEnded

    def __init__(self, posts: Outposts) -> None:
        self._posts = posts

    def receive(self, message: Any) -> None:
        self._posts.heard(message)


class Outposts:
    """All of one replica."""

    def __init__(self, setup: Setup) -> None:
        """Of the replica that was started so; `setup.outposts` are to be met next. Raises KeysUnusable, OSError."""
        assert setup.keys is not None
        assert setup.peers_at is not None
        self.outward = Outward(setup.peers_at, setup.keys, setup.address if setup.address.startswith("tcp:") else None)
        self._names = [outpost_of(setup.process, number) for number in range(1, len(setup.outposts) + 1)]
        self._met = {name: Event() for name in self._names}
        self._gone: dict[str, str] = {}
        """Outposts that were lost, and why."""
        self._ranks: dict[str, RanksOverThere] = {}
        """Those of the last start, by outpost."""
        self._lock = Lock()
        self._sockets = Sockets()
        post = post_of(setup.process)
        process = Process(post, make_codec, __version__, on_met=self._meets, on_lost=self._lost, on_left=self._left)
        self._system = ProcessSystem(process)
        self._system.spawn(Post(self), post)
        self._system.start()
        self._post = post
        self._join(setup.outposts, read_keys(Path(setup.keys)))

    def _join(self, addresses: Sequence[str], keys: Keys) -> None:
        for name, address in zip(self._names, addresses, strict=True):
            self._system.connect(name, self._sockets.join(address, keys))

    @property
    def num_hosts(self) -> int:
        """With that of the replica."""
        return len(self._names) + 1

    def start(self, number: int, begin: Begin) -> RanksOverThere:
        """Start ranks on the host of this number. Raises HostGone."""
        name = self._names[number - 1]
        met = self._met[name].wait(MEET_S)
        with self._lock:
            if name in self._gone or not met:
                raise HostGone(self._gone.get(name, f"{name} cannot be met within {MEET_S:g} s"))
            self._ranks[name] = ranks = RanksOverThere(self, name, begin)
        self.tell(name, begin)
        return ranks

    def tell(self, outpost: str, message: Begin | EndRanks | Piece) -> None:
        self._system.send(outpost, message, Lane.CONTROL)

    def say(self, outpost: str, life: int, rank: int, line: int, data: NDArray[np.uint8]) -> None:
        """To this rank, on this line."""
        self.tell(outpost, Piece(life, rank, line, data))

    def heard(self, message: Piece | RankEnded) -> None:
        """An outpost says so, perhaps of an earlier start."""
        with self._lock:
            ranks = [rank for each in self._ranks.values() if each.life == message.life for rank in each.ranks]
        for rank in ranks:
            match message:
                case Piece(_, number, line, data) if number == rank.rank:
                    rank.heard(line, data)
                case RankEnded(_, number, why, blameless) if number == rank.rank:
                    rank.ends(why, blameless=blameless)

    def _meets(self, name: str) -> None:
        self._met[name].set()

    def _left(self, name: str) -> None:
        self._lost(name, "it has left")

    def _lost(self, name: str, why: str) -> None:
        told = f"{name} is lost: {why}"
        with self._lock:
            self._gone[name] = told
            ranks = self._ranks.pop(name, None)
        self._met[name].set()
        if ranks is not None:
            ranks.all_end(f"was on a host that is gone: {told}")

    def close(self) -> None:
        """All ranks have ended; so do outposts."""
        self._system.stop((self._post,))
        self._sockets.close()
