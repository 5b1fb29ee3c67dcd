"""What a loop does that fails in any of its functions, and goes on: digests, kept in `failures.txt`.

One run meets all that a loop can be asked for. It is run once for each of a sample of the functions of the loop, of
memory and of what is recorded, with an exception as that is called for the second time; for some of them at more calls.
A change of what is done then, or of what is recorded, told or left, shows. Where it is meant:

    python -m tests.loops.failures         write failures.txt
"""

from __future__ import annotations

import functools
import hashlib
import sys
import zlib
from collections.abc import Callable, Container, Iterator
from inspect import isfunction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.namespaces import under
from pawl.lifecycle.records import DECODER, ENCODER, Record
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Order
from pawl.loops.loop import Loop
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.adapters import AdapterLoaded, LoadAdapter, UnloadAdapter
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.limits import SetState
from pawl.loops.orders.memory import MoveEnded, ReleaseMemory, ResumeMemory
from pawl.loops.orders.requests import Abort, CheckDeadlines, Finish
from pawl.loops.orders.runner import RunnerGone
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.orders.sessions import BeginTurn, OpenSession
from pawl.loops.orders.weight_groups import GroupMet, JoinWeightGroup
from pawl.loops.orders.weights import UpdateWeights, WeightsStaged, WeightsSwapped
from pawl.loops.recovery import FAILED, FAILED_ORDER, contained, recover
from pawl.loops.remote_prefill import RemotePrefill
from pawl.loops.select import Role
from pawl.loops.tiers import RemoteConfig, TierConfig
from pawl.memory.prefix.namespace import namespace_of
from pawl.memory.tiers.keys import page_keys, root_key
from pawl.memory.violation import MemoryViolation
from tests.lifecycle.plain import plain
from tests.loops.driver import Driver, first_record

FILE = Path(__file__).with_name("failures.txt")
FAILURE = "OSError at worker"
EFFECTS = (
    *("opened", "ended", "save", "fetch", "fence", "empty_host", "prefill", "cancel", "end_of_pages", "answered"),
    *("stage", "exchanged", "read", "empty", "named", "join_group", "receive_weights", "keep_groups", "remind"),
)
AT_WORK = (
    "pawl.loops.",
    "pawl.memory.memory",
    "pawl.memory.trans",
    "pawl.lifecycle.journal",
    "pawl.lifecycle.requests",
)
NOTHING = "nothing"
SAMPLE = 8
"""One function of so many."""
OFTEN = {
    name: hits
    for hits, names in {
        (1, 4, 9): (
            "BatchBuilder.close",
            "Ledger.prepare",
            "Journal.planned",
            "Requests.gave_way",
            "UnifiedPlanner.plan",
        ),
        (2, 6, 12): ("Memory.admit", "Memory.promise", "RequestTable.complete", "Memory.slide", "Journal.committed"),
        (1, 2): ("Requests.complete", "Journal.adapter"),
        (2, 5): ("Queues.retract", "Loop.glance", "Requests.leave", "Journal.moved", "RemotePrefill.lost"),
    }.items()
    for name in names
}
"""Where more is half done than elsewhere -> at which calls."""
PROMPT, BELOW = list(range(100, 114)), list(range(50, 63))


