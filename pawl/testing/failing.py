"""Runs in which one line of a handler raises: which one is a choice of the schedule like any other, so that it is found
by exploring, becomes an earlier one when it is made smaller, and is the same when it is run again.

Of the first, second, fourth, eighth, … message of each kind that an actor handles, and of as many times that it
settles, the schedule decides whether it fails there; then behind how many of the lines that it goes through. What must
hold after that is what `pawl.testing.injection` says.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

from pawl.actors.runtime.actor import Actor
from pawl.actors.simulation.faults import FaultKind
from pawl.testing.injection import INJECTED, SECRET, InjectedCluster
from pawl.testing.lines import lines_that_raise, watched
from pawl.testing.tracer import OF_REPLICAS, Tracer

BEFORE = (4, 16, 64, 256)
"""It fails before so many lines have been gone through. Some handlers have few lines, some hundreds."""


class FailingCluster(InjectedCluster):
    """An engine of which one line may raise."""

    def __init__(self, *arguments: Any) -> None:
        self._handled: Counter[str] = Counter()
        self._watched: dict[str, bool] = {}
        super().__init__(*arguments)
        self.system.inside = self._inside

    @property
    def has_failed(self) -> bool:  # type: ignore[override]
        return self.system.faults.left[FaultKind.FAIL] == 0

    def _inside(self, name: str, message: Any) -> AbstractContextManager[None]:
        if name not in self._watched:
            self._watched[name] = _is_watched(type(self.actors[name]))
        if isinstance(message, OF_REPLICAS) or not self._watched[name]:
            return nullcontext()
        what = f"{name} {'settles' if message is None else type(message).__name__}"
        self._handled[what] += 1
        count = self._handled[what]
        if count & (count - 1) or not self.system.pick(f"{what} fails", ("no", "yes"), faults=1):
            return nullcontext()
        most = BEFORE[self.system.pick("before line", [str(most) for most in BEFORE])]
        return self._failing(self.system.pick("at line", [str(at) for at in range(most)]))

    def _failing(self, at: int) -> AbstractContextManager[None]:
        """Within this a line raises, behind `at` others."""
        left = at

        def strike(frame: FrameType) -> None:
            nonlocal left
            code = frame.f_code
            if self.has_failed or frame.f_lineno not in lines_that_raise(code):
                return
            left -= 1
            if left < 0:
                self.system.inside = None
                place = f"{watched(code.co_filename)}:{frame.f_lineno} {code.co_qualname}"
                self.system.fault_spent(FaultKind.FAIL, f"{FaultKind.FAIL} {place}")
                raise INJECTED[at % len(INJECTED)](SECRET)

        return Tracer(lambda code: watched(code.co_filename) is not None, strike).within()


def _is_watched(actor: type[Actor]) -> bool:
    """Whether lines of this actor's own may raise. A class of the user's is of no module that others could import."""
    modules = (sys.modules.get(each.__module__) for each in actor.__mro__)
    files = (getattr(module, "__file__", None) for module in modules)
    return any(watched(file) is not None for file in files if file is not None)
