"""Scheduler, worker and storage together: what a user of the server sees of the tiers below the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pawl.actors.control import Ask
from pawl.actors.messages.transfer import Dropped, Fetch, Fill, Filled
from pawl.actors.runtime.actor import Lane
from pawl.actors.tiers.files import HEADER, FileStore
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.step_runner import RunnerLost
from pawl.lifecycle.states import State
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.cache import FlushCache
from pawl.memory.arrays import Int32s
from tests.actors.tier_disk import MemoryDisk
from tests.actors.tier_net import PAGE_BYTES, Net

PROMPT = [number % 256 for number in range(41)]


def files(disk: MemoryDisk) -> FileStore:
    return FileStore(Path("/nowhere"), "ghost", PAGE_BYTES, 100 * (HEADER.size + PAGE_BYTES), disk)


def until(net: Net, kind: type) -> Any:
    """Deliver in the order of queues until a message of this kind is the next; its queue."""
    for _ in range(1000):
        for edge, queue in net.queues.items():
            if queue and isinstance(queue[0][1], kind):
                return edge
        net.deliver(net.pending()[0])
    raise AssertionError(f"no {kind.__name__} was sent")


def fetching() -> Net:
    """A net whose request 2 waits for its fetch."""
    net = Net()
    net.ask(1, PROMPT)
    net.forget_device()
    net.submit(2, PROMPT)
    assert net.loop.table.state[net.loop.table.row_of[2]] == State.QUEUED_FETCHING
    return net


@pytest.mark.parametrize("write_policy", ["write-through", "write-back"])
def test_what_left_the_device_comes_back_from_host_memory(write_policy: str) -> None:
    net = Net(write_policy=write_policy)
    for request in (1, 2):
        assert net.ask(request, PROMPT) == expected(PROMPT, 4)
        assert net.ended[request].usage.cached_tokens == 40 * (request - 1)
        net.forget_device()
    state = net.scheduler.tier_client.state()["tiers"]
    # Ten pages of the prompt, and one that the output completed.
    assert (state["fetches_filled"], state["host_hits"], state["host_pages"]) == (1, 10, 11)


def test_another_salt_finds_nothing_below_either() -> None:
    net = Net()
    net.ask(1, PROMPT, namespace="mine")
    net.forget_device()
    net.ask(2, PROMPT, namespace="yours")
    assert net.ended[2].usage.cached_tokens == 0


def test_fetches_and_fills_go_ahead_of_what_is_queued() -> None:
    net = fetching()
    assert until(net, Fetch) == ("scheduler", "storage", Lane.CONTROL)
    assert until(net, Fill) == ("storage", "worker", Lane.CONTROL)
    assert until(net, Filled) == ("worker", "scheduler", Lane.CONTROL)


def test_a_flush_makes_the_server_cold_and_leaves_the_files_for_the_next_start() -> None:
    disk = MemoryDisk()
    net = Net(files=files(disk))
    net.ask(1, PROMPT)
    net.scheduler.receive(Ask(1, FlushCache()))
    net.rest()
    assert [reply.ok for reply in net.replies] == [True]
    assert len(net.store.host) == 0
    written = dict(disk.files)
    assert len(written) == 11
    assert net.ask(2, PROMPT) == expected(PROMPT, 4)
    assert net.ended[2].usage.cached_tokens == 0
    net.forget_device()
    net.ask(3, PROMPT)
    assert net.ended[3].usage.cached_tokens == 40
    assert disk.files == written
    after = Net(files=files(disk))
    after.rest()
    after.ask(1, PROMPT)
    assert after.ended[1].usage.cached_tokens == 40


def test_a_flush_is_refused_while_a_request_fetches() -> None:
    net = fetching()
    net.scheduler.receive(Ask(1, FlushCache()))
    assert [reply.ok for reply in net.replies] == [False]
    net.rest()
    assert net.ended[2].usage.cached_tokens == 40


def test_a_lease_does_not_end_while_the_worker_is_at_one_step_all_the_time() -> None:
    net = Net()
    net.ask(1, PROMPT)
    net.forget_device()
    net.submit(3, PROMPT)
    net.submit(2, [7, 7, 7], 30)
    assert net.tiers.fetching.num_active == 1
    net.end_lease()
    assert net.tiers.fetching.num_active == 1
    assert len(net.leases) == 1
    resolved = net.loop.memory.ledger.resolved
    while net.loop.memory.ledger.resolved == resolved:
        net.deliver(next(edge for edge in net.pending() if "storage" not in edge))
    net.end_lease()
    assert net.tiers.fetching.num_active == 0
    net.rest()
    assert net.tokens[3] == expected(PROMPT, 4)
    assert net.ended[3].usage.cached_tokens == 0


def test_a_stale_belief_costs_one_miss_and_is_corrected() -> None:
    net = Net()
    net.ask(1, PROMPT)
    net.forget_device()
    net.store.host.clear()
    net.submit(2, PROMPT)
    assert until(net, Dropped) == ("storage", "scheduler", Lane.CONTROL)
    net.rest()
    assert net.tokens[2] == expected(PROMPT, 4)
    state = net.scheduler.tier_client.state()["tiers"]
    assert (state["fetches_short"], state["fetches_begun"], state["missed_pages"]) == (1, 1, 1)


def test_the_number_of_pages_on_their_way_down_is_bounded() -> None:
    net = Net(tiers={"save_pages": 2, "max_saving_pages": 3})
    net.submit(1, PROMPT)
    while 1 not in net.ended:
        net.deliver(next(edge for edge in net.pending() if edge[1] != "storage"))
        assert net.tiers.saving.num_under_way <= 3
    net.rest()
    assert net.tiers.saving.counts.skipped > 0
    # What could not go then goes when it leaves the device.
    for _ in range(4):
        net.forget_device()
        net.ask(2 + len(net.ended), PROMPT)
    assert len(net.store.host) > 3


class LosesItsReads(Ghost):
    """Pages cannot be read for once: what computes is gone with them."""

    reads = 0

    def read_pages(self, pages: Int32s) -> NDArray[np.uint8]:
        self.reads += 1
        if self.reads == 1:
            raise RunnerLost("a rank has ended", blameless=True)
        return super().read_pages(pages)


def test_pages_that_cannot_be_read_as_what_computes_is_lost_are_no_failure_of_the_worker() -> None:
    net = Net(make_runner=LosesItsReads.for_shape)
    assert net.ask(1, PROMPT) == expected(PROMPT, 4)
    assert net.ghost.reads > 1
    assert net.loop.companion(LowerTiers).saving.num_under_way == 0
