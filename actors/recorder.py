"""The recorder writes the trace. It never makes anybody wait: what it has no room for is counted, not queued.

scheduler: Journal ──emit──► TraceSink ──Records──► Recorder ──► TraceWriter ──► files
                                │   (DATA lane, bounded)
                                └── refused: counted, and told as a `Gap` ahead of the next batch that fits
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from pawl.actors.runtime.actor import Actor, Context, Lane
from pawl.lifecycle.records import Gap, Record
from pawl.lifecycle.trace.writer import TraceWriter

FLUSH_S = 0.064
"""How long a record may wait in memory, seconds."""
MAX_BATCH = 256
"""Records after which a sink sends without being asked to."""


class Records(msgspec.Struct, frozen=True, tag=True, eq=False):
    """scheduler -> recorder: what has happened since the last of these, in order."""

    records: tuple[Record, ...]


class Flush(msgspec.Struct, frozen=True, tag=True):
    """recorder -> itself: records have waited long enough."""


class Host(Protocol):
    """The actor on whose behalf a sink sends; its context is looked up when something is sent."""

    context: Context


class TraceSink:
    """The sender's end. `emit` is a list append; `flush`, called when the sender has nothing else to do (in `settled`
    and in `stopped`), sends what has come together as one message."""

    def __init__(self, host: Host, recorder: str) -> None:
        self._host = host
        self._recorder = recorder
        self._batch: list[Record] = []
        self.num_lost = 0
        """Records refused that no Gap has told of yet."""
        self.num_lost_total = 0

    def emit(self, record: Record) -> None:
        """Hand over one record; arrays in it must not change any more."""
        self._batch.append(record)
        if len(self._batch) >= MAX_BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what is there. When the recorder refuses, the records are lost and counted."""
        if not self._batch and not self.num_lost:
            return
        told = batch = tuple(self._batch)
        self._batch.clear()
        if self.num_lost:
            told = (Gap(self.num_lost, "the recorder's mailbox was full"), *batch)
        if self._host.context.send(self._recorder, Records(told), Lane.DATA):
            self.num_lost = 0
        else:
            self.num_lost += len(batch)
            self.num_lost_total += len(batch)


class Recorder(Actor):
    """Appends records to a trace, and sees that none waits longer than `FLUSH_S`. Idle, it has no timer."""

    accepts: Any = Records | Flush

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._timer_set = False

    def receive(self, message: Any) -> None:
        match message:
            case Records(records):
                for record in records:
                    self._append(record)
                if self._writer.pending and not self._timer_set:
                    self._timer_set = True
                    self.context.after(FLUSH_S, Flush())
            case Flush():
                self._timer_set = False
                self._writer.flush()

    def _append(self, record: Record) -> None:
        try:
            self._writer.append(record)
        except (TypeError, ValueError, OverflowError) as error:
            # One record that cannot be written must not cost the rest of the trace; but the auditor has to know.
            self._writer.append(Gap(1, f"a {type(record).__name__} has no encoding: {error}"))

    def stopped(self, reason: str) -> None:
        """Whatever has arrived is on the device when this returns."""
        self._writer.close()
