"""Where nodes come in: one port of the head, at which a node that has the keys asks for a place."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from pawl.actors.runtime.processes.keys import Keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.build.hosts.addresses import resolved
from pawl.build.hosts.messages import Answer, Join

log = structlog.get_logger("pawl.build.hosts")

LOOK_S = 0.25
"""How often the door looks around when nobody asks."""
ASK_S = 2.0
"""How long a node waits for an answer before it asks again."""


class Door:
    """Answers who asks, in a thread of its own."""

    def __init__(
        self,
        sockets: Sockets,
        address: str,
        keys: Keys,
        answer: Callable[[Join], Answer],
        look: Callable[[], None],
    ) -> None:
        """`look` is called every now and then. Raises OSError where the address cannot be had."""
        import zmq

        self._zmq = zmq
        self._answer = answer
        self._look = look
        self._socket = sockets.socket(zmq.ROUTER, address, keys, server=True)
        try:
            self._socket.bind(resolved(address))
        except zmq.ZMQError as error:
            self._socket.close()
            raise OSError(error.errno, f"{address}: {zmq.strerror(error.errno or 0)}") from error
        self.address: str = self._socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._socket.poll(LOOK_S * 1000.0):
                self._hear(self._socket.recv_multipart())
            self._look()
        self._socket.close()

    def _hear(self, frames: list[bytes]) -> None:
        try:
            who, asked = frames
            join = msgspec.msgpack.decode(asked, type=Join)
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("what came to the door is no question", why=str(error))
            return
        try:
            answer = self._answer(join)
        except OSError as error:  # no port is free, or no file: it asks again
            log.error("a node cannot be let in", node=join.address, why=error.strerror)
            return
        with suppress(self._zmq.ZMQError):  # it has gone
            self._socket.send_multipart([who, msgspec.msgpack.encode(answer)], self._zmq.NOBLOCK)

    def close(self) -> None:
        """Answer nobody any more."""
        self._closing.set()
        self._thread.join()


def ask(sockets: Sockets, address: str, keys: Keys, join: Join) -> Answer | None:
    """What the head says to a node that asks; None where nobody with these keys answers."""
    import zmq

    asking: Any = sockets.socket(zmq.DEALER, address, keys, server=False)
    asking.set(zmq.IMMEDIATE, 1)  # nothing waits for a head that is not there
    try:
        asking.connect(address)
        until = time.monotonic() + ASK_S
        if not asking.poll(ASK_S * 1000.0, zmq.POLLOUT):
            return None
        asking.send(msgspec.msgpack.encode(join))
        if not asking.poll(max(0.0, until - time.monotonic()) * 1000.0):
            return None
        answer: Answer = msgspec.msgpack.decode(asking.recv(), type=Answer)
        return answer
    except zmq.ZMQError as error:
        raise OSError(error.errno, zmq.strerror(error.errno or 0)) from error
    finally:
        asking.close()


def instance() -> str:
    """Of one that joins."""
    return f"{socket.gethostname()}-{time.time_ns()}-{next(_instances)}"


_instances = itertools.count()
