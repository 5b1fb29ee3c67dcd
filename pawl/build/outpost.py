"""The process of a replica on a host where it has ranks and does not live: starts them for it, and nothing else.

    stdin    a Setup; its end is the end of the agent
    stdout   Waits: where the replica finds it; or Refused

Several starts of ranks come one after the other. It ends with its replica, and its ranks with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import IO, Any

import numpy as np
import structlog
from numpy.typing import NDArray

from pawl import __version__
from pawl.actors.codec import make_codec
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.processes.keys import read_keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.build.device_shares import take_devices
from pawl.build.outposts import post_of
from pawl.build.parent import parent
from pawl.build.ranks_here import Begin, Outward, start_here
from pawl.build.ready import Setup, Waits
from pawl.build.tunnel import BESIDE, STEPS, EndRanks, Piece, RankEnded, Tunnel
from pawl.config import ServerConfig
from pawl.gpu.children import remove_left
from pawl.gpu.parallel.processes import RankProcess, RanksHere

log = structlog.get_logger("pawl.build.outpost")

LEFT = "its replica has left"


def main() -> None:
    """Until the replica ends, or the agent."""
    begun = parent()
    if begun is None:
        return
    setup, config = begun.setup, begun.config
    ends: SimpleQueue[str] = SimpleQueue()
    Thread(target=_watch_agent, args=(begun.source, ends), name="agent", daemon=True).start()
    remove_left()
    try:
        take_devices(config, setup.place, setup.part)
        outpost = Outpost(config, setup, ends)
    except Exception as error:
        begun.refuse(error, log, "the outpost could not be set up")
        return
    begun.tell(Waits(outpost.address))
    why = ends.get()
    log.info("the outpost ends", why=why)
    outpost.close()
    sys.exit(0 if why == LEFT else 1)


def _watch_agent(source: IO[bytes], ends: SimpleQueue[str]) -> None:
    # Not through the buffered stream, whose lock a thread that waits would still hold at the end of the process.
    while os.read(source.fileno(), 1):
        pass
    ends.put("the agent is gone")


class Keeper(Actor):
    """Starts ranks, one start after the other, and hands on what is said to them."""

    accepts: Any = Begin | EndRanks | Piece

    def __init__(self, config: ServerConfig, outward: Outward, say: Callable[[Piece | RankEnded], object]) -> None:
        self._config, self._outward, self._say = config, outward, say
        self._life = -1
        self._ranks: RanksHere | None = None
        self._tunnels: dict[tuple[int, int], Tunnel] = {}
        """Of (rank, line)."""
        self._lock = Lock()
        """Held while ranks end, which another thread may ask for."""

    def receive(self, message: Any) -> None:
        match message:
            case Begin():
                self.end()
                self._begin(message)
            case EndRanks(life):
                if life == self._life:
                    self.end()
            case Piece(life, rank, line, data):
                if life == self._life and (tunnel := self._tunnels.get((rank, line))) is not None:
                    tunnel.put(data)

    def _begin(self, begin: Begin) -> None:
        self._life = begin.life
        try:
            self._ranks = start_here(begin, self._config, self._outward)
        except Exception as error:
            log.exception("ranks cannot be started")
            why = f"cannot be started: {str(error) or type(error).__name__}"
            for number in begin.numbers:
                self._say(RankEnded(begin.life, number, why, blameless=False))
            return
        for rank in self._ranks.ranks:
            name, said = f"rank {rank.rank}", partial(self._said, begin.life, rank.rank)
            ended = partial(self._ended, begin.life, rank)
            self._tunnels[rank.rank, STEPS] = Tunnel(name, rank.steps.socket, partial(said, STEPS), ended)
            self._tunnels[rank.rank, BESIDE] = Tunnel(name, rank.beside.socket, partial(said, BESIDE))

    def _said(self, life: int, rank: int, line: int, data: NDArray[np.uint8]) -> None:
        self._say(Piece(life, rank, line, data))

    def _ended(self, life: int, rank: RankProcess) -> None:
        how = rank.lost()
        self._say(RankEnded(life, rank.rank, how.why, how.blameless))

    def end(self) -> None:
        """End the ranks of the last start."""
        with self._lock:
            ranks, self._ranks = self._ranks, None
            tunnels, self._tunnels = self._tunnels, {}
            if ranks is None:
                return
            ranks.end()
            for tunnel in tunnels.values():
                tunnel.finish()


class Outpost:
    """The keeper, and its link with the replica."""

    def __init__(self, config: ServerConfig, setup: Setup, ends: SimpleQueue[str]) -> None:
        """Raises KeysUnusable, OSError."""
        assert setup.keys is not None
        assert setup.peers_at is not None
        replica, _, _ = setup.process.rpartition(".")
        post = post_of(replica)
        process = Process(
            setup.process,
            make_codec,
            __version__,
            on_lost=lambda _, why: ends.put(f"the replica is lost: {why}"),
            on_left=lambda _: ends.put(LEFT),
        )
        self._system = ProcessSystem(process, on_failure=lambda name, error: ends.put(f"{name} failed: {error!r}"))
        outward = Outward(setup.peers_at, setup.keys, setup.address, setup.host)
        self._keeper = Keeper(config, outward, lambda message: self._system.send(post, message, Lane.CONTROL))
        self._system.spawn(self._keeper, setup.process)
        self._sockets = Sockets()
        wire = self._sockets.bind(setup.peers_at, read_keys(Path(setup.keys)))
        self.address = wire.address
        self._system.connect(post, wire)
        self._system.start()
        self._name = setup.process

    def close(self) -> None:
        """End the ranks, and whatever else is here."""
        self._keeper.end()
        self._system.stop((self._name,))
        self._sockets.close()


if __name__ == "__main__":
    main()
