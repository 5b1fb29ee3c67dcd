"""The loop of a rank's process: does what its parent says, and says so. Two threads, as there are two lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread

from pawl.gpu.parallel.actions import RankActions
from pawl.gpu.parallel.link import Frame, LineClosed, Link
from pawl.gpu.parallel.processes import Wire


def serve(actions: RankActions, steps: Link, beside: Link, make_wire: Callable[[], Wire]) -> None:
    """Until the parent ends, in whatever this is then: the process ends with it."""
    frames: SimpleQueue[Sequence[Frame]] = SimpleQueue()
    Thread(target=_listen, args=(beside, frames), daemon=True).start()
    Thread(target=_serve_beside, args=(actions, beside, frames, make_wire()), daemon=True).start()
    wire = make_wire()
    try:
        while True:
            message = steps.receive()
            steps.send(wire.encode(actions.step(wire.decode(message), message)))
    except LineClosed:
        os._exit(0)


def _listen(beside: Link, frames: SimpleQueue[Sequence[Frame]]) -> None:
    """This line is read at all times, so that the end of the parent is seen during a step that never ends."""
    try:
        while True:
            frames.put(beside.receive())
    except LineClosed:
        os._exit(0)


def _serve_beside(actions: RankActions, beside: Link, frames: SimpleQueue[Sequence[Frame]], wire: Wire) -> None:
    while True:
        message = frames.get()
        answer = actions.beside(wire.decode(message), message)
        try:
            beside.send(wire.encode(answer))
        except LineClosed:
            os._exit(0)
