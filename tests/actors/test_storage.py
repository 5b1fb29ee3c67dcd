"""Messages about pages: every Save and every Fetch is answered once, and a fence holds whatever comes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pawl.actors.messages.execution import ResetWorker
from pawl.actors.messages.hand_over import Expect, HandedPages, SendPages, Taken
from pawl.actors.messages.transfer import (
    Blocks,
    Dropped,
    EmptyHost,
    Fence,
    Fenced,
    Fetch,
    Fill,
    Filled,
    Found,
    Save,
    Saved,
    SchedulerStops,
    TierReport,
)
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.storage import FOUND_AT_ONCE, Storage
from pawl.actors.tiers.checksums import checksums
from pawl.actors.tiers.files import HEADER, FileStore
from pawl.actors.tiers.store import TierStore
from pawl.actors.worker import Worker
from pawl.gpu.ghost.runner import Ghost
from pawl.memory.tiers.host import HostPool
from pawl.memory.tiers.keys import KEY_BYTES
from tests.actors.tier_disk import MemoryDisk

PAGE_BYTES = 32


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


def int32s(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def pages(*values: int) -> np.ndarray:
    return np.stack([np.full(PAGE_BYTES, value, np.uint8) for value in values])


class StorageBench:
    def __init__(self, store: TierStore | None = None) -> None:
        self.storage = Storage(store or TierStore(HostPool(4, PAGE_BYTES), None, eager=True))
        self.context = ManualContext(self.storage, "storage")

    def tell(self, message: Any) -> list[Any]:
        """What the storage sends for one message, its report left out."""
        self.context.deliver(message)
        sent = [sent.message for sent in self.context.sent]
        self.context.sent.clear()
        return sent


class WorkerBench:
    def __init__(self) -> None:
        self.ghost = Ghost(num_pages=8, page_size=2, num_slots=2, max_context=32)
        self.ghost.write_pages(int32s(*range(8)), np.arange(32).reshape(8, 4).view(np.uint8))
        """Page n holds the words 4n to 4n + 3."""
        self.worker = Worker(self.ghost)
        self.context = ManualContext(self.worker, "worker")

    def page(self, number: int) -> list[int]:
        """The four words of a page."""
        return self.ghost.memory.store.data[number].reshape(-1).tolist()

    def tell(self, *messages: Any) -> list[Any]:
        for message in messages:
            self.context.deliver(message)
        sent = [sent.message for sent in self.context.sent]
        self.context.sent.clear()
        return sent


def fill(ticket: int, page: int, value: int, after: int = 0) -> Fill:
    data = np.full((1, 4), value, np.int64).view(np.uint8)
    return Fill(ticket, int32s(page), data, after)


# ---- storage ----


def test_what_is_kept_comes_back_with_its_keys_and_pages() -> None:
    bench = StorageBench()
    assert bench.tell(Blocks(1, (key(1), key(2)), pages(1, 2))) == [Saved(1, (key(1), key(2)))]
    (answer,) = bench.tell(Fetch(7, (key(2), key(1)), int32s(5, 3), 1))
    assert isinstance(answer, Fill)
    assert (answer.ticket, answer.pages.tolist(), answer.after) == (7, [5, 3], 1)
    assert answer.data.tolist() == pages(2, 1).tolist()


def test_a_fetch_of_nothing_is_answered_and_corrects_who_believed_in_it() -> None:
    answer, dropped = StorageBench().tell(Fetch(7, (key(9),), int32s(5), 0))
    assert dropped == Dropped((key(9),))
    assert len(answer.data) == 0


def test_pages_that_give_way_are_told() -> None:
    bench = StorageBench()
    bench.tell(Blocks(1, tuple(key(number) for number in range(4)), pages(0, 1, 2, 3)))
    assert bench.tell(Blocks(2, (key(4),), pages(4))) == [Saved(2, (key(4),)), Dropped((key(0),))]
    assert bench.tell(EmptyHost(1)) == [Dropped((key(1), key(2), key(3), key(4)))]


def test_a_saved_page_that_cannot_be_read_for_a_receiver_is_told_as_gone_after_it_is_told_as_saved() -> None:
    disk = MemoryDisk()
    files = FileStore(Path("pages"), "bf16", PAGE_BYTES, 4 * (HEADER.size + PAGE_BYTES), disk)
    bench = StorageBench(TierStore(HostPool(0, PAGE_BYTES), files, eager=True))
    bench.tell(SendPages(1, 7, "receiver", (key(1),)))
    disk.fault = lambda operation: "error" if operation == "read" else None
    told = bench.tell(Blocks(1, (key(1), key(2)), pages(1, 2)))
    assert told == [Saved(1, (key(1), key(2))), Dropped((key(1),))]
    assert key(1) not in bench.storage.store


def test_of_more_pages_than_there_is_room_for_the_first_stay_and_those_before_them_are_told_as_gone_last() -> None:
    bench, keys, data = StorageBench(), tuple(map(key, range(5))), pages(0, 1, 2, 3, 4)
    bench.tell(Blocks(1, (key(9),), pages(9)))
    bench.tell(Expect(7, keys))
    told = bench.tell(HandedPages(7, "sender", 1, keys, checksums(keys, data), (data,)))
    assert told == [Found(0, keys[:4]), Taken("storage", 1), Dropped((key(9),))]
    assert [each in bench.storage.store for each in (*keys, key(9))] == [True] * 4 + [False] * 2


def test_pages_that_left_before_a_defect_are_told() -> None:
    class Defective(TierStore):
        def keep(self, keys: Any, data: Any) -> Any:
            super().keep(keys, data)
            raise RuntimeError("a defect")

    bench = StorageBench(Defective(HostPool(1, PAGE_BYTES), None, eager=True))
    told = bench.tell(Blocks(1, (key(1), key(2)), pages(1, 2)))
    assert told == [Saved(1), Dropped((key(1),))]


def test_a_defect_of_the_store_costs_a_miss_and_not_the_answer() -> None:
    class Defective(TierStore):
        def keep(self, keys: Any, data: Any) -> Any:
            raise RuntimeError("a defect")

        def read(self, keys: Any) -> Any:
            raise RuntimeError("a defect")

    bench = StorageBench(Defective(HostPool(4, PAGE_BYTES), None, eager=True))
    assert bench.tell(Blocks(1, (key(1),), pages(1))) == [Saved(1)]
    (answer,) = bench.tell(Fetch(2, (key(1),), int32s(0), 0))
    assert len(answer.data) == 0


def test_reports_come_after_changes_only() -> None:
    bench = StorageBench()
    bench.storage.settled()
    bench.context.take("scheduler")
    bench.storage.settled()
    assert bench.context.take("scheduler") == []
    bench.tell(Blocks(1, (key(1),), pages(1)))
    bench.storage.settled()
    (report,) = bench.context.take("scheduler")
    assert isinstance(report, TierReport)
    assert report.counts["host_pages"] == 1


def test_after_the_schedulers_stop_pages_are_kept_and_nobody_is_told() -> None:
    bench = StorageBench()
    assert bench.tell(SchedulerStops()) == []
    assert bench.tell(Blocks(1, (key(1),), pages(1))) == []
    bench.storage.settled()
    assert bench.context.take("scheduler") == []
    assert key(1) in bench.storage.store


def test_what_was_there_before_the_start_is_told_in_parts() -> None:
    class Full(TierStore):
        def scan(self) -> list[bytes]:
            return [key(number) for number in range(FOUND_AT_ONCE + 1)]

    bench = StorageBench(Full(HostPool(1, PAGE_BYTES), None, eager=True))
    found = bench.context.take("scheduler")
    assert all(isinstance(message, Found) and message.era == 0 for message in found)
    assert [len(message.keys) for message in found] == [FOUND_AT_ONCE, 1]


# ---- the worker ----


def test_a_save_sends_the_pages_as_they_are() -> None:
    bench = WorkerBench()
    (answer,) = bench.tell(Save(1, int32s(2, 6), (key(2), key(6))))
    assert isinstance(answer, Blocks)
    assert answer.keys == (key(2), key(6))
    assert answer.data.view(np.int64).tolist() == [[8, 9, 10, 11], [24, 25, 26, 27]]


def test_a_fill_is_written_once_and_told() -> None:
    bench = WorkerBench()
    assert bench.tell(fill(1, 3, 99)) == [Filled(1, 1)]
    assert bench.page(3) == [99] * 4
    bench.ghost.write_pages(int32s(3), np.full((1, 4), 5).view(np.uint8))
    assert bench.tell(fill(1, 3, 99)) == [Filled(1, 0)]
    assert bench.page(3) == [5] * 4


def test_after_its_fence_a_fetch_writes_nothing() -> None:
    bench = WorkerBench()
    before = bench.ghost.memory.store.data.copy()
    assert bench.tell(Fence(1), fill(1, 3, 99)) == [Fenced(1), Filled(1, 0)]
    assert (bench.ghost.memory.store.data == before).all()
    assert bench.tell(fill(1, 3, 99)) == [Filled(1, 0)]
    assert (bench.ghost.memory.store.data == before).all()


def test_a_fence_stops_its_own_fetch_only_and_is_forgotten_with_it() -> None:
    bench = WorkerBench()
    bench.tell(Fence(1))
    assert bench.tell(fill(2, 3, 99)) == [Filled(2, 1)]
    assert bench.worker._mover._fenced == set()
    bench.tell(Fence(2))
    assert bench.worker._mover._fenced == set()


def test_a_fill_waits_for_the_save_that_reads_its_pages() -> None:
    bench = WorkerBench()
    assert bench.tell(fill(1, 3, 99, after=2), fill(2, 4, 99)) == []
    assert [type(message) for message in bench.tell(Save(1, int32s(3), (key(3),)))] == [Blocks]
    saved, *filled = bench.tell(Save(2, int32s(3), (key(3),)))
    assert saved.data.view(np.int64).tolist() == [[12, 13, 14, 15]]
    assert filled == [Filled(1, 1), Filled(2, 1)]


def test_saves_from_before_a_reset_read_nothing_and_those_after_it_do() -> None:
    bench = WorkerBench()
    bench.tell(ResetWorker(1, 3))
    assert bench.tell(Save(2, int32s(1), (key(1),))) == [Saved(2)]
    assert [type(message) for message in bench.tell(Save(3, int32s(1), (key(1),)))] == [Blocks]


def test_a_fill_from_after_a_loss_waits_for_the_reset() -> None:
    bench = WorkerBench()
    assert bench.tell(fill(1, 3, 99, after=5)) == []
    assert bench.tell(ResetWorker(1, 6)) == [Filled(1, 1)]
    assert bench.page(3) == [99] * 4


@pytest.mark.parametrize("operation", ["read_pages", "write_pages"])
def test_a_device_that_cannot_move_pages_costs_a_miss_and_no_step(operation: str) -> None:
    bench = WorkerBench()

    def fails(*_: Any) -> None:
        raise RuntimeError("the device was told to fail")

    setattr(bench.ghost, operation, fails)
    answers = bench.tell(Save(1, int32s(1), (key(1),)), fill(1, 3, 99))
    assert (answers[0] == Saved(1)) == (operation == "read_pages")
    assert (answers[1] == Filled(1, 0)) == (operation == "write_pages")


def test_a_storage_that_is_full_costs_the_save_only() -> None:
    bench = WorkerBench()
    bench.context.full.add("storage")
    assert bench.tell(Save(1, int32s(1), (key(1),))) == [Saved(1)]
