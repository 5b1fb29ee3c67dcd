"""What hears of every line that actors go through while they handle something."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import _lru_cache_wrapper
from types import CodeType, FrameType
from typing import Any, get_args

from pawl.actors.messages.links import FromLinker, LinkAgain
from pawl.actors.messages.replicas import Parted, ReplicaFailed, ReplicaUp
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.cell import SimulatedCell
from pawl.testing.cluster import Cluster
from pawl.testing.lines import tracing
from pawl.testing.routing import WatchedRouter

HANDLERS = (SimulatedCell._handle, SimulatedCell._settle)
"""What happens outside of these is set up, torn down or checked."""
OF_REPLICAS = (ReplicaUp, ReplicaFailed, Parted, Down, LinkAgain, *get_args(FromLinker))
"""Replicas that come and go do so for nobody's request: what fails there is a failure of the engine."""
ASIDE = (Cluster.start_replica, WatchedRouter.settled)
"""What happens inside of these does not belong to whoever has it done."""


class Tracer:
    """Calls `at_line` for each line of a watched function that `wants` it, while an actor handles something."""

    def __init__(self, wants: Callable[[CodeType], bool], at_line: Callable[[FrameType], None]) -> None:
        self._wants = wants
        self._at_line = at_line
        self._gates = {handler.__code__: 1 for handler in HANDLERS} | {aside.__code__: -1 for aside in ASIDE}
        self._depth = 0

    def on(self) -> AbstractContextManager[None]:
        """Within this context, in this thread."""
        return tracing(self._called)

    def within(self) -> AbstractContextManager[None]:
        """The same, in a handler that has begun."""
        self._depth = 1
        return self.on()

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if code not in self._gates and isinstance(frame.f_globals.get(code.co_name), _lru_cache_wrapper):
            self._gates[code] = -1  # who asks next is told what is remembered, and comes by no line of it
        if code in self._gates:
            if isinstance(frame.f_locals.get("message"), OF_REPLICAS):
                return None
            self._depth += self._gates[code]
            return self._gate
        return self._traced if self._depth > 0 and self._wants(code) else None

    def _gate(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "return":
            self._depth -= self._gates[frame.f_code]
        return self._gate

    def _traced(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self._at_line(frame)
        return self._traced
