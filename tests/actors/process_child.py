"""A process of its own for tests: an actor "echo" that says each number back to "listener", which it watches.

python -m tests.actors.process_child ADDRESS [KEYS]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from pawl.actors.runtime.actor import Actor, Down
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.processes.keys import read_keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem


class Ping(msgspec.Struct, frozen=True, tag=True):
    number: int


class Pong(msgspec.Struct, frozen=True, tag=True):
    number: int


class Echo(Actor):
    """Answers each ping."""

    accepts: Any = Ping | Down

    def receive(self, message: Any) -> None:
        if isinstance(message, Ping):
            self.context.send("listener", Pong(message.number))


def main(address: str, keys: str | None = None) -> None:
    sockets = Sockets()
    system = ProcessSystem(Process("child", Codec))
    system.spawn(Echo(), "echo")
    system.connect("parent", sockets.join(address, read_keys(Path(keys)) if keys else None))
    system.start()
    sys.stdin.read()  # until the parent is gone, or says so
    system.stop()
    sockets.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
