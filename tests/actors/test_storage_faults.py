"""Everything that can go wrong between the device and the tiers below it costs a miss, and never a token.

Messages are delivered in any order that their queues allow; those about pages are lost and doubled; leases end at any
time; the worker loses steps; the disk refuses, cuts short and mixes up. Whatever happens, every request ends with the
tokens its prompt implies, and every page is where the properties of memory say.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.messages.transfer import Fence, Fenced
from pawl.actors.scheduler import Scheduler
from pawl.actors.tiers.files import HEADER, FileStore
from pawl.actors.tiers.page_copier import PageCopier
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import DECODER, ENCODER
from pawl.lifecycle.states import Cause, State
from pawl.loops.batch import ScheduledBatch
from pawl.loops.fetching import Fetching
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.requests import Abort
from pawl.loops.replay import replay
from pawl.loops.saving import WritePolicy
from tests.actors.tier_disk import MemoryDisk
from tests.actors.tier_net import PAGE_BYTES, Net

POLICIES = [str(policy) for policy in WritePolicy]
DISK_FAULTS = ("error", "cut", "other", "flip", "gone")


def workload(seed: int, count: int) -> list[tuple[list[int], int]]:
    """Prompts of which many begin alike, but not all: the device forgets what comes back later."""
    source = random.Random(seed)
    trunks = [[source.randrange(256) for _ in range(48)] for _ in range(3)]
    return [
        (source.choice(trunks)[: source.randrange(24, 49)] + [source.randrange(256) for _ in range(3)], 3)
        for _ in range(count)
    ]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """What goes wrong here is meant to, and would be told at length."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


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
        if work and len(net.loop.table) < 3:
            actions.append(lambda: self._submit(*work.pop()))
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
                # Who fetches is the one whose end is of interest.
                table = self.net.loop.table
                fetching = [number for number, row in table.row_of.items() if table.state[row] == State.QUEUED_FETCHING]
                candidates = fetching or list(self.submitted)
                self.net.scheduler.receive(Abort((candidates[self.choose(len(candidates))],), Cause.CLIENT))
                self.net.scheduler.settled()
            case 2:
                self.net.ghost.fail_at = {self.net.loop.counters.steps + 1}
            case 3 | 4 if self.net.leases:
                self.net.end_lease(self.choose(len(self.net.leases)))
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
    assert net.tiers.fetching.num_active == 0
    assert not net.scheduler.violations


def run(decisions: list[int], seed: int, num_requests: int, **shape: Any) -> Net:
    """One run from beginning to rest, judged."""
    disk = MemoryDisk()
    files = FileStore(Path("/nowhere"), "ghost", PAGE_BYTES, 40 * (HEADER.size + PAGE_BYTES), disk)
    net = Net(files=files, **shape)
    chaos = Chaos(net, disk, list(reversed(decisions)))
    work = workload(seed, num_requests)
    while chaos.decisions:
        chaos.act(work)
    while work:
        chaos._submit(*work.pop())
    chaos.heal()
    judged(chaos)
    return net


def long_run(seed: int) -> Net:
    """A run of many decisions, drawn with `seed`, in a shape that follows from it."""
    source = random.Random(seed)
    share = source.random() * 0.8
    decisions = [source.randrange(5040) if source.random() > share else 0 for _ in range(1500)]
    return run(
        decisions,
        seed,
        20,
        write_policy=POLICIES[seed % 3],
        host_pages=(0, 3, 64)[seed // 3 % 3],
        num_pages=(20, 40)[seed // 9 % 2],
        pacing=("overlap", "lockstep")[seed // 18 % 2],
    )


@given(
    decisions=st.lists(st.integers(0, 5039), max_size=250),
    seed=st.integers(0, 5),
    policy=st.sampled_from(POLICIES),
    host_pages=st.sampled_from([0, 3, 64]),
    num_pages=st.sampled_from([20, 40]),
    pacing=st.sampled_from(["overlap", "lockstep"]),
)
def test_faults_below_the_device_never_change_a_token_nor_lose_a_page(
    decisions: list[int], seed: int, policy: str, host_pages: int, num_pages: int, pacing: str
) -> None:
    run(decisions, seed, 7, write_policy=policy, host_pages=host_pages, num_pages=num_pages, pacing=pacing)


def test_long_runs_meet_every_fate_of_a_fetch_and_survive_all() -> None:
    fates: Counter[str] = Counter()
    for seed in range(12):
        fates.update(long_run(seed).scheduler.tier_client.state()["tiers"])
    met = {name: fates[f"fetches_{name}"] for name in ("filled", "short", "expired", "left", "lost")}
    assert min(met.values()) > 0, met
    assert fates["host_hits"] > 0
    assert fates["storage_hits"] > 0
    assert fates["storage_corrupt"] > 0


@pytest.mark.parametrize("seed", range(0, 36, 5))
def test_a_run_with_faults_is_replayed_and_audited_from_its_trace(seed: int) -> None:
    net = long_run(seed)
    net.scheduler.stopped("stopped")
    records = DECODER.decode(ENCODER.encode(net.records))
    replay(records)
    monitor = Monitor()
    assert [violation for record in records for violation in monitor.observe(record)] == []


# ---- canaries: each of these defects must be noticed ----


def deaf_to_fences(patch: pytest.MonkeyPatch) -> None:
    """The worker promises that a fetch writes no more, and forgets it."""

    def fence(self: PageCopier, message: Fence) -> None:
        self._tell(Fenced(message.ticket))

    patch.setattr(PageCopier, "fence", fence)


def saves_too_late(patch: pytest.MonkeyPatch) -> None:
    """Pages are saved after the step that reuses them."""
    patch.setattr(LowerTiers, "launching", lambda self, scheduled: None)
    launch = Scheduler.launch

    def late(self: Scheduler, scheduled: ScheduledBatch) -> None:
        launch(self, scheduled)
        self.loop.companion(LowerTiers).settle()

    patch.setattr(Scheduler, "launch", late)


def fills_too_early(patch: pytest.MonkeyPatch) -> None:
    """A fetch overwrites pages that a save has not read yet."""
    patch.setattr(PageCopier, "fill", PageCopier._fill)


def trusts_files(patch: pytest.MonkeyPatch) -> None:
    """A file of the right length is what its name says."""
    patch.setattr(FileStore, "_fault", lambda self, key, content: None if len(content) == self.file_bytes else "cut")


def believes_in_more_than_came(patch: pytest.MonkeyPatch) -> None:
    """A fetch that came short is taken for whole."""
    arrived = Fetching._arrived

    def whole(self: Fetching, fetch: Any, count: int, now: float) -> None:
        arrived(self, fetch, len(fetch.keys) if count else 0, now)

    patch.setattr(Fetching, "_arrived", whole)


def forgets_who_left(patch: pytest.MonkeyPatch) -> None:
    """A request that ends while it fetches stays with its fetch."""
    patch.setattr(LowerTiers, "left", lambda self, row: None)


@pytest.mark.parametrize(
    ("plant", "first"),
    [
        (deaf_to_fences, 61),
        (saves_too_late, 3),
        (fills_too_early, 44),
        (trusts_files, 0),
        (believes_in_more_than_came, 0),
        (forgets_who_left, 5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_defect_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The run that shows it first today comes first; should runs change, there are others.
    plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011, PT012  # whichever check of whichever run comes first
        for seed in (*range(first, 72), *range(first)):
            long_run(seed)
