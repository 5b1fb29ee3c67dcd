"""What a scheduler sends beside its steps, word for word: about memory, weights, adapters and pages, to whom, and in
which lane."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.actors.adapter_client import AdapterClient
from pawl.actors.memory_client import MemoryClient
from pawl.actors.messages.adapters import AdaptersNamed, EmptyAdapterSlot, ReadAdapter
from pawl.actors.messages.execution import Execute
from pawl.actors.messages.hand_over import EndOfPages
from pawl.actors.messages.memory import MemoryReleased, MoveMemory
from pawl.actors.messages.transfer import EmptyHost, Fence, Fetch, Save, SchedulerStops
from pawl.actors.messages.weights import JoinGroup, KeepGroups, ReceiveParts, Stage, Swap, WeightsServed
from pawl.actors.names import names_of
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.tiers.tier_client import LeaseEnded, TierClient
from pawl.actors.weight_client import WeightClient
from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent
from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.lifecycle.weight_source import FromDisk
from pawl.loops.adapter import Named
from pawl.loops.recovery import FAILED_ORDER
from tests.actors.test_scheduler import Bench

N = names_of(3)
DATA, CONTROL = Lane.DATA, Lane.CONTROL
PAGES = np.array([1, 2], np.int32)
KEYS = (bytes(16), bytes([1]) * 16)


class Sends(Actor):
    """Has clients."""


def client(kind: Any, *arguments: Any) -> tuple[Any, ManualContext]:
    actor = Sends()
    context = ManualContext(actor, N.scheduler)
    return kind(actor, *arguments, N), context


def test_adapters_are_read_and_emptied_in_their_order_and_their_names_told_at_once() -> None:
    made, context = client(AdapterClient)
    named, resting = (Named("x", 1, "ghost:a", pinned=True),), (Named("y", 2, "ghost:b", pinned=False),)
    made.read(4, 2, "ghost:a")
    made.empty(2)
    made.named(named, resting)
    assert context.take_sent() == [
        (N.stager, ReadAdapter(4, 2, "ghost:a"), DATA),
        (N.stager, EmptyAdapterSlot(2), DATA),
        (N.gateway, AdaptersNamed(named, 3, resting), CONTROL),
    ]


def test_weights_are_staged_received_and_told() -> None:
    made, context = client(WeightClient)
    place = Place(group="g", address="localhost", port=1, rank=1, world_size=2, backend="gloo")
    specs = [TensorSpec("w", "uint64", (1,))]
    made.stage(4, FromDisk("ghost:b"), True)
    made.join_group(5, place)
    made.receive_weights(5, 6, specs, False)
    made.keep_groups([5, 7])
    made.exchanged(SimpleNamespace(version="v", source="/w", fingerprint="f"))
    assert context.take_sent() == [
        (N.stager, Stage(4, FromDisk("ghost:b"), True), DATA),
        (N.groups, JoinGroup(5, place), CONTROL),
        (N.groups, ReceiveParts(5, 6, tuple(specs), False), CONTROL),
        (N.groups, KeepGroups((5, 7)), CONTROL),
        (N.gateway, WeightsServed("v", "/w", "f", 3), CONTROL),
    ]


def test_weights_are_exchanged_once_and_again_after_a_failure_when_nothing_is_in_flight_and_no_memory_moves() -> None:
    made, context = client(WeightClient)
    failed: list[tuple[str, str, float]] = []

    def weights(ticket: int | None, *, swapping: bool = True) -> Any:
        update = None if ticket is None else SimpleNamespace(ticket=ticket)
        return SimpleNamespace(
            update=update, swapping=swapping, recovered=lambda *facts: failed.append(("weights", *facts))
        )

    def intake(held: Any, *, in_flight: bool = False, moves: bool = False) -> Any:
        groups = SimpleNamespace(recovered=lambda *facts: failed.append(("groups", *facts)))
        memory = SimpleNamespace(move=object() if moves else None)
        return SimpleNamespace(weights=held, memory=memory, groups=groups, loop=SimpleNamespace(in_flight=in_flight))

    for not_yet in (
        intake(weights(None)),
        intake(weights(4, swapping=False)),
        intake(weights(4), in_flight=True),
        intake(weights(4), moves=True),
    ):
        made.swap_if_due(not_yet)
    assert context.take_sent() == []
    due = intake(weights(4))
    for _ in range(2):
        made.swap_if_due(due)
    assert context.take_sent() == [(N.worker, Swap(4), DATA)]
    made.recovered(due, 7.0)
    assert failed == [("weights", FAILED_ORDER, 7.0), ("groups", FAILED_ORDER, 7.0)]
    made.swap_if_due(due)
    made.swap_if_due(intake(weights(5)))
    assert context.take_sent() == [(N.worker, Swap(4), DATA), (N.worker, Swap(5), DATA)]


def test_a_move_of_memory_is_ordered_once_and_what_is_released_is_told_when_it_is_another() -> None:
    made, context = client(MemoryClient)

    def intake(*released: MemoryTag, ticket: int = 0) -> Any:
        move = SimpleNamespace(ticket=ticket, event=ResidencyEvent.RELEASE, tags=(MemoryTag.WEIGHTS,))
        memory = SimpleNamespace(move=move if ticket else None)
        return SimpleNamespace(memory=memory, loop=SimpleNamespace(released=frozenset(released)))

    made.settled(intake())
    assert context.take_sent() == []
    move = MoveMemory(4, ResidencyEvent.RELEASE, (MemoryTag.WEIGHTS,))
    for _ in range(2):
        made.settled(intake(MemoryTag.WEIGHTS, ticket=4))
    told = MemoryReleased((MemoryTag.WEIGHTS,), 3)
    assert context.take_sent() == [(N.worker, move, DATA), (N.gateway, told, CONTROL)]
    made.recovered()
    made.settled(intake(MemoryTag.WEIGHTS, ticket=4))
    made.tell(intake())
    assert context.take_sent() == [
        (N.worker, move, DATA),
        (N.gateway, told, CONTROL),
        (N.gateway, MemoryReleased((), 3), CONTROL),
    ]


def test_pages_are_saved_behind_steps_and_fetched_ahead_of_them() -> None:
    made, context = client(TierClient, 2.5)
    made.save(4, PAGES, KEYS)
    made.fetch(SimpleNamespace(ticket=5, keys=KEYS, pages=PAGES, after=4, resolved=9))
    made.fence(5)
    made.empty_host(1)
    made.end_of_pages(6, 8)
    made.stopped()
    sent = context.take_sent()
    assert [(to, type(message), lane) for to, message, lane in sent] == [
        (N.worker, Save, DATA),
        (N.storage, Fetch, CONTROL),
        (N.worker, Fence, CONTROL),
        (N.storage, EmptyHost, CONTROL),
        (N.worker, EndOfPages, DATA),
        (N.storage, SchedulerStops, CONTROL),
    ]
    save, fetch, fence, empty, end, _ = (each.message for each in sent)
    assert (save.number, save.pages.tolist(), save.keys) == (4, [1, 2], KEYS)
    assert (fetch.ticket, fetch.keys, fetch.pages.tolist(), fetch.after) == (5, KEYS, [1, 2], 4)
    assert (fence, empty, end) == (Fence(5), EmptyHost(1), EndOfPages(6, 8))
    assert ([timer.message for timer in context.timers], context._timers.next_due()) == ([LeaseEnded(5, 9)], 2.5)


def test_where_the_time_of_steps_goes_is_measured_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(pacing="lockstep")
    scheduler, context = bench.scheduler, bench.context

    def takes(seconds: float, owner: Any, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
        """Have a method take so long."""
        real = getattr(owner, name)

        def slow(*arguments: Any, **more: Any) -> Any:
            context.time_s += seconds if counts(*arguments) else 0.0
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, slow)

    takes(1.0, scheduler.intake, "submit")
    takes(10.0, scheduler.intake, "turn")
    takes(4.0, context, "send", lambda to, message, *_: isinstance(message, Execute))
    takes(100.0, scheduler.loop, "executed")
    bench.tell(bench.submit(1, [1, 2, 3], 2))
    phases = scheduler.measures.facts()["phase_seconds"]
    assert phases == {"receive": 1.0, "plan": 10.0, "launch": 4.0, "commit": 0.0}
    context.time_s += 50.0
    bench.work()
    facts = scheduler.measures.facts()
    assert facts["phase_seconds"] == {"receive": 1.0, "plan": 20.0, "launch": 8.0, "commit": 100.0}
    durations = facts["duration_seconds"]
    assert (sum(durations["counts"]), durations["total"], facts["prefill_tokens"]) == (1, 54.0, 3)
    bench.work()
    facts = scheduler.measures.facts()
    assert (facts["duration_seconds"]["total"], facts["prefill_tokens"]) == (54.0 + 4.0, 3)
    assert facts["phase_seconds"]["commit"] == 200.0
