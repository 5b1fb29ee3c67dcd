"""Deciding again in a process of its own: an audit of a long trace takes a core for that and one for judging."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import msgspec

from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Gap
from pawl.lifecycle.trace.reader import TraceReader
from pawl.loops.decision_log import OneDecisionLog

WORTH_IT = 4 << 20
"""Bytes of a trace from which on a second process is quicker than none."""


class Decided(msgspec.Struct, frozen=True):
    """What came of it."""

    during: tuple[Violation, ...]
    at_end: tuple[Violation, ...]
    """Of a trace that is whole: what shows only then."""
    unjudged: str


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


def _tell(path: Path, results: Connection) -> None:
    """The body of the child."""
    results.send(decide(path, results.send))


class DecidedBeside(Property):
    """`OneDecisionLog`, in another process over the same files."""

    name: ClassVar[str] = OneDecisionLog.name

    def __init__(self, path: Path, told: Callable[[float], object]) -> None:
        """`told` hears which share is done, while it is waited for."""
        self.share = 0.0
        """How far it is."""
        self._told = told
        self._found: Decided | None = None
        context = multiprocessing.get_context("spawn")
        self._results, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_tell, args=(path, theirs), daemon=True)
        self._process.start()
        theirs.close()

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
            told = self._results.recv()
        except EOFError:
            told = Decided((), (), "no decision was made again: the process that did was lost")
        if isinstance(told, Decided):
            self._found, self.unjudged = told, told.unjudged
        else:
            self.share = told

    def _decided(self) -> Decided:
        while self._found is None:
            self._hear()
            self._told(self.share)
        return self._found
