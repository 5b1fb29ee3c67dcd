"""Records of the trace that were lost: who loses some says so once in the log, and the gateway knows at any time.

TraceSink, Recorder ──LossTeller──► TraceLoss (CONTROL) ──► gateway: TraceLosses ──► /health, /metrics, refusals
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import structlog

from pawl.actors.messages.control import TraceLoss
from pawl.actors.runtime.actor import Context, Lane

log = structlog.get_logger("pawl.trace")

LOG_INTERVAL_S = 10.0
"""Between two lines that say that records are lost: a device that comes and goes must not fill the log."""

MOST_GIVEN_UP = 1 << 12
"""Names of those who lose nothing any more that are remembered, the last ones: what they said may still come."""


def to_recorder(recorder: str) -> str:
    """What the gateway is called where it loses records on their way to one of several recorders."""
    return f"the gateway's records for {recorder}"


class Host(Protocol):
    """The actor on whose behalf something is sent; its context is looked up when that happens."""

    context: Context


class LossTeller:
    """One actor's way to say what it loses: a message at each change, a line in the log when losing begins and ends."""

    def __init__(self, host: Host, gateway: str, source: str = "") -> None:
        """`source`: who is said to lose them; empty: the actor."""
        self._source = source
        self._host = host
        self._gateway = gateway
        self._told = ("", 0)
        self._logged = ""
        """The trouble that the newest line told; empty when that line said that it is over."""
        self._logged_at = float("-inf")

    def tell(self, trouble: str, num_lost: int, *, last: bool = False) -> None:
        """Records are lost because of `trouble`, or, where it is empty, they are not; `num_lost` were since the start.
        Nothing happens unless that is news. `last`: the actor stops, so the gateway has stopped."""
        if (trouble, num_lost) == self._told:
            return
        self._told = trouble, num_lost
        self._log(trouble, num_lost)
        if not last:
            context = self._host.context
            source = self._source or context.name
            context.send(self._gateway, TraceLoss(source, trouble, num_lost), Lane.CONTROL)

    def _log(self, trouble: str, num_lost: int) -> None:
        context = self._host.context
        if not trouble and self._logged:
            log.info("the trace is written again", actor=context.name, lost=num_lost)
            self._logged = ""
        elif trouble != self._logged and context.now() - self._logged_at >= LOG_INTERVAL_S:
            log.error("records of the trace are lost", actor=context.name, reason=trouble, lost=num_lost)
            self._logged, self._logged_at = trouble, context.now()


class TraceLosses:
    """The gateway's book of it."""

    def __init__(self, *, traced: bool, required: bool) -> None:
        self._traced = traced
        self._required = required
        self._told: dict[str, TraceLoss] = {}
        self._given_up: dict[str, None] = {}

    def learn(self, loss: TraceLoss) -> None:
        if loss.source not in self._given_up:
            self._told[loss.source] = loss

    def give_up(self, actors: Iterable[str]) -> None:
        """The replica with these actors is lost, or leaves, and its trace with it."""
        for source in [source for name in actors for source in (name, to_recorder(name))]:
            self._told.pop(source, None)
            self._given_up[source] = None
        while len(self._given_up) > MOST_GIVEN_UP:
            del self._given_up[next(iter(self._given_up))]

    def recorder_gone(self, name: str, reason: str) -> None:
        """Nothing is recorded any more."""
        before = self._told.get(name)
        self._told[name] = TraceLoss(name, f"the recorder is gone: {reason}", before.num_lost if before else 0)

    @property
    def trouble(self) -> str:
        """Why records are lost now; empty when they are not."""
        return "; ".join(loss.trouble for loss in self._told.values() if loss.trouble)

    @property
    def num_lost(self) -> int:
        """Records that were lost since the start."""
        return sum(loss.num_lost for loss in self._told.values())

    @property
    def status(self) -> str:
        """For `/health`: off, ok, or what is lost."""
        if not self._traced:
            return "off"
        if self.trouble:
            return f"{self.trouble} ({self.num_lost} records lost)"
        return f"written again ({self.num_lost} records lost)" if self.num_lost else "ok"

    @property
    def refusal(self) -> str:
        """Why no request may be taken; empty when they may."""
        return f"requests are not taken without a trace: {self.trouble}" if self._required and self.trouble else ""
