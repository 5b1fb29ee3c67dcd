"""The recorder writes the trace. It never makes anybody wait: what it has no room for is counted, not queued.

scheduler: Journal ──emit──► TraceSink ──Records──► Recorder ──► TraceWriter ──► files
                                │   (DATA lane, bounded)
                                └── refused: counted, and told as a `Gap` ahead of the next batch that fits

Whoever loses records, sink or recorder, says so to the gateway when that begins, and when it is over.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.trace_losses import Host, LossTeller
from pawl.lifecycle.records import Gap, Record, Started
from pawl.lifecycle.trace.writer import NoEncoding, TraceWriter

FLUSH_S = 0.064
"""How long a record may wait in memory, seconds."""
RETRY_S = 1.0
"""How long after the device refused records it is tried again though there are no new ones, seconds."""
MAX_BATCH = 256
"""Records after which a sink sends without being asked to."""


class Records(msgspec.Struct, frozen=True, tag=True, eq=False):
    """scheduler -> recorder: what has happened since the last of these, in order."""

    records: tuple[Record, ...]


class Flush(msgspec.Struct, frozen=True, tag=True):
    """recorder -> itself: records have waited long enough."""


class TraceSink:
    """The sender's end. `emit` is a list append; `flush`, called when the sender has nothing else to do (in `settled`
    and in `stopped`), sends what has come together as one message."""

    def __init__(self, host: Host, names: Names = NAMES, source: str = "") -> None:
        self._host = host
        self._recorder = names.recorder
        self._losses = LossTeller(host, names.gateway, source)
        self._batch: list[Record] = []
        self.num_lost = 0
        """Records refused that no Gap has told of yet."""
        self.num_lost_total = 0

    def emit(self, record: Record) -> None:
        """Hand over one record; arrays in it must not change any more."""
        if len(self._batch) >= MAX_BATCH:
            self.flush()
        self._batch.append(record)

    def flush(self) -> None:
        """Send what is there. When the recorder refuses, the records are lost and counted."""
        if not self._batch and not self.num_lost:
            return
        batch, empty = self._batch, list[Record]()
        told = tuple(batch)
        if self.num_lost:
            told = (Gap(self.num_lost, "the recorder's mailbox was full"), *told)
        sent = self._host.context.send(self._recorder, Records(told), Lane.DATA)
        self._batch = empty
        if sent:
            self.num_lost = 0
        else:
            self.num_lost += len(batch)
            self.num_lost_total += len(batch)
        if self.num_lost_total:
            trouble = "the recorder takes no more records" if self.num_lost else ""
            self._losses.tell(trouble, self.num_lost_total)


class Recorder(Actor):
    """Appends records to a trace, and sees that none waits longer than `FLUSH_S`. While the device refuses them that
    is `RETRY_S`. Idle otherwise, it has no timer.

    The first record is its own, and is written before anybody's message is handled: senders' records come in any order,
    and a run that is killed early still says what it was.
    """

    accepts: Any = Records | Flush

    def __init__(self, writer: TraceWriter, started: Started, names: Names = NAMES) -> None:
        self._writer = writer
        self._first = started
        self._losses = LossTeller(self, names.gateway)
        self._num_unencoded = 0
        """Records that could not be written whatever the device does."""
        self._num_taken = 0
        """Records of the newest message that are written."""
        self._taking: tuple[Record, ...] | None = None
        self._timer_set = False

    def started(self) -> None:
        self._writer.append(self._first)
        self._writer.flush()

    def receive(self, message: Any) -> None:
        match message:
            case Records(records):
                self._take(records)
            case Flush():
                self._timer_set = False
                self._writer.flush()
        if not self._timer_set and (self._writer.pending or self._writer.trouble):
            self._timer_set = True
            self.context.after(FLUSH_S if self._writer.pending else RETRY_S, Flush())
        self._losses.tell(self._writer.trouble, self._num_lost)

    def _take(self, records: tuple[Record, ...]) -> None:
        if self._taking is not records:
            self._num_taken = 0
            self._taking = records
        for count, record in enumerate(records[self._num_taken :], self._num_taken + 1):
            self._append(record)
            self._num_taken = count

    def spares(self, message: Any, error: Exception) -> bool:
        self.told_of(error)
        if isinstance(message, Records):
            self._take(message.records)
        return True

    @property
    def _num_lost(self) -> int:
        return self._writer.num_lost_total + self._num_unencoded

    def _append(self, record: Record) -> None:
        try:
            self._writer.append(record)
        except NoEncoding as error:
            # One record that cannot be written must not cost the rest of the trace; but the auditor has to know.
            self._num_unencoded += 1
            self._writer.append(Gap(1, str(error)))

    def stopped(self, reason: str) -> None:
        """Whatever has arrived is on the device when this returns."""
        self._writer.close()
        self._losses.tell(self._writer.trouble, self._num_lost, last=True)
