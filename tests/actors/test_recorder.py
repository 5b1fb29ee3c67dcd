"""The recorder and the sender's end of it, driven by hand."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from pawl.actors.messages.control import TraceLoss
from pawl.actors.recorder import FLUSH_S, MAX_BATCH, RETRY_S, Recorder, Records, TraceSink
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.timers import ActorTimer
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.trace_losses import LOG_INTERVAL_S
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.records import Digest, Gap, Record, Started, StepCommitted
from pawl.lifecycle.trace.reader import TraceReader
from pawl.lifecycle.trace.writer import TraceWriter
from tests.lifecycle.story import PAGES, PLENTY, sound_run

STORY = sound_run()
STARTED = STORY.records[0]
assert isinstance(STARTED, Started)


class Sender(Actor):
    """Somebody who has a sink."""

    def __init__(self) -> None:
        self.sink = TraceSink(self)

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
    actor = Recorder(TraceWriter(directory, PLENTY), STARTED)
    return actor, Clock(actor, "recorder")


def written(directory: Path) -> list[Record]:
    """What follows the first record."""
    reader = TraceReader(directory)
    first, *records = reader
    assert reader.damage == []
    assert first == STARTED
    return records


def test_a_run_that_goes_through_sink_and_recorder_passes_its_audit(tmp_path: Path) -> None:
    source, sending = sender()
    target, _ = recorder(tmp_path)
    for record in STORY.records[1:]:
        source.sink.emit(record)
    source.sink.flush()
    for sent in sending.take_sent():
        target.receive(sent.message)
    target.stopped("")
    assert audit(tmp_path).verdict == Verdict.PASS


def test_the_start_of_the_engine_is_written_before_any_message_is_handled(tmp_path: Path) -> None:
    recorder(tmp_path)
    assert written(tmp_path) == []


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
    for step in range(MAX_BATCH + 1):
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
    assert context.take("recorder") == []
    assert source.sink.num_lost == 5
    context.full.clear()
    source.sink.emit(Digest(5, 5))
    source.sink.flush()
    (message,) = context.take("recorder")
    assert message.records == (Gap(5, "the recorder's mailbox was full"), Digest(5, 5))
    assert (source.sink.num_lost, source.sink.num_lost_total) == (0, 5)


def test_a_loss_is_told_even_when_nothing_follows_it() -> None:
    source, context = sender()
    context.full.add("recorder")
    source.sink.emit(Digest(1, 1))
    source.sink.flush()
    context.full.clear()
    source.sink.flush()
    assert [message.records for message in context.take("recorder")] == [(Gap(1, "the recorder's mailbox was full"),)]


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


# ---- what is lost is told ----


class Device:
    """A disk that is full when it is told to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._real = os.pwrite
        monkeypatch.setattr(os, "pwrite", self._pwrite)

    def _pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._real(descriptor, data, offset)


FULL_DISK = "the trace could not be written: No space left on device"


def test_a_full_disk_is_told_when_it_begins_changes_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    target, context = recorder(tmp_path)
    target.receive(Records((Digest(1, 1),)))
    context.advance(FLUSH_S)
    assert context.take_sent() == []
    device.full = True
    for step in (2, 3):
        target.receive(Records((Digest(step, step),)))
        context.advance(RETRY_S)
    told = context.take_sent()
    assert [(sent.to, sent.lane) for sent in told] == [("gateway", Lane.CONTROL)] * 2
    assert [sent.message for sent in told] == [TraceLoss("recorder", FULL_DISK, count) for count in (1, 2)]
    device.full = False
    context.advance(RETRY_S)
    assert context.take("gateway") == [TraceLoss("recorder", "", 2)]
    assert written(tmp_path) == [Digest(1, 1), Gap(2, FULL_DISK)]
    timers = len(context.timers)
    context.advance(100.0)
    assert len(context.timers) == timers


def test_a_device_that_comes_and_goes_fills_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    target, context = recorder(tmp_path)
    with capture_logs() as lines:
        for step in range(200):
            device.full = step % 2 == 0
            target.receive(Records((Digest(step, step),)))
            context.advance(2 * RETRY_S)
    levels = [line["log_level"] for line in lines]
    assert levels == ["error", "info"] * (len(levels) // 2)
    assert 2 <= len(levels) <= 2 * (1 + 400 * RETRY_S // LOG_INTERVAL_S)
    assert lines[0]["reason"] == FULL_DISK


def test_a_disk_that_is_full_at_the_end_is_logged_and_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(monkeypatch)
    target, context = recorder(tmp_path)
    target.receive(Records((Digest(1, 1),)))
    device.full = True
    with capture_logs() as lines:
        target.stopped("stopped")
    assert [(line["log_level"], line["lost"]) for line in lines] == [("error", 1)]
    assert context.take_sent() == []


def test_a_sink_tells_what_a_full_mailbox_costs_and_when_that_is_over() -> None:
    source, context = sender()
    context.full.add("recorder")
    source.sink.emit(Digest(1, 1))
    source.sink.flush()
    assert context.take("gateway") == [TraceLoss("scheduler", "the recorder takes no more records", 1)]
    context.full.clear()
    source.sink.flush()
    assert context.take("gateway") == [TraceLoss("scheduler", "", 1)]
    source.sink.emit(Digest(2, 2))
    source.sink.flush()
    assert context.take("gateway") == []


def test_a_record_that_has_no_encoding_counts_as_lost(tmp_path: Path) -> None:
    target, context = recorder(tmp_path)
    target.receive(Records((StepCommitted(1, 0.0, np.zeros(1, np.uint8), np.zeros(1, np.int64), PAGES),)))
    assert context.take("gateway") == [TraceLoss("recorder", "", 1)]


@pytest.mark.parametrize("at", range(3))
def test_a_writer_that_fails_in_the_middle_of_a_message_costs_no_record_and_doubles_none(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, context = recorder(tmp_path)
    append, calls = TraceWriter.append, 0

    def fails_once(writer: TraceWriter, record: Record) -> None:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise RuntimeError("a defect")
        append(writer, record)

    monkeypatch.setattr(TraceWriter, "append", fails_once)
    records = tuple(Digest(step, step) for step in range(3))
    context.deliver(Records(records))
    context.deliver(Records((Digest(3, 3),)))
    target.stopped("")
    assert written(tmp_path) == [*records, Digest(3, 3)]
    assert target.num_contained == 1


def test_a_flush_that_fails_is_contained_and_the_next_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, context = recorder(tmp_path)
    context.deliver(Records((Digest(1, 1),)))
    with monkeypatch.context() as failing:
        failing.setattr(TraceWriter, "flush", lambda writer: 1 // 0)
        context.advance(FLUSH_S)  # the timer that was set
    assert (target.num_contained, written(tmp_path)) == (1, [])
    context.deliver(Records((Digest(2, 2),)))
    context.advance(FLUSH_S)
    assert written(tmp_path) == [Digest(1, 1), Digest(2, 2)]
