"""Wires of ZeroMQ, between hosts: two sockets for each, one for either direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pawl.actors.runtime.codec import Frame
from pawl.actors.runtime.processes.frames import MOST_FRAMES
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.wires import IN_A_ROW, ReadingThread, SocketWire

if TYPE_CHECKING:
    import zmq

COPIED_BYTES = 1 << 16
"""Frames below this are copied: that is faster than counting who still uses them."""


class ZmqWire(SocketWire):
    """Sending is done by whoever pumps a link; only when a socket takes no more it belongs to the thread that reads."""

    def __init__(
        self, thread: ReadingThread, zmq: Any, address: str, push: zmq.Socket[bytes], pull: zmq.Socket[bytes]
    ) -> None:
        super().__init__(thread, address)
        self._zmq = zmq
        self._push = push
        self._pull = pull

    def polled(self) -> list[tuple[Any, bool, bool]]:
        return [(self._pull, True, False), *([(self._push, False, True)] if self.blocked else [])]

    def _send(self, frames: Sequence[Frame]) -> bool:
        zmq = self._zmq
        last = len(frames) - 1
        try:
            for at, frame in enumerate(frames):
                more = zmq.SNDMORE if at < last else 0
                self._push.send(frame, zmq.NOBLOCK | more, copy=len(frame) < COPIED_BYTES)
        except zmq.Again:
            self._block()
            return False
        return True

    def _unblocked(self) -> bool:
        return bool(self._push.get(self._zmq.EVENTS) & self._zmq.POLLOUT)

    def _take(self, link: Link) -> None:
        for _ in range(IN_A_ROW):
            if self.closed or (frames := self._received()) is None:
                return
            self._hear(link, frames)

    def _received(self) -> list[Frame] | None:
        """The frames of one message; no more of them than a message may have."""
        zmq, pull = self._zmq, self._pull
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

    def shut(self) -> None:
        with self._sending:
            self.closed = True
            self._push.close(linger=int(self._linger_s * 1000.0))
        self._pull.close(linger=0)
