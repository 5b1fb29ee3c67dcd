"""What each verb of the journal writes, and when a checkpoint is due."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.journal import ENTRY_BYTES, REQUEST_BYTES, ROW_BYTES, STEP_BYTES, TOKEN_BYTES, Journal
from pawl.lifecycle.marks import Contained, Digest, Flushed, Idled
from pawl.lifecycle.records import (
    CacheChange,
    Cached,
    PageCounts,
    Record,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    TierTold,
    Transition,
)
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.step import StepBatch
from tests.lifecycle.story import plain
from tests.loops.driver import Driver


class Pool:
    free, owned, cached, deferred, quarantined = 1, 2, 3, 4, 5


class Feed:
    """A cache that has changed once."""

    def __init__(self) -> None:
        self.unrecorded: list[Any] = [CacheChange("removed", "", None, np.array([3], np.int32))]

    def changes(self) -> tuple[CacheChange, ...]:
        return tuple(self.unrecorded)


INFO = RequestInfo(request=7, rid="r7", sampling=SamplingParameters(), namespace="salt", submitted=0.5)
TOKENS = np.array([4, 5, 6], np.int32)


def test_what_a_request_has_had_elsewhere_is_written_with_it() -> None:
    records: list[Any] = []
    moved = msgspec.structs.replace(INFO, num_cached=3, num_retractions=4, num_older=2)
    Journal(records.append).submitted(2, moved, TOKENS, 9, 8.5, 1.5, TOKENS)
    (record,) = records
    assert (record.num_cached, record.num_retractions, record.num_older) == (3, 4, 2)
    assert record.output is TOKENS


def test_each_verb_writes_what_it_was_told_in_its_own_place() -> None:
    records: list[Record] = []
    journal = Journal(records.append)
    journal.submitted(2, INFO, TOKENS, 9, float("inf"), 1.5)
    journal.submitted(2, INFO, TOKENS, 9, 8.5, 1.5)
    journal.idled(2.5)
    journal.flushed(3.5)
    journal.tiers("filled", 11, 12, (b"a", b"bc"), 4.5)
    journal.contained(7, "OSError at worker", 5.5)
    journal.rolled_back(6, "lost", 6.5, digest=99)
    events = np.array([1], np.uint8)
    journal.committed(8, events, TOKENS, None, Pool(), 7.5, digest=98)
    sampling = INFO.sampling
    of_request: dict[str, Any] = {
        "request": 7,
        "row": 2,
        "rid": "r7",
        "tokens": TOKENS,
        "sampling": sampling,
        "namespace": "salt",
    }
    assert list(plain(records)) == list(
        plain(
            [
                Submitted(**of_request, priority=9, deadline=None, time=1.5),
                Submitted(**of_request, priority=9, deadline=8.5, time=1.5),
                Idled(2.5),
                Flushed(3.5),
                TierTold("filled", 11, 12, b"abc", 4.5),
                Contained(7, "OSError at worker", 5.5),
                StepRolledBack(6, "lost", 6.5),
                Digest(6, 99),
                StepCommitted(8, 7.5, events, TOKENS, PageCounts(1, 2, 3, 4, 5), 98),
            ]
        )
    )


def test_changes_of_the_cache_come_once_and_before_the_record_that_asks() -> None:
    records: list[Record] = []
    journal = Journal(records.append)
    journal.precede(Feed())
    journal.idled(1.0)
    journal.idled(2.0)
    assert [type(record) for record in records] == [Cached, Idled, Idled]


def test_changes_of_the_cache_that_could_not_be_written_come_before_the_next_record() -> None:
    records: list[Record] = []

    def emit(record: Record) -> None:
        if not fails:
            records.append(record)
        elif fails.pop():
            raise OSError("no room")

    fails, journal = [True], Journal(emit)
    journal.precede(Feed())
    with pytest.raises(OSError, match="no room"):
        journal.idled(1.0)
    journal.idled(2.0)
    assert [type(record) for record in records] == [Cached, Idled]


@pytest.mark.parametrize(
    ("limit", "requests"), [(2 * REQUEST_BYTES, 2), (2 * (REQUEST_BYTES + 3 * TOKEN_BYTES) + 1, 3)]
)
def test_a_checkpoint_is_due_after_so_many_bytes_and_then_not_for_as_many(limit: int, requests: int) -> None:
    journal = Journal(lambda record: None, checkpoint_bytes=limit)
    for count in range(1, requests + 1):
        assert not journal.checkpoint_due
        journal.submitted(2, INFO, TOKENS, 9, 8.5, float(count))
    assert journal.checkpoint_due
    journal.checkpoint(b"", "", 9.0)
    assert not journal.checkpoint_due


def test_a_step_counts_for_its_rows_and_pages_and_a_request_for_its_tokens() -> None:
    driver = Driver()
    for prompt in ([1, 2, 3], [4] * 20, [5] * 9):
        driver.submit(prompt, 6)
    driver.run()
    requests = [len(record.tokens) for record in driver.records if isinstance(record, Submitted)]
    steps = [(len(record.rows), len(record.pages)) for record in driver.records if isinstance(record, StepPlanned)]
    expected = sum(REQUEST_BYTES + TOKEN_BYTES * num_tokens for num_tokens in requests)
    expected += sum(STEP_BYTES + ROW_BYTES * num_rows + ENTRY_BYTES * num_pages for num_rows, num_pages in steps)
    assert driver.loop.journal._num_bytes == expected


def test_no_checkpoint_is_due_where_nobody_records() -> None:
    journal = Journal(None, checkpoint_bytes=1)
    journal.submitted(2, INFO, TOKENS, 9, 8.5, 1.5)
    assert not journal.checkpoint_due


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_plan_whose_record_failed_half_way_is_recorded_whole_when_it_is_recorded_again(fails_at: int) -> None:
    records: list[Record] = []
    left = fails_at

    def emit(record: Record) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise OSError("the disk is full")
        records.append(record)

    none, ones = np.zeros(0, np.int32), np.ones(2, np.bool_)
    rows = np.array([0, 1], np.intp)
    numbers = rows.astype(np.int32)
    batch = StepBatch(3, numbers, numbers, numbers + 1, none, ~ones, ones, none, none, none)
    table: Any = SimpleNamespace(info=lambda row: SimpleNamespace(request=10 + row))
    journal = Journal(emit)
    with pytest.raises(OSError, match="full"):
        journal.planned(batch, rows, (0, 1), table, 0.5)
    for _ in range(2):
        journal.planned(batch, rows, (0, 1), table, 0.5)
    assert [type(record) for record in records] == [Transition, Transition, StepPlanned]
    assert [record.request for record in records if isinstance(record, Transition)] == [10, 11]