class Watched(Driver):
    """A decode replica with lower tiers and slots for adapters. What it asks for is answered a turn later."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.left: list[tuple[str, Any]] = []
        """What was asked for and is not answered."""
        for name in EFFECTS:
            setattr(self, name, functools.partial(self._tell, name, getattr(self, name)))
        remote = RemoteConfig(max_pages=8)
        tiers = TierConfig(layout="ghost", max_fetch_pages=64)
        settings = {"num_pages": 16, "max_context": 48, "max_running": 3, "lookahead": 2, "prefill_chunk": 8}
        super().__init__(**settings, tiers=tiers, role=Role.DECODE, remote=remote, max_loras=2, max_loaded_loras=3)
        self.ghost.fail_at = {9}
        self.loop.check_all = lambda: None  # after every step it would take half of the time
        self.remote, self.tiers = self.loop.companion(RemotePrefill), self.loop.companion(LowerTiers)

    def violated(self, violation: MemoryViolation) -> None:
        self.told.append(("violated", str(violation)))

    def _tell(self, name: str, does: Callable[..., Any], *asked: Any) -> None:
        self.told.append((name, plain(asked)))
        self.left.append((name, asked))
        does(*asked)

    def deliver(self, order: Order, number: int = 0) -> None:
        """It comes at the next moment."""
        self.now += 1.0
        self.intake.deliver(order, self.now, number)

    def answer(self) -> None:
        """All that was asked for before."""
        asked, self.left = self.left, []
        while asked:
            name, values = asked.pop(0)
            self._answer(name, values)

    def _answer(self, name: str, values: Any) -> None:
        match name, values:
            case "fetch", (order,):
                self.tiers.fetching.filled(order.ticket, 0, self.now)
            case "fence", (ticket,):
                self.tiers.fetching.fenced(ticket, self.now)
            case "save", (number, _, keys):
                self.tiers.saved(number, keys, self.now)
            case "prefill", (order,):
                self.remote.received(order.ticket, len(order.keys), 0, self.now)
            case "read", (ticket, slot, source):
                self.deliver(AdapterLoaded(ticket, self.ghost.load_adapter(slot, source)))
            case "stage", (ticket, source, _):
                self.deliver(WeightsStaged(ticket, self.ghost.stage(ticket, source)))
            case "join_group", (number, _):
                self.deliver(GroupMet(number))

    def adapted(self) -> str:
        """What a request with the first adapter says."""
        assert self.intake.adapters is not None
        return namespace_of(adapter=self.intake.adapters.part(1))

    def served_now(self) -> str:
        """What a request says that is to be served by the weights of now."""
        return under("", self.intake.weights.served.fingerprint)

    def know(self, prompt: list[int]) -> None:
        """The tiers have its pages."""
        keys = page_keys(root_key("ghost", self.served_now()), np.array(prompt, np.int32), 4)
        self.tiers.kept(keys, self.now)

    def late(self) -> None:
        """The leases of all fetches end."""
        for name, asked in self.left:
            if name == "fetch":
                self.tiers.fetching.expired(asked[0].ticket, self.now)

    def between_steps(self) -> None:
        """What the worker does where no step is in flight."""
        weights, move = self.intake.weights, self.intake.memory.move
        if self.loop.in_flight:
            return
        if weights.update is not None and weights.swapping:
            self.ghost.swap(weights.update.ticket)
            self.deliver(WeightsSwapped(weights.update.ticket))
            self.ghost.reset()
        if move is not None:
            released = tuple(MemoryTag) if isinstance(move.event, str) and move.event == "release" else ()
            self.deliver(MoveEnded(move.ticket, released))

    def survive(self, request: int) -> None:
        """What a scheduler does after a failure, for the sake of this request or of nobody (0)."""
        loop, requests = self.loop, self.loop.requests
        if request and not requests.touched_others:
            requests.interrupted()
            contained(loop, request, FAILURE, self.now)
            self.intake.forget(request)
            if request in loop.table.row_of:
                self.intake.deliver(Abort((request,), Cause.INTERNAL, FAILED), self.now)
            return
        self.launched.clear()
        recover(loop, FAILURE, self.now, request)
        self.intake.weights.recovered(FAILED_ORDER, self.now)
        self.intake.groups.recovered(FAILED_ORDER, self.now)
        self.intake.recovered(self.now)
        self.ghost.reset()

    def kept(self) -> Any:
        """All that decides, and what is beside it."""
        loop, intake, queues, requests = self.loop, self.intake, self.loop.queues, self.loop.requests
        keepers = intake.weights, intake.groups, intake.memory, requests.sessions, self.tiers.fetching, self.remote
        waiting = list(queues.waiting), queues.retracted, list(queues.prefilling), queues.decoding, queues.behind
        of_rows = loop.table.order, loop.table.attempt, loop.table.state, loop.table.num_computed, loop.table.num_tokens
        infos = [None if info is None else msgspec.to_builtins(info) for info in loop.table.infos]
        last = requests.at_work, requests.recorded, requests.opened, intake.owed, intake.number, loop.limits.ready_at
        told = self.tiers.statistics(), self.remote.statistics(), loop.memory.digest(), loop.counters, loop.try_again
        return plain((*(keeper.snapshot() for keeper in keepers), waiting, of_rows, infos, last, told))


def events() -> Iterator[tuple[int, Callable[[Watched], Any]]]:
    """What happens to the loop, and for the sake of which request (0: of nobody)."""
    orders: list[tuple[Order, int]] = [
        (LoadAdapter(name="a", path="ghost:a"), 51),
        (OpenSession("s", 100, 5.0), 52),
        (JoinWeightGroup(master_address="localhost", master_port=1, rank_offset=1, world_size=2), 53),
    ]
    yield from ((0, lambda run, order=order, number=number: run.deliver(order, number)) for order, number in orders)
    yield 1, lambda run: run.submit(PROMPT, 9)
    yield 0, Watched.step
    yield 0, Watched.answer
    yield 2, lambda run: run.submit(PROMPT[:9], 12, priority=1)
    yield 0, lambda run: run.remote.prefiller_up(1, run.now)
    yield 3, lambda run: run.submit(PROMPT[1:], 7, deadline=run.now + 9)
    yield 0, lambda run: run.deliver(BeginTurn(4, "t", "s", (7, 8, 9, 10, 11), 6))
    yield 4, lambda run: run.submit([7, 8, 9, 10, 11], 6, rid="t")
    yield 0, lambda run: run.know(BELOW)
    yield 5, lambda run: run.submit(BELOW, 3)
    yield 6, lambda run: run.submit(PROMPT[3:], 6, namespace=run.adapted())
    yield from ((0, does) for does in (Watched.step, Watched.step, Watched.answer, Watched.step))
    yield 0, lambda run: run.deliver(Abort((2, 9), Cause.CLIENT, ""))
    yield 7, lambda run: run.submit(PROMPT[2:], 8, output=(3, 4))
    yield 0, lambda run: run.deliver(UpdateWeights(model_path="ghost:b", weight_version="b"), 54)
    yield from ((0, does) for does in (Watched.answer, Watched.step, Watched.between_steps, Watched.step))
    yield 0, lambda run: run.deliver(Finish(1, 1))
    yield 0, lambda run: run.deliver(SetState(max_running=2))
    yield from ((0, does) for does in (Watched.answer, Watched.step, Watched.step))
    yield 0, lambda run: run.deliver(Pause(retract=True))
    yield 0, lambda run: run.deliver(ReleaseMemory(), 55)
    yield from ((0, does) for does in (Watched.step, Watched.step, Watched.between_steps))
    yield 0, lambda run: run.deliver(ResumeMemory(), 56)
    yield 0, Watched.between_steps
    yield 0, lambda run: run.deliver(Continue())
    yield 0, lambda run: run.deliver(LoadAdapter(name="c", path="ghost:c"), 57)
    yield 0, lambda run: run.remote.prefiller_down(1, run.now)
    yield from ((0, does) for does in (Watched.step, Watched.answer, Watched.step, Watched.answer))
    yield 0, lambda run: run.deliver(UnloadAdapter("a"), 58)
    yield 0, lambda run: run.deliver(CheckDeadlines())
    yield 0, lambda run: run.know(BELOW[4:])
    yield 8, lambda run: run.submit(BELOW[4:], 3, namespace=run.served_now())
    yield 9, lambda run: run.submit(BELOW[4:], 4, namespace=run.served_now())
    yield 10, lambda run: run.submit(PROMPT, 5, namespace=run.served_now())
    yield from ((0, does) for does in (Watched.step, Watched.late, Watched.step, Watched.answer))
    yield 0, lambda run: run.deliver(RunnerGone())
    yield 0, lambda run: run.deliver(FlushCache(9.0), 59)
    for _ in range(18):
        yield from ((0, does) for does in (Watched.answer, Watched.between_steps, Watched.step))


def recorded() -> list[Record]:
    """The run without any exception, as a reader of its trace gets it."""
    run = Watched()
    for _, happens in events():
        happens(run)
    return DECODER.decode(ENCODER.encode([first_record(run.config), *run.records]))


class Failed(Exception):
    """Planted."""


def every_function() -> dict[str, tuple[type, str]]:
    """Those of a loop, of memory and of what is recorded that may fail, by name."""
    found: dict[str, tuple[type, str]] = {}
    for name in sorted(name for name in sys.modules if name.startswith(AT_WORK)):
        kinds = [
            each for each in vars(sys.modules[name]).values() if isinstance(each, type) and each.__module__ == name
        ]
        for kind in kinds:
            found |= {f"{kind.__name__}.{each}": (kind, each) for each, does in vars(kind).items() if _may_fail(does)}
    return found


def functions() -> dict[str, tuple[type, str, int]]:
    """A sample of those that may fail, and at which call, by name."""
    found = every_function()
    sampled = {name: (2,) for name in found if zlib.crc32(name.encode()) % SAMPLE == 0} | OFTEN
    return {f"{name}@{hit}": (*found[name], hit) for name, hits in sorted(sampled.items()) for hit in hits}


def _may_fail(does: object) -> bool:
    return isfunction(does) and not does.__name__.startswith(("__", "check", "snapshot", "restore"))


def run(kind: type | None = None, name: str = "", hit: int = 0) -> str | None:
    """A digest of what is done; with an exception at this call of a function, None where there is none."""
    left, made = hit, []

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise Failed if hit % 2 else MemoryViolation("planted")
        return does(*arguments, **named)

    with pytest.MonkeyPatch.context() as patched:
        if kind is not None:
            does = vars(kind)[name]
            patched.setattr(kind, name, failing)
        watched = Watched()
        for request, happens in events():
            try:
                happens(watched)
            except (Failed, MemoryViolation):
                watched.survive(request)
                made.append(watched.kept())
    if kind is not None and left > 0:
        return None
    Loop.check_all(watched.loop)
    records = [ENCODER.encode(record) for record in watched.records]
    endings = {request: (ending.cause, ending.message) for request, ending in watched.ending_of.items()}
    made += [records, watched.told, watched.output_of, plain(endings), watched.kept()]
    return hashlib.blake2b(msgspec.msgpack.encode(plain(made)), digest_size=4).hexdigest()


def digests(names: Container[str]) -> dict[str, str]:
    """Of what is done when each of these functions fails, and where none does."""
    Watched()  # all is imported
    failed = {name: run(*each) for name, each in functions().items() if name in names}
    return {NOTHING: run() or ""} | {name: digest for name, digest in failed.items() if digest is not None}


def kept() -> dict[str, str]:
    """What `failures.txt` holds."""
    return dict(line.split() for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    Watched()
    first = {
        digest: name for name, digest in reversed(digests(functions()).items())
    }  # of several that come to the same
    FILE.write_text("".join(f"{name} {digest}\n" for digest, name in reversed(first.items())))
