"""The sockets of one process: how its wires come up, and who reads them.

    ipc://PATH          a process of this host    streams.py: a stream socket
    tcp://HOST:PORT     one of another host       zmq_wire.py: ZeroMQ, with CURVE

Sending is done by whoever pumps a link, so a message has one thread less on its way. Only when a socket takes no more
is it a thread that reads (readers.py) that waits until it does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from errno import EADDRINUSE
from typing import Any, NamedTuple

from pawl.actors.runtime.processes.frames import MOST_BYTES
from pawl.actors.runtime.processes.keys import Keys
from pawl.actors.runtime.processes.readers import Polling, Readers, polling_streams
from pawl.actors.runtime.processes.streams import StreamWire
from pawl.actors.runtime.processes.wires import SocketWire
from pawl.actors.runtime.processes.zmq_wire import ZmqWire

IN_SOCKETS = 256
"""Messages that the sockets of one direction may hold; the rest waits where its order can still change."""
MOST_TRIES = 100
"""For two free ports in a row."""


class Far(NamedTuple):
    """What goes between hosts."""

    zmq: Any
    context: Any
    readers: Readers


class Sockets:
    """The sockets of one process. `close` ends its threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._near = Readers(polling_streams(), clock)
        self._far: Far | None = None
        self._opening = threading.Lock()
        self._auth: Any = None

    def _of_zmq(self) -> Far:
        # Whoever has no other host should not pay for it.
        import zmq

        with self._opening:
            if self._far is None:
                readers = Readers(Polling(zmq.Poller(), zmq.POLLIN, zmq.POLLOUT, 1000.0), self._clock)
                self._far = Far(zmq, zmq.Context(), readers)
            return self._far

    def bind(self, address: str, keys: Keys | None = None) -> SocketWire:
        """Wait at `address` for one process; port 0 takes free ones, and the wire says which. Raises ValueError for tcp
        without keys, OSError where it cannot be."""
        for _ in range(MOST_TRIES - 1 if address.endswith(":0") else 0):
            try:
                return self._open(address, keys, bind=True)
            except OSError as error:
                if error.errno != EADDRINUSE:
                    raise
                # The port behind a free one is taken.
        return self._open(address, keys, bind=True)

    def join(self, address: str, keys: Keys | None = None) -> SocketWire:
        """Go to the process that waits at `address`. Raises as `bind` does."""
        return self._open(address, keys, bind=False)

    def _open(self, address: str, keys: Keys | None, *, bind: bool) -> SocketWire:
        up, down = both_ways(address)
        if address.startswith("ipc:"):
            return StreamWire(self._near, address.removeprefix("ipc://"), waits=bind)
        zmq, _, readers = self._of_zmq()
        push, pull = (
            self.socket(zmq.PUSH, address, keys, server=bind),
            self.socket(zmq.PULL, address, keys, server=bind),
        )
        push.set(zmq.SNDHWM, IN_SOCKETS)
        pull.set(zmq.RCVHWM, IN_SOCKETS)
        try:
            if bind and address.endswith(":0"):
                pull.bind(address)
                address = pull.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
                push.bind(both_ways(address)[1])
            else:
                (pull.bind if bind else pull.connect)(up if bind else down)
                (push.bind if bind else push.connect)(down if bind else up)
        except zmq.ZMQError as error:
            push.close()
            pull.close()
            raise OSError(error.errno, f"{address}: {zmq.strerror(error.errno)}") from error
        return ZmqWire(readers, zmq, address, push, pull)

    def socket(self, kind: int, address: str, keys: Keys | None, *, server: bool) -> Any:
        """A socket of this context, which is for its user to close, that lets in who has the keys and nobody else.
        Raises ValueError for tcp without keys."""
        if address.startswith("tcp:") and keys is None:
            raise ValueError(f"{address}: tcp goes with keys only; `pawl keys DIR` makes them")
        zmq, context, _ = self._of_zmq()
        socket: Any = context.socket(kind)
        socket.set(zmq.MAXMSGSIZE, MOST_BYTES)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.IPV6, "[" in address)
        if keys is not None:
            self._secure(socket, context, keys, server=server)
        return socket

    def _secure(self, socket: Any, context: Any, keys: Keys, *, server: bool) -> None:
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        if server:
            self._authenticate(context, keys)
            socket.curve_server = True
        else:
            socket.curve_serverkey = keys.public

    def _authenticate(self, context: Any, keys: Keys) -> None:
        """Let in who has the secret, and nobody else."""
        from zmq.auth.thread import ThreadAuthenticator

        if self._auth is None:
            self._auth = ThreadAuthenticator(context)
            self._auth.start()

        class Ours:
            def callback(self, domain: str, key: bytes) -> bool:
                return key == keys.public

        self._auth.configure_curve_callback(domain="*", credentials_provider=Ours())

    def close(self) -> None:
        """Close what is open, and end the threads. Not for these themselves."""
        self._near.close()
        if self._far is not None:
            self._far.readers.close()
        if self._auth is not None:
            self._auth.stop()
        if self._far is not None:
            self._far.context.destroy(linger=0)  # with wires that never carried anything


def both_ways(address: str) -> tuple[str, str]:
    """Where the process that waits receives, and where it sends: two ports of tcp. Raises ValueError for what is not
    ipc or tcp."""
    kind, _, where = address.partition("://")
    if kind == "ipc" and where:
        return address, address
    host, _, port = where.rpartition(":")
    if kind == "tcp" and host and port.isdecimal() and int(port) < 65535:
        return address, f"tcp://{host}:{int(port) + 1}"
    raise ValueError(f"ipc://PATH or tcp://HOST:PORT, not {address!r}")
