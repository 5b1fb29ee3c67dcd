"""An exception at any line of an actor that is driven by hand: which lines a run goes through, and runs with one that
raises."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import FrameType, ModuleType
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from pawl.actors.runtime.actor import Actor
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.simulation.quiet import silence
from pawl.testing.lines import lines_that_raise, tracing

Run = TypeVar("Run")


class Planted(Exception):
    """Raised where a strike says so."""


class Line(NamedTuple):
    """One line of a function."""

    file: str
    function: str
    line: int


class Strike:
    """Delivers messages to actors as their cells do; the first exception of a run may be planted."""

    def __init__(self, modules: tuple[ModuleType, ...], at: Line | None = None, hit: int = 1) -> None:
        """At the `hit`-th time that a line of these modules is reached; None: never."""
        self.seen: Counter[Line] = Counter()
        self.struck = False
        self.said: list[str] = []
        """Every message that an actor has sent, and every timer that it has set."""
        self._files = {module.__file__ for module in modules}
        self._at, self._hit = at, hit
        self._function = None if at is None else at.function

    def deliver(self, actor: Actor, message: Any) -> None:
        """Have the actor handle it, and go on from the failure that was planted."""
        self._done(actor, lambda: actor.receive(message), message)

    def settle(self, actor: Actor) -> None:
        """Have the actor settle once, and go on from the failure that was planted."""
        self._done(actor, actor.settled, None)

    def do(self, handle: Callable[[], object]) -> None:
        """Have it done; raises Planted."""
        with nullcontext() if self.struck else tracing(self._called):
            handle()

    def _done(self, actor: Actor, handle: Callable[[], object], message: Any) -> None:
        context = actor.context
        assert isinstance(context, ManualContext)
        sent, timers = len(context.sent), len(context.timers)
        try:
            self.do(handle)
        except Planted as planted:
            if not actor.spares(message, planted):
                raise
        finally:
            self.said += [_line((each.to, each.lane, each.message)) for each in context.sent[sent:]]
            self.said += [_line(("later", each.message)) for each in context.timers[timers:]]

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        watched = code.co_filename in self._files and self._function in (None, code.co_qualname)
        return self._line if watched else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if event == "line" and frame.f_lineno in lines_that_raise(code):
            line = Line(code.co_filename, code.co_qualname, frame.f_lineno)
            self.seen[line] += 1
            if line == self._at and self.seen[line] == self._hit:
                self.struck = True
                raise Planted
        return self._line


def each_struck(
    modules: tuple[ModuleType, ...], run: Callable[[Strike], Run], said: str | None = None
) -> Iterator[tuple[str, Run]]:
    """What `run` gives with an exception at each line that it goes through, the first time and the last, by name.

    `said` is a digest of all the ways in which this has gone, by what actors have said: what one does behind a failure
    is to stay as it is. Lines that come or go without another way change nothing."""
    whole = Strike(modules)
    with silence():
        run(whole)
        ways = {"\n".join(whole.said)}
        for line, hits in sorted(whole.seen.items()):
            for hit in sorted({1, hits}):
                strike = Strike(modules, line, hit)
                done = run(strike)
                assert strike.struck
                ways.add("\n".join(strike.said))
                yield f"{line.function}:{line.line}, hit {hit}", done
    now = hashlib.blake2b("\n\n".join(sorted(ways)).encode(), digest_size=4).hexdigest()
    assert said in (now, None), f"{len(ways)} ways with digest {now}: if others are meant, this is the one to state"


def _plain(value: object) -> object:
    """An array as its numbers, and what goes nowhere as its type."""
    return value.tolist() if isinstance(value, np.ndarray) else type(value).__name__


_MESSAGES = msgspec.json.Encoder(enc_hook=_plain)


def _line(said: tuple[object, ...]) -> str:
    """Without names and lines of a source, which come and go."""
    kind = type(said[-1]).__name__
    return re.sub(r"\w+\.py:\d+", ".py", f"{kind} {_MESSAGES.encode(said).decode()}")
