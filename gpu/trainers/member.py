"""The engine's side of its member in a trainer's group. Needs no PyTorch."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Protocol, TypeAlias

import msgspec

from pawl.gpu.children import python, start
from pawl.gpu.frames import read_frame, write_frame
from pawl.gpu.trainers.wire import Expected, Setup, Told
from pawl.lifecycle.weight_group import Place, TensorSpec, offsets_of
from pawl.lifecycle.weight_source import FromMemory

Heard: TypeAlias = Callable[[str], None]
"""Called with "" when what was asked for last is done, and with the reason when the member cannot do it, or is gone.
From any thread."""
GONE = "the process that receives weights has ended"
MISMATCH = f"{GONE}; the trainer may have sent other tensors than it said"


class Member(Protocol):
    """One engine in one group. It is asked for one thing at a time, joining first."""

    def receive(self, specs: Sequence[TensorSpec], flat: bool) -> None:
        """Take what the trainer broadcasts next: these tensors, in this order; `flat`: put together to one."""

    @property
    def received(self) -> FromMemory:
        """What was received last."""

    def leave(self) -> None:
        """Be gone, at once, also in the middle of something. May be called twice."""


MakeMember: TypeAlias = Callable[[Place, float, Heard], Member]
"""Begins to join a group; the number is how many seconds a member may take for one thing."""


class ChildMember:
    """A member that is a process of its own."""

    def __init__(self, place: Place, limit_s: float, heard: Heard) -> None:
        self._heard = heard
        self._left = False
        self._received: FromMemory | None = None
        self._memories, theirs = socket.socketpair()
        with theirs:
            self._child = start(
                [*python("pawl.gpu.trainers.child"), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        Thread(target=self._listen, name="pawl-trainer", daemon=True).start()
        self._ask(Setup(place, limit_s))

    def receive(self, specs: Sequence[TensorSpec], flat: bool) -> None:
        """See `Member.receive`."""
        offsets = offsets_of(specs)
        # A new one each time: what was received before may still be read. Nobody else can reach or name it, and it
        # goes with the last process that has it.
        memory = os.memfd_create("pawl-weights")
        try:
            os.ftruncate(memory, offsets[-1])
            self._received = FromMemory(tuple(specs), tuple(offsets), mmap.mmap(memory, offsets[-1]))
            with suppress(OSError):  # the child has ended, and the listener tells
                socket.send_fds(self._memories, [b"\0"], [memory])
        finally:
            os.close(memory)
        sizes = [spec.num_bytes for spec in specs]
        self._ask(Expected([spec.dtype for spec in specs], sizes, offsets, flat))

    @property
    def received(self) -> FromMemory:
        """See `Member.received`."""
        received, self._received = self._received, None
        assert received is not None, "nothing was received"
        return received

    def leave(self) -> None:
        """See `Member.leave`."""
        self._left = True
        self._child.kill()

    def _ask(self, question: Setup | Expected) -> None:
        assert self._child.stdin is not None
        with suppress(OSError, ValueError):  # the child has ended, and the listener tells
            write_frame(self._child.stdin, msgspec.msgpack.encode(question))

    def _listen(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        joined = False
        while (frame := read_frame(self._child.stdout)) is not None:
            self._heard(msgspec.msgpack.decode(frame, type=Told).refusal)
            joined = True
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._memories):
            with suppress(OSError):  # what could not be written any more
                pipe.close()
        if not self._left:
            self._heard(MISMATCH if joined else GONE)
