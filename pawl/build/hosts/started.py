"""An outpost of a replica, as the front sees it: started on its host, watched, ended."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from pawl.build.hosts.host import Host, ReplicaFailed
from pawl.build.outposts import outpost_of
from pawl.build.ready import Refused, Setup, Waits
from pawl.config import ConfigError

IN_ORDER = "exit status 0"
"""How one ends whose replica has left."""


class StartedOutpost:
    """One."""

    def __init__(self, replica: Setup, host: Host, number: int) -> None:
        """Start it on `host`, which is the one of this number for the replica that is set up so. Raises HostLost."""
        self._name = outpost_of(replica.process, number)
        self.where = f"{self._name} on {host.name}"
        setup = msgspec.structs.replace(replica, process=self._name, part=number, host=host.name, address="")
        self._running = host.start(setup)

    def wait_until_ready(self) -> str:
        """Where the replica finds it. Raises ReplicaFailed, and ConfigError for settings that cannot be there."""
        match self._running.heard():
            case Waits(address):
                return address
            case Refused(message, usage):
                told = f"{self.where}: {message}"
                raise ConfigError(told, "") if usage else ReplicaFailed(told)
        raise ReplicaFailed(f"{self.where} has ended: {self._running.wait()}")

    def check(self) -> None:
        """Raises HostLost or ReplicaFailed where it has ended."""
        if (how := self._running.wait(0.0)) is not None:
            self._running.heard()
            raise ReplicaFailed(f"{self.where} has ended: {how}")

    def watch(self, lost: Callable[[str], None]) -> None:
        """`lost` is told, by another thread, when it has ended before its replica has left."""

        def wait() -> None:
            if (how := self._running.wait()) != IN_ORDER:
                lost(f"{self.where} has ended: {how}")

        threading.Thread(target=wait, name=f"watch {self._name}", daemon=True).start()

    def kill(self) -> None:
        """End it, and the ranks there, at once. May be called twice."""
        self._running.kill()
