"""The recorder and the sender's end of it, driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pawl.actors.recorder import FLUSH_S, MAX_BATCH, Recorder, Records, TraceSink
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.timers import ActorTimer
from pawl.actors.simulation.manual import ManualContext
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.records import Digest, Gap, Record, StepCommitted
from pawl.lifecycle.trace.reader import TraceReader
from pawl.lifecycle.trace.writer import TraceWriter
from tests.lifecycle.story import PAGES, PLENTY, sound_run

STORY = sound_run()


class Sender(Actor):
    """Somebody who has a sink."""

    def __init__(self) -> None:
        self.sink = TraceSink(self, "recorder")

    def receive(self, message: Any) -> None:
        raise AssertionError("nobody writes to it")


def sender() -> tuple[Sender, ManualContext]:
    actor = Sender()
    return actor, ManualContext(actor, "scheduler")


class Clock(ManualContext):
    """Also counts the timers that were asked for."""

    num_timers = 0

    def after(self, delay_s: float, message: Any) -> ActorTimer:
        self.num_timers += 1
        return super().after(delay_s, message)


def recorder(directory: Path) -> tuple[Recorder, Clock]:
    actor = Recorder(TraceWriter(directory, PLENTY))
    return actor, Clock(actor, "recorder")


def written(directory: Path) -> list[Record]:
    reader = TraceReader(directory)
    records = list(reader)
    assert reader.damage == []
    return records


def test_a_run_that_goes_through_sink_and_recorder_passes_its_audit(tmp_path: Path) -> None:
    source, sending = sender()
    target, _ = recorder(tmp_path)
    for record in STORY.records:
        source.sink.emit(record)
    source.sink.flush()
    for sent in sending.take_sent():
        target.receive(sent.message)
    target.stopped("")
    assert audit(tmp_path).verdict == Verdict.PASS


def test_records_wait_for_the_flush_and_go_as_one_message() -> None:
    source, context = sender()
    for step in range(3):
        source.sink.emit(Digest(step, step))
    assert context.take_sent() == []
    source.sink.flush()
    (sent,) = context.take_sent()
    assert (sent.to, sent.lane) == ("recorder", Lane.DATA)
    assert sent.message.records == (Digest(0, 0), Digest(1, 1), Digest(2, 2))
    source.sink.flush()
    assert context.take_sent() == []


def test_a_full_batch_goes_without_being_asked() -> None:
    source, context = sender()
    for step in range(MAX_BATCH):
        source.sink.emit(Digest(step, step))
    (sent,) = context.take_sent()
    assert len(sent.message.records) == MAX_BATCH


def test_a_full_mailbox_costs_records_and_a_gap_counts_them_when_there_is_room() -> None:
    source, context = sender()
    context.full.add("recorder")
    for step in range(5):
        source.sink.emit(Digest(step, step))
        if step in (2, 4):
            source.sink.flush()
    assert context.take_sent() == []
    assert source.sink.num_lost == 5
    context.full.clear()
    source.sink.emit(Digest(5, 5))
    source.sink.flush()
    (sent,) = context.take_sent()
    assert sent.message.records == (Gap(5, "the recorder's mailbox was full"), Digest(5, 5))
    assert (source.sink.num_lost, source.sink.num_lost_total) == (0, 5)


def test_a_loss_is_told_even_when_nothing_follows_it() -> None:
    source, context = sender()
    context.full.add("recorder")
    source.sink.emit(Digest(1, 1))
    source.sink.flush()
    context.full.clear()
    source.sink.flush()
    assert [sent.message.records for sent in context.take_sent()] == [(Gap(1, "the recorder's mailbox was full"),)]


def test_a_record_reaches_the_file_within_the_flush_time_and_idle_sets_no_timer(tmp_path: Path) -> None:
    target, context = recorder(tmp_path)
    target.receive(Records((Digest(1, 1),)))
    context.advance(FLUSH_S / 2)
    target.receive(Records((Digest(2, 2),)))
    assert written(tmp_path) == []
    context.advance(FLUSH_S / 2)
    assert written(tmp_path) == [Digest(1, 1), Digest(2, 2)]
    context.advance(100.0)
    assert context.num_timers == 1


def test_stopping_writes_what_is_pending(tmp_path: Path) -> None:
    target, _ = recorder(tmp_path)
    target.receive(Records((Digest(1, 1),)))
    target.stopped("")
    assert written(tmp_path) == [Digest(1, 1)]


def test_a_record_without_an_encoding_becomes_a_gap_and_the_rest_is_kept(tmp_path: Path) -> None:
    target, _ = recorder(tmp_path)
    wide = StepCommitted(1, 0.0, np.zeros(1, np.uint8), np.zeros(1, np.int64), PAGES)
    target.receive(Records((Digest(1, 1), wide, Digest(2, 2))))
    target.stopped("")
    first, gap, last = written(tmp_path)
    assert (first, last) == (Digest(1, 1), Digest(2, 2))
    assert isinstance(gap, Gap)
    assert gap.count == 1
    assert "int64" in gap.reason
