"""Everything that can go wrong between the device and the tiers below it costs a miss, and never a token.

Messages are delivered in any order that their queues allow; those about pages are lost and doubled; leases end at any
time; the worker loses steps; the disk refuses, cuts short and mixes up. Whatever happens, every request ends with the
tokens its prompt implies, and every page is where the laws of memory say.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages.generate import Abort
from actors.messages.transfer import Fence, Fenced
from actors.tiers.files import HEADER, FileStore
from lifecycle.states import Cause
from tests.actors.tier_disk import MemoryDisk
from tests.actors.tier_net import PAGE_BYTES, Net
from tests.loops.ghost import expected

DISK_FAULTS = ("error", "cut", "other", "flip", "gone")


def workload(seed: int) -> list[tuple[list[int], int]]:
    """Prompts of which many begin alike, each with the number of tokens wanted."""
    source = random.Random(seed)
    trunk = [source.randrange(1000) for _ in range(48)]
    return [
        (trunk[: source.randrange(49)] + [source.randrange(1000) for _ in range(source.randrange(1, 14))], 3)
        for _ in range(9)
    ]


class Chaos:
    """One run: decisions come from a list of numbers, and stop with it."""

    def __init__(self, net: Net, disk: MemoryDisk, decisions: list[int]) -> None:
        self.net = net
        self.decisions = decisions
        self.submitted: dict[int, tuple[list[int], int]] = {}
        net.tamper = self._tamper
        disk.fault = self._disk_fault

    def choose(self, count: int) -> int:
        """A number below `count`; 0, the harmless choice, when no decisions are left."""
        return self.decisions.pop() % count if self.decisions else 0

    def _tamper(self, message: Any) -> list[Any]:
        # The word of the worker about a fence is never lost: within a process nothing is, and pages depend on it.
        if isinstance(message, Fence | Fenced):
            return [message]
        return {5: [], 6: [message, message]}.get(self.choose(8), [message])

    def _disk_fault(self, operation: str) -> str | None:
        number = self.choose(12)
        return DISK_FAULTS[number - 1] if 0 < number <= len(DISK_FAULTS) else None

    def act(self, work: list[tuple[list[int], int]]) -> None:
        """One thing happens."""
        net = self.net
        edges = net.pending()
        actions: list[Callable[[], None]] = [lambda edge=edge: net.deliver(edge) for edge in edges]  # type: ignore[misc]
        if work:
            actions.append(lambda: self._submit(*work.pop()))
        if net.leases:
            actions.append(lambda: net.end_lease(self.choose(len(net.leases))))
        if self.submitted:
            actions.append(self._rare)
        actions[self.choose(len(actions))]()

    def _submit(self, prompt: list[int], count: int) -> None:
        request = len(self.submitted) + 1
        self.submitted[request] = (prompt, count)
        self.net.submit(request, prompt, count)

    def _rare(self) -> None:
        match self.choose(12):
            case 1:
                request = 1 + self.choose(len(self.submitted))
                self.net.scheduler.receive(Abort((request,), Cause.CLIENT))
                self.net.scheduler.settled()
            case 2:
                self.net.ghost.fail_at = {self.net.loop.counters.steps + 1}
            case _:
                self.net.turn()

    def heal(self) -> None:
        """No more faults: everything must come to rest."""
        self.decisions.clear()
        self.net.ghost.fail_at = set()
        self.net.rest()


def judged(chaos: Chaos) -> None:
    """Everybody had an answer, nobody a wrong one, and no page is lost."""
    net = chaos.net
    assert set(net.ended) == set(chaos.submitted)
    for request, (prompt, count) in chaos.submitted.items():
        cause, output = net.ended[request].cause, net.tokens[request]
        assert cause in (Cause.LENGTH, Cause.CLIENT, Cause.WORKER_LOST)
        whole = expected(prompt, count)
        assert output == whole if cause == Cause.LENGTH else output == whole[: len(output)]
    pages = net.loop.memory.pages
    assert pages.quarantined == pages.owned == pages.deferred == 0
    assert net.loop.tiers.num_active == 0
    assert not net.scheduler.violations


@settings(max_examples=60)
@given(
    decisions=st.lists(st.integers(0, 5039), max_size=600),
    seed=st.integers(0, 5),
    policy=st.sampled_from(["write-through", "write-back", "write-through-selective"]),
    host_pages=st.sampled_from([0, 3, 64]),
    num_pages=st.sampled_from([20, 40]),
    pacing=st.sampled_from(["overlap", "lockstep"]),
)
def test_faults_below_the_device_never_change_a_token_nor_lose_a_page(
    decisions: list[int], seed: int, policy: str, host_pages: int, num_pages: int, pacing: str
) -> None:
    disk = MemoryDisk()
    files = FileStore(Path("/nowhere"), "ghost", PAGE_BYTES, 40 * (HEADER.size + PAGE_BYTES), disk)
    net = Net(host_pages=host_pages, files=files, write_policy=policy, num_pages=num_pages, pacing=pacing)
    chaos = Chaos(net, disk, list(reversed(decisions)))
    work = workload(seed)
    while chaos.decisions:
        chaos.act(work)
    while work:
        chaos._submit(*work.pop())
    chaos.heal()
    judged(chaos)
