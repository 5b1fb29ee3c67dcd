"""The sockets of one process: how its wires come up, and the one thread that reads all of them.

    ipc://PATH          a process of this host    streams.py: a stream socket
    tcp://HOST:PORT     one of another host       zmq_wire.py: ZeroMQ, with CURVE

Sending is done by whoever pumps a link, so a message has one thread less on its way. Only when a socket takes no more
is it the thread here that waits until it does.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from errno import EADDRINUSE
from typing import Any

from pawl.actors.runtime.processes.frames import MOST_BYTES
from pawl.actors.runtime.processes.keys import Keys
from pawl.actors.runtime.processes.streams import StreamWire
from pawl.actors.runtime.processes.wires import SocketWire
from pawl.actors.runtime.processes.zmq_wire import ZmqWire

IN_SOCKETS = 256
"""Messages that the sockets of one direction may hold; the rest waits where its order can still change."""
MOST_TRIES = 100
"""For two free ports in a row."""
FAR_S = 3600.0
"""Longest wait of the thread."""


class Sockets:
    """The sockets of one process. `close` ends its thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Whoever runs in one process should not pay for it.
        import zmq

        self._zmq = zmq
        self._context = zmq.Context()
        self._clock = clock
        self._wires: list[SocketWire] = []
        self._lock = threading.Lock()
        self._reading, self._waking = os.pipe()
        os.set_blocking(self._waking, False)
        os.set_blocking(self._reading, False)
        self._closing = False
        self._closed = False
        """The pipe is: its numbers may be somebody else's by now."""
        self._changed = True
        """Wires are to be looked after, and what is polled may not be what should be."""
        self._poller: Any = select.poll()
        self._polled: dict[Any, SocketWire] = {}
        self._auth: Any = None
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._thread.start()

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
            return StreamWire(self, address.removeprefix("ipc://"), waits=bind)
        zmq = self._zmq
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
        return ZmqWire(self, zmq, address, push, pull)

    def socket(self, kind: int, address: str, keys: Keys | None, *, server: bool) -> Any:
        """A socket of this context, which is for its user to close, that lets in who has the keys and nobody else.
        Raises ValueError for tcp without keys."""
        if address.startswith("tcp:") and keys is None:
            raise ValueError(f"{address}: tcp goes with keys only; `pawl keys DIR` makes them")
        socket: Any = self._context.socket(kind)
        socket.set(self._zmq.MAXMSGSIZE, MOST_BYTES)
        socket.set(self._zmq.LINGER, 0)
        socket.set(self._zmq.IPV6, "[" in address)
        if keys is not None:
            self._secure(socket, keys, server=server)
        return socket

    def _secure(self, socket: Any, keys: Keys, *, server: bool) -> None:
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        if server:
            self._authenticate(keys)
            socket.curve_server = True
        else:
            socket.curve_serverkey = keys.public

    def _authenticate(self, keys: Keys) -> None:
        """Let in who has the secret, and nobody else."""
        from zmq.auth.thread import ThreadAuthenticator

        if self._auth is None:
            self._auth = ThreadAuthenticator(self._context)
            self._auth.start()

        class Ours:
            def callback(self, domain: str, key: bytes) -> bool:
                return key == keys.public

        self._auth.configure_curve_callback(domain="*", credentials_provider=Ours())

    def add(self, wire: SocketWire) -> None:
        """Read it from now on."""
        with self._lock:
            self._wires.append(wire)
        self.wake()

    def wake(self) -> None:
        """Have the thread look around."""
        self._changed = True
        with self._lock, suppress(BlockingIOError):  # it is awake
            if not self._closed:
                os.write(self._waking, b"\0")

    def close(self) -> None:
        """Close what is open, and end the thread. Not for that thread itself."""
        self._closing = True
        self.wake()
        self._thread.join()
        if self._auth is not None:
            self._auth.stop()
        self._context.destroy(linger=0)  # with wires that never carried anything
        with self._lock:
            self._closed = True
            os.close(self._reading)
            os.close(self._waking)

    # ---- the thread ----

    def _run(self) -> None:
        due = 0.0
        while not self._closing:
            for wire in self._poll(max(0.0, due - self._clock())):
                wire.look()
            if self._changed or self._clock() >= due:
                due = self._tick()
        for wire in self._wires:
            wire.shut()

    def _tick(self) -> float:
        """Look after all wires; when to come again."""
        self._changed = False
        with self._lock:
            wires = list(self._wires)
        due = min([wire.tick() for wire in wires if not wire.closed], default=math.inf)
        for wire in wires:
            if wire.closed:
                with self._lock:
                    self._wires.remove(wire)
                wire.shut()
        with self._lock:
            waited_for = [(wire, *each) for wire in self._wires for each in wire.polled()]
        # ZeroMQ's own takes several times as long to begin to wait, and whoever was just woken waits for that.
        of_the_system = all(isinstance(which, int) for _, which, _, _ in waited_for)
        poller = select.poll() if of_the_system else self._zmq.Poller()
        poller.register(self._reading, select.POLLIN)
        for _, which, read, written in waited_for:
            poller.register(which, select.POLLIN * read | select.POLLOUT * written)
        self._poller, self._polled = poller, {which: wire for wire, which, _, _ in waited_for}
        return due

    def _poll(self, timeout_s: float) -> list[SocketWire]:
        """Wait for something to do; the wires that have it."""
        ready = self._poller.poll(min(timeout_s, FAR_S) * 1000.0)
        wires = []
        for which, _ in ready:
            if which == self._reading:
                os.read(self._reading, 4096)
            elif (wire := self._polled[which]) not in wires:
                wires.append(wire)
        return wires


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
