"""The process of a replica, as the front sees it: started, asked what it has, joined, watched, ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from pawl import __version__
from pawl.actors.names import Names, names_of
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import ProcessSystem
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.ready import Progress, Ready, Refused, Setup, Told
from pawl.build.wiring import process_of
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
    """What an engine needs of a replica that is loaded, and serves, in another process (compare `Parts`)."""

    def __init__(self, config: ServerConfig, names: Names) -> None:
        """Start it; `wait_until_ready` is next."""
        self.names = names
        self.name = process_of(names.scheduler)
        self.met = threading.Event()
        """Set when the system of the front knows its actors."""
        self._config = config
        self._folder = Path(tempfile.mkdtemp(prefix="pawl-"))  # of mode 0700
        self._address = f"ipc://{self._folder}/{self.name}"
        self._link: Link | None = None
        self._ended = threading.Event()
        self._child = self._start()

    def wait_until_ready(self, report: Report = unheard) -> None:
        """`report` hears how far it is. Raises ReplicaFailed, and ConfigError for settings that cannot be; then nothing
        is left of it."""
        try:
            self.ready = self._heard_ready(report)
            check_alike({"front": {"version": __version__}, self.name: self.ready.facts()})
            self.source = Origin(self.ready.name, Path(self.ready.path))
            self.vocabulary = (
                ghost_vocabulary()
                if self._config.model == "ghost"
                else Vocabulary.load(self.source.path, self.ready.num_embeddings)
            )
        except BaseException:
            self.kill()
            raise
        self.loop_config, self.abilities = self.ready.loop_config, self.ready.abilities
        self.summary, self.traced = self.ready.summary | {"pid": self.ready.pid}, self.ready.traced
        threading.Thread(target=self._watch, name=f"watch {self.name}", daemon=True).start()

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

    def _heard_ready(self, report: Report) -> Ready:
        source, target = self._child.stdout, self._child.stdin
        assert source is not None
        assert target is not None
        settings = msgspec.to_builtins(self._config)
        setup = Setup(settings, self.names, self.name, self._address, sys.getswitchinterval())
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
        self.met.set()
        if self._link is not None:
            self._link.ends(f"the process of {self.name} has ended: {how_it_ended(status)}")

    # ---- for the engine ----

    def join(self, system: ProcessSystem, sockets: Sockets) -> None:
        """Let the actors of both processes find each other; `meet` is next."""
        self._link = system.connect(self.name, sockets.bind(self._address))

    def meet(self, system: ProcessSystem) -> None:
        """Wait until they have. Raises ReplicaFailed; then nothing is left of it."""
        link = self._link
        assert link is not None
        met = self.met.wait(MEET_S)
        if self._ended.is_set() or not met:
            system.lost(link, "it cannot be met")
            self.kill()
            raise ReplicaFailed(f"{self.name} was ready and cannot be met")

    def close(self) -> None:
        """Its actors have ended: the process does. May be called twice."""
        if self._link is not None and not self._ended.wait(END_S):
            log.error("the process of a replica does not end", process=self.name, pid=self.ready.pid)
        self.kill()

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


def started(shares: Sequence[ServerConfig], reports: Sequence[Report]) -> list[ReplicaProcess]:
    """A replica for each share, all of which load at once; each report hears of one. Raises as `wait_until_ready`
    does."""
    made: list[ReplicaProcess] = []
    try:
        for place, share in enumerate(shares):
            made.append(ReplicaProcess(share, names_of(place)))
        for replica, report in zip(made, reports, strict=True):
            replica.wait_until_ready(report)
    except BaseException:
        for replica in made:
            replica.kill()
        raise
    return made


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
