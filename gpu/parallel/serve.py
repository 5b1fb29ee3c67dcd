"""The loop of a rank's process: does what its parent says, and says so. Two threads, as there are two lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

from pawl.gpu.parallel.actions import RankActions
from pawl.gpu.parallel.link import Frame, LineClosed, Link
from pawl.gpu.parallel.processes import Wire

Heard: TypeAlias = SimpleQueue[Sequence[Frame]]
"""What has come on a line."""


def listen(beside: Link) -> Heard:
    """This line is read from the start on, so that the end of the parent is seen while a model is loaded, and during a
    step that never ends: the process ends with it."""
    heard: Heard = SimpleQueue()
    Thread(target=_listen, args=(beside, heard), daemon=True).start()
    return heard


def serve(actions: RankActions, steps: Link, beside: Link, heard: Heard, make_wire: Callable[[], Wire]) -> None:
    """Until the parent ends, in whatever this is then. `heard` is what `listen` gave for `beside`."""
    Thread(target=_serve_beside, args=(actions, beside, heard, make_wire()), daemon=True).start()
    wire = make_wire()
    try:
        while True:
            message = steps.receive()
            steps.send(wire.encode(actions.step(wire.decode(message), message)))
    except LineClosed:
        os._exit(0)


def _listen(beside: Link, heard: Heard) -> None:
    try:
        while True:
            heard.put(beside.receive())
    except LineClosed:
        os._exit(0)


def _serve_beside(actions: RankActions, beside: Link, heard: Heard, wire: Wire) -> None:
    while True:
        message = heard.get()
        answer = actions.beside(wire.decode(message), message)
        try:
            beside.send(wire.encode(answer))
        except LineClosed:
            os._exit(0)
