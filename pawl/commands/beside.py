"""Deciding again in a process of its own: an audit of a long trace takes a core for that and one for judging."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar, TypeAlias

import msgspec

from pawl.gpu.children import environment, python
from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Gap
from pawl.lifecycle.trace.reader import TraceReader
from pawl.loops.decision_log import OneDecisionLog

WORTH_IT = 4 << 20
"""Bytes of a trace from which on a second process is quicker than none."""


class Decided(msgspec.Struct, frozen=True, tag=True):
    """What came of it."""

    during: tuple[Violation, ...]
    at_end: tuple[Violation, ...]
    """Of a trace that is whole: what shows only then."""
    unjudged: str


Told: TypeAlias = float | Decided
"""The share that is done, or what came of it."""


def decide(path: Path, told: Callable[[float], object]) -> Decided:
    """Decide the trace again, as far as its records can be judged; `told` hears which share of it is done."""
    reader, decisions, history = TraceReader(path), OneDecisionLog(), History()
    during: list[Violation] = []
    for block in reader.blocks():
        for record in block:
            if isinstance(record, Gap):
                return Decided(tuple(during), (), decisions.unjudged)
            history.number += 1
            during += decisions.observe(record, history)
        told(reader.share)
    return Decided(tuple(during), tuple(decisions.finish(history)), decisions.unjudged)


class DecidedBeside(Property):
    """`OneDecisionLog`, in another process over the same files."""

    name: ClassVar[str] = OneDecisionLog.name

    def __init__(self, path: Path, told: Callable[[float], object]) -> None:
        """`told` hears which share is done, while it is waited for."""
        self.share = 0.0
        """How far it is."""
        self._told = told
        self._found: Decided | None = None
        ours, theirs = os.pipe()
        self._results = Connection(ours, writable=False)
        command = [*python("pawl.commands.beside"), str(path), str(theirs)]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs], env=environment())
        os.close(theirs)

    def poll(self) -> None:
        """Hear what has been told so far."""
        while self._found is None and self._results.poll():
            self._hear()

    def finish(self, history: History) -> Sequence[Violation]:
        found = self._decided()
        return (*found.during, *found.at_end)

    def broken_off(self, history: History) -> Sequence[Violation]:
        return [each for each in self._decided().during if each.record <= history.number]

    def _hear(self) -> None:
        try:
            told = msgspec.msgpack.decode(self._results.recv_bytes(), type=Told)
        except EOFError:
            told = Decided((), (), "no decision was made again: the process that did was lost")
        if isinstance(told, Decided):
            self._found, self.unjudged = told, told.unjudged
            self._child.wait()
        else:
            self.share = told

    def _decided(self) -> Decided:
        while self._found is None:
            self._hear()
            self._told(self.share)
        return self._found


def main() -> None:
    """The child."""
    path, results = Path(sys.argv[1]), Connection(int(sys.argv[2]), readable=False)

    def tell(told: Told) -> None:
        results.send_bytes(msgspec.msgpack.encode(told))

    with suppress(BrokenPipeError):  # nobody wants to know any more
        tell(decide(path, tell))


if __name__ == "__main__":
    main()
