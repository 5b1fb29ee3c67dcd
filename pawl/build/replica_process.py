"""The process of a replica, as the front sees it: started, asked what it has, joined, watched, ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from pawl import __version__
from pawl.actors.codec import make_codec
from pawl.actors.runtime.local import OnFailure
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.ready import FRONT, Progress, Ready, Refused, Setup, Told
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.frames import read_frame, write_frame
from pawl.gpu.weights.report import Report, unheard

log = structlog.get_logger("pawl.build.replica_process")

MEET_S = 60.0
"""What a replica that is ready may take until it is met."""
END_S = 5.0
"""What its process may take to end, after its actors."""


class ReplicaFailed(Exception):
    """The process of a replica has ended, cannot be started, or is not what it should be; the message says why."""


class Origin(NamedTuple):
    """Where the model of a replica comes from (a `Source`)."""

    name: str
    path: Path


class ReplicaProcess:
    """What an engine needs of its replica, which is loaded and serves in another process (compare `Parts`)."""

    def __init__(self, config: ServerConfig, report: Report = unheard, name: str = "replica") -> None:
        """Start it and wait until it is ready; `report` hears how far it is. Raises ReplicaFailed, and ConfigError for
        settings that cannot be."""
        self.name = name
        self._folder = Path(tempfile.mkdtemp(prefix="pawl-"))  # of mode 0700
        self._address = f"ipc://{self._folder}/{name}"
        self._met = threading.Event()
        self._link: Link | None = None
        self._sockets: Sockets | None = None
        self._ended = threading.Event()
        self._child = self._start()
        try:
            self.ready = self._wait_until_ready(config, report)
            check_alike({"front": {"version": __version__}, name: self.ready.facts()})
        except BaseException:
            self.kill()
            raise
        self.source = Origin(self.ready.name, Path(self.ready.path))
        self.vocabulary = (
            ghost_vocabulary()
            if config.model == "ghost"
            else Vocabulary.load(self.source.path, self.ready.num_embeddings)
        )
        self.loop_config, self.abilities = self.ready.loop_config, self.ready.abilities
        self.summary, self.traced = self.ready.summary | {"pid": self.ready.pid}, self.ready.traced
        threading.Thread(target=self._watch, name=f"watch {name}", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        """A session of its own: what ends the front from a terminal ends its replica when the front says so."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(
            [sys.executable, "-m", "pawl.build.replica"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    def _wait_until_ready(self, config: ServerConfig, report: Report) -> Ready:
        source, target = self._child.stdout, self._child.stdin
        assert source is not None
        assert target is not None
        setup = Setup(msgspec.to_builtins(config), self.name, self._address, sys.getswitchinterval())
        with suppress(BrokenPipeError):
            write_frame(target, msgspec.msgpack.encode(setup))
        while (frame := read_frame(source)) is not None:
            match msgspec.msgpack.decode(frame, type=Told):
                case Progress(share):
                    report(share)
                case Ready() as ready:
                    return ready
                case Refused(message, usage):
                    raise ConfigError(message, "") if usage else ReplicaFailed(message)
        raise ReplicaFailed(f"{self.name} has ended before it was ready: {how_it_ended(self._child.wait())}")

    def _watch(self) -> None:
        status = self._child.wait()
        self._ended.set()
        self._met.set()
        if self._link is not None:
            self._link.ends(f"the process of the {self.name} has ended: {how_it_ended(status)}")
            assert self._sockets is not None
            self._sockets.wake()

    # ---- for the engine ----

    def make_system(self, seed: int, on_failure: OnFailure) -> ProcessSystem:
        """The system of the front; the loss of the replica is a failure."""
        process = Process(
            FRONT,
            make_codec,
            __version__,
            on_met=lambda _: self._met.set(),
            on_lost=lambda name, reason: on_failure(name, ReplicaFailed(reason)),
        )
        self._system = ProcessSystem(process, seed, on_failure=on_failure)
        return self._system

    def join(self, watcher: str) -> None:
        """Let the actors of both processes find each other; `watcher` learns of each of the replica's that is lost.
        Raises ReplicaFailed."""
        self._sockets = Sockets()
        self._link = self._system.connect(self.name, self._sockets.bind(self._address))
        met = self._met.wait(MEET_S)
        if self._ended.is_set() or not met:
            self.kill()
            raise ReplicaFailed(f"{self.name} is ready and cannot be met")
        for name in self._link.cells:
            self._system.watch(watcher, name)

    def close(self) -> None:
        """Its actors have ended: the process does. May be called twice."""
        if not self._ended.wait(END_S):
            log.error("the process of a replica does not end", process=self.name, pid=self.ready.pid)
        self.kill()
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None

    def kill(self) -> None:
        """Be gone at once, whatever it is at."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def check_alike(facts: dict[str, dict[str, Any]]) -> None:
    """What processes have of the same must be equal; raises ReplicaFailed with all values."""
    (first, mine), *others = facts.items()
    for name, theirs in others:
        for fact in mine.keys() & theirs.keys():
            if mine[fact] != theirs[fact]:
                raise ReplicaFailed(f"{fact} differs: {mine[fact]} in the {first}, {theirs[fact]} in the {name}")


def how_it_ended(status: int) -> str:
    """The status of a process, in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
