"""A replica in a process of its own: what its process does, from the settings to its end. Started by `replica_process`.

    stdin    a Setup; its end is the end of the front
    stdout   Progress, Progress, …, then Ready or Refused

Its actors find those of the front over a link. They begin once the front is met, and end when the front says so, one
after another; when the front is gone, its requests end as those of a client that hung up.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import IO

import structlog

from pawl import __version__
from pawl.actors.codec import make_codec
from pawl.actors.names import UNIFIED
from pawl.actors.runtime.actor import Lane
from pawl.actors.runtime.processes.keys import read_keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.build.device_shares import take_devices
from pawl.build.dialer import SocketDialer
from pawl.build.loading import load_here
from pawl.build.outposts import Outposts
from pawl.build.parent import parent
from pawl.build.parts import Parts
from pawl.build.ready import FRONT, Progress, Ready, Setup
from pawl.build.wiring import replica_actors, spawn_all, stop_order
from pawl.config import ServerConfig
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import EndAll

log = structlog.get_logger("pawl.build.replica")

LEFT = "the front has left"
ENDED = "all its actors have ended"
TELL_S = 2.0
"""What the front may take to hear which actor has failed."""
STOP_S = 10.0
"""What an actor may take to end, once the front is gone."""


def main() -> None:
    """Until the front ends, or says so."""
    begun = parent()
    if begun is None:
        return
    setup, config = begun.setup, begun.config
    sys.setswitchinterval(setup.switch_s)
    ends: SimpleQueue[str] = SimpleQueue()
    loaded = Event()
    Thread(target=_watch_front, args=(begun.source, ends, loaded, setup.address), name="front", daemon=True).start()
    outposts = None
    try:
        take_devices(config, setup.place)
        outposts = Outposts(setup) if setup.outposts else None
        parts = load_here(config, lambda share: begun.tell(Progress(share)), setup.names, outposts)
    except Exception as error:
        begun.refuse(error, log, "the replica could not be loaded")
        if outposts is not None:
            outposts.close()
        return
    replica = Replica(parts, config, setup, ends)
    begun.tell(_ready(parts))
    loaded.set()
    why = replica.serve()
    if outposts is not None:
        outposts.close()
    if why not in (LEFT, ENDED, replica.failure):  # the front cannot any more
        _forget(setup.address)
    sys.exit(0 if why in (LEFT, ENDED) else 1)


def _watch_front(source: IO[bytes], ends: SimpleQueue[str], loaded: Event, address: str) -> None:
    """Wait for the end of the front, and see to that of this process."""
    # Not through the buffered stream, whose lock a thread that waits would still hold at the end of the process.
    while os.read(source.fileno(), 1):
        pass
    ends.put("the front is gone")
    if loaded.is_set():
        # An orderly end takes as long as it takes, but not for ever.
        time.sleep(3 * STOP_S)
    _forget(address)
    os._exit(1)


def _forget(address: str) -> None:
    """Remove the folder of this link, where it has one, and with the last one that of a front that is gone."""
    kind, _, path = address.partition("://")
    if kind == "ipc":
        shutil.rmtree(Path(path).parent, ignore_errors=True)
        with suppress(OSError):
            Path(path).parent.parent.rmdir()


def _ready(parts: Parts) -> Ready:
    return Ready(
        version=__version__,
        pid=os.getpid(),
        name=parts.source.name,
        path=str(parts.source.path),
        num_embeddings=parts.vocabulary.num_embeddings,
        abilities=parts.abilities,
        loop_config=parts.loop_config,
        summary=parts.summary,
        traced=parts.traced,
    )


class Replica:
    """The actors of a replica, their link to the front, and what links them to other replicas."""

    def __init__(self, parts: Parts, config: ServerConfig, setup: Setup, ends: SimpleQueue[str]) -> None:
        self._ends = ends
        process = Process(
            setup.process,
            make_codec,
            __version__,
            on_met=self._met,
            on_lost=self._lost,
            on_left=lambda peer: ends.put(LEFT) if peer == FRONT else None,
        )
        self._system = ProcessSystem(process, parts.loop_config.seed, on_failure=self._failed)
        self._sockets = Sockets()
        keys = None if setup.keys is None else read_keys(Path(setup.keys))
        self._dialer = SocketDialer(self._system, self._sockets, setup, keys)
        self._parts = parts if setup.names.role == UNIFIED else replace(parts, dialer=self._dialer)
        self._specs = replica_actors(self._parts, config.request_timeout_s, names=setup.names)
        self.failure: str | None = None
        """Which actor has failed."""
        spawn_all(self._system, self._specs)
        keys = keys if setup.address.startswith("tcp:") else None
        self._system.connect(FRONT, self._sockets.join(setup.address, keys))

    def _met(self, peer: str) -> None:
        if peer == FRONT:
            self._ends.put("")
        else:
            self._dialer.met(peer)

    def _lost(self, peer: str, reason: str) -> None:
        if peer == FRONT:
            self._ends.put(f"the front is lost: {reason}")
        else:
            self._dialer.lost(peer, reason)

    def _failed(self, name: str, error: BaseException) -> None:
        self.failure = f"{name} failed: {type(error).__name__}"
        self._ends.put(self.failure)

    def _wait_for_actors(self) -> None:
        """Whose actors the front has ended leaves, though the front may go on."""
        for spec in self._specs:
            cell = self._system.find(spec.name)
            assert cell is not None
            cell.over.wait()
        self._ends.put(ENDED)

    def serve(self) -> str:
        """Until the front has left, or has ended all actors, or is gone, or an actor has failed: which of these."""
        why = self._ends.get()
        if not why:
            gc.collect()
            gc.freeze()
            self._system.start()
            Thread(target=self._wait_for_actors, name="actors", daemon=True).start()
            why = self._ends.get()
        log.info("the replica ends", why=why)
        if why not in (LEFT, ENDED):
            # Of a front that lives (its node is gone, or an actor of this process) requests go on elsewhere: it hears
            # who has failed, and nothing of how they end here.
            self._system.leave(FRONT, told_s=TELL_S if why == self.failure else 0.0)
        if why not in (LEFT, ENDED, self.failure):
            self._system.send(self._parts.names.scheduler, EndAll(Cause.DISCONNECT), Lane.CONTROL)
        self._system.stop(stop_order(self._specs), STOP_S)
        self._parts.close()
        self._sockets.close()
        return why


if __name__ == "__main__":
    main()
