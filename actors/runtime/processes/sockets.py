"""Wires of ZeroMQ: two sockets for each, one for either direction, and one thread that reads all of a process.

Sending is done by whoever pumps a link, so a message has one thread less on its way. Only when a socket takes no more
is it the thread here that waits until it does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EADDRINUSE
from typing import TYPE_CHECKING, Any

import structlog

from pawl.actors.runtime.codec import Frame
from pawl.actors.runtime.processes.frames import MOST_BYTES, MOST_FRAMES
from pawl.actors.runtime.processes.keys import Keys
from pawl.actors.runtime.processes.link import Link

if TYPE_CHECKING:
    import zmq

log = structlog.get_logger("pawl.actors")

IN_SOCKETS = 256
"""Messages that the sockets of one direction may hold; the rest waits where its order can still change."""
IN_A_ROW = 256
"""Messages read from one process before the others' are looked at."""
MOST_TRIES = 100
"""For two free ports in a row."""
FAR_S = 3600.0
"""Longest wait of the thread."""
COPIED_BYTES = 1 << 16
"""Frames below this are copied: that is faster than counting who still uses them."""


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
        both_ways(address)
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
                up, down = both_ways(address)
                (pull.bind if bind else pull.connect)(up if bind else down)
                (push.bind if bind else push.connect)(down if bind else up)
        except zmq.ZMQError as error:
            push.close()
            pull.close()
            raise OSError(error.errno, f"{address}: {zmq.strerror(error.errno)}") from error
        return SocketWire(self, zmq, address, push, pull)

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
            readable = self._poll(max(0.0, due - self._clock()))
            with self._lock:
                wires = list(self._wires)
            for wire in wires:
                if wire.pull in readable or wire.blocked:
                    wire.look()
            due = min([wire.tick() for wire in wires if not wire.closed], default=FAR_S)
            for wire in wires:
                if wire.closed:
                    self._drop(wire)
        for wire in self._wires:
            wire.shut()

    def _poll(self, timeout_s: float) -> set[Any]:
        """Wait for something to do; the sockets from which something can be read."""
        zmq = self._zmq
        poller = zmq.Poller()
        poller.register(self._reading, zmq.POLLIN)
        with self._lock:
            for wire in self._wires:
                poller.register(wire.pull, zmq.POLLIN)
                if wire.blocked:
                    poller.register(wire.push, zmq.POLLOUT)
        readable = {which for which, _ in poller.poll(min(timeout_s, FAR_S) * 1000.0)}
        if self._reading in readable:
            os.read(self._reading, 4096)
        return readable

    def _drop(self, wire: SocketWire) -> None:
        with self._lock:
            self._wires.remove(wire)
        wire.shut()


class SocketWire:
    """A `Wire` of two sockets. Closed by the thread that reads it."""

    def __init__(
        self, sockets: Sockets, zmq: Any, address: str, push: zmq.Socket[bytes], pull: zmq.Socket[bytes]
    ) -> None:
        self.address = address
        """Where one of the two processes waits for the other."""
        self.push = push
        self.pull = pull
        self.blocked = False
        """The socket took no more; until it does, it belongs to the thread that reads."""
        self.closed = False
        self._sending = threading.Lock()
        """A socket is not closed while it is sent to."""
        self._sockets = sockets
        self._zmq = zmq
        self._linger_s = 0.0
        self._link: Link | None = None

    def carry(self, link: Link) -> None:
        self._link = link
        self._sockets.add(self)

    def send(self, frames: Sequence[Frame]) -> bool:
        with self._sending:
            if self.blocked or self.closed:
                return False
            zmq = self._zmq
            last = len(frames) - 1
            try:
                for at, frame in enumerate(frames):
                    more = zmq.SNDMORE if at < last else 0
                    self.push.send(frame, zmq.NOBLOCK | more, copy=len(frame) < COPIED_BYTES)
                return True
            except zmq.Again:
                self.blocked = True
        self._sockets.wake()
        return False

    def wake(self) -> None:
        self._sockets.wake()

    def close(self, linger_s: float) -> None:
        self._linger_s = linger_s
        self.closed = True
        self._sockets.wake()

    # ---- the thread that reads ----

    def look(self) -> None:
        """Take what has come, and go on with what could not be sent."""
        assert self._link is not None
        for _ in range(IN_A_ROW):
            if self.closed or (frames := self._received()) is None:
                break
            try:
                self._link.receive(frames)
            except Exception as error:
                log.exception("what came from a process could not be handled", process=self._link.peer)
                self._link.ends(f"what it said could not be handled: {type(error).__name__}")
        if self.blocked and not self.closed and self.push.get(self._zmq.EVENTS) & self._zmq.POLLOUT:
            self.blocked = False
            self._link.pump()

    def _received(self) -> list[Frame] | None:
        """The frames of one message; no more of them than a message may have."""
        zmq, pull = self._zmq, self.pull
        try:
            frames: list[Frame] = [pull.recv(zmq.NOBLOCK)]
        except zmq.Again:
            return None
        while pull.get(zmq.RCVMORE):
            # Arrays are read where they lie.
            frame = pull.recv(copy=len(frames) < 2)
            if len(frames) <= MOST_FRAMES:
                frames.append(frame if isinstance(frame, bytes) else frame.buffer)
        return frames

    def tick(self) -> float:
        """When to tick again."""
        assert self._link is not None
        return self._link.tick()

    def shut(self) -> None:
        """Close both sockets."""
        with self._sending:
            self.closed = True
            self.push.close(linger=int(self._linger_s * 1000.0))
        self.pull.close(linger=0)


def both_ways(address: str) -> tuple[str, str]:
    """Where the process that waits receives, and where it sends. Raises ValueError for what is neither ipc nor tcp."""
    kind, _, where = address.partition("://")
    if kind == "ipc" and where:
        return f"{address}.up", f"{address}.down"
    host, _, port = where.rpartition(":")
    if kind == "tcp" and host and port.isdecimal() and int(port) < 65535:
        return address, f"tcp://{host}:{int(port) + 1}"
    raise ValueError(f"ipc://PATH or tcp://HOST:PORT, not {address!r}")
