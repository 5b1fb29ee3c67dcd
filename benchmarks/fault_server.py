"""A server of which any line may raise, once: `python -m benchmarks.fault_server ANSWERS FLAGS`, as `pawl serve FLAGS`.

Steered by lines of JSON on its standard input, each of which is answered by one line on the descriptor ANSWERS:

    {"record": true}, {"record": false}     remember which lines are run from now on; the places that were seen
    {"arm": [FILE, FUNCTION, LINE, HIT, KIND]}     that line raises when it is reached for the HIT-th time
    {"disarm": true}     whether it has
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pawl.actors.runtime.cell import Cell
from pawl.testing.injection import SECRET, Place
from pawl.testing.lines import ROOM, begun, lines_that_raise

WATCHED = (
    "actors/",
    "features/",
    "gpu/ghost/",
    "gpu/grammars/",
    "http/",
    "lifecycle/",
    "loops/",
    "memory/",
    "parsers/",
)
UNWATCHED = (
    *("actors/runtime/", "actors/simulation/", "actors/watchdog.py", "actors/linker.py", "http/server.py"),
    *("http/starting.py", "memory/prefix/events.py", "gpu/grammars/child.py"),
)
"""What carries actors and connections, and what is not done for a request."""


@cache
def watched(file: str) -> str | None:
    """This file below the package, where its lines may raise."""
    path = Path(file)
    below = path.relative_to(ROOM).as_posix() if path.is_relative_to(ROOM) else ""
    return below if below.startswith(WATCHED) and not below.startswith(UNWATCHED) else None


RAISED: tuple[type[Exception], ...] = (ValueError, KeyError, MemoryError, RecursionError)


class Striker:
    """Sees every line of every thread that begins after it is set."""

    def __init__(self) -> None:
        self.struck = False
        self._seen: Counter[Place] | None = None
        self._armed: tuple[Place, type[Exception]] | None = None
        self._left = 0
        self._lock = threading.Lock()

    def called(self, frame: FrameType, event: str, _: Any) -> Any:
        """For `sys.settrace`."""
        code = frame.f_code
        if self._seen is not None:
            return begun(self._record) if watched(code.co_filename) is not None and code.co_name != "<module>" else None
        armed = self._armed
        if armed is None or code.co_qualname != armed[0].function or watched(code.co_filename) != armed[0].file:
            return None
        return begun(self._strike)

    def _record(self, frame: FrameType, event: str, _: Any) -> Any:
        seen, code = self._seen, frame.f_code
        if event == "line" and seen is not None and frame.f_lineno in _raising(code):
            seen[Place(watched(code.co_filename) or "", code.co_qualname, frame.f_lineno)] += 1
        return self._record

    def _strike(self, frame: FrameType, event: str, _: Any) -> Any:
        armed = self._armed
        if event == "line" and armed is not None and frame.f_lineno == armed[0].line:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self.struck = True
                    raise armed[1](SECRET)
        return self._strike

    def record(self, on: bool) -> list[Place]:
        """Begin, or end: the places since, with how often each was reached."""
        seen, self._seen = self._seen, Counter() if on else None
        return [place._replace(hits=count) for place, count in sorted((seen or {}).items())]

    def arm(self, place: Place, hit: int, kind: str) -> None:
        """Have it raise."""
        self.struck, self._left = False, hit
        self._armed = place, next(each for each in RAISED if each.__name__ == kind)

    def disarm(self) -> bool:
        """Whether it has raised."""
        self._armed = None
        return self.struck

    def seeing(self, step: Callable[[Cell], bool]) -> Callable[[Cell], bool]:
        """The same; a thread that has seen this raise sees lines again, which the interpreter would end."""

        def stepping(cell: Cell) -> bool:
            if sys.gettrace() is None:
                sys.settrace(self.called)
            return step(cell)

        return stepping

    def steer(self, answers: int) -> None:
        """Do as standard input says."""
        for line in sys.stdin:
            answer: Any = None
            match json.loads(line):
                case {"record": on}:
                    answer = self.record(on)
                case {"arm": [file, function, number, hit, kind]}:
                    self.arm(Place(file, function, number), hit, kind)
                case {"disarm": _}:
                    answer = self.disarm()
            os.write(answers, json.dumps(answer).encode() + b"\n")


@cache
def _raising(code: CodeType) -> frozenset[int]:
    return lines_that_raise(code)


def main() -> int:
    from pawl.cli import main as serve

    striker, answers = Striker(), int(sys.argv[1])
    threading.Thread(target=striker.steer, args=(answers,), name="steering", daemon=True).start()
    threading.settrace(striker.called)
    sys.settrace(striker.called)
    Cell.step = striker.seeing(Cell.step)  # type: ignore[method-assign]
    sys.argv[1:] = ["serve", *sys.argv[2:]]
    return int(serve() or 0)


if __name__ == "__main__":
    raise SystemExit(main())
