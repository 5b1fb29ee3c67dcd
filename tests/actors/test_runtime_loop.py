"""Actors on an asyncio event loop, beside other work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import TypeVarTuple

import pytest

from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.drivers import SLICE_MESSAGES
from pawl.actors.runtime.local import LocalSystem
from tests.actors.runtime_doing import GENEROUS_S, Doing, Number, ignore

Arguments = TypeVarTuple("Arguments")


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often other threads (or actors) wake it."""

    num_wakes = 0

    def call_soon_threadsafe(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        self.num_wakes += 1
        return super().call_soon_threadsafe(callback, *args, context=context)


@pytest.fixture
def loop() -> Iterator[CountingLoop]:
    """A loop that runs only inside `turn`."""
    counting = CountingLoop()
    yield counting
    counting.close()


def turn(loop: asyncio.AbstractEventLoop, until: Callable[[], bool]) -> int:
    """Run the loop until the condition holds; gives back how often other work got its turn on the way."""

    async def other_work() -> int:
        turns = 0
        give_up = loop.time() + GENEROUS_S
        while not until():
            assert loop.time() < give_up
            turns += 1
            await asyncio.sleep(0)
        return turns

    return loop.run_until_complete(other_work())


def end_on(loop: asyncio.AbstractEventLoop, system: LocalSystem) -> None:
    """Stop a system whose actors live on a loop that only runs inside `turn`."""
    system.begin_stop(timeout_s=GENEROUS_S)
    turn(loop, lambda: system.wait(0.0))


def test_a_burst_wakes_the_event_loop_once(loop: CountingLoop) -> None:
    system = LocalSystem()
    seen: list[int] = []
    system.spawn(Doing(lambda actor, message: seen.append(message.value)), "actor", loop=loop)
    system.start()
    system.send("actor", Number(0))
    turn(loop, lambda: len(seen) == 1)
    turns = iter(range(3))
    turn(loop, lambda: next(turns) == 2)
    wakes = loop.num_wakes
    for value in range(500):
        assert system.send("actor", Number(value))
    assert loop.num_wakes == wakes + 1
    turn(loop, lambda: len(seen) == 501)
    end_on(loop, system)


def test_a_flood_leaves_the_event_loop_time_for_other_work(loop: CountingLoop) -> None:
    system = LocalSystem()
    seen: list[int] = []
    actor = Doing(lambda actor, message: seen.append(message.value))
    system.spawn(actor, "actor", loop=loop, capacity=100 * SLICE_MESSAGES)
    system.start()
    for value in range(100 * SLICE_MESSAGES):
        assert system.send("actor", Number(value))
    assert turn(loop, lambda: len(seen) == 100 * SLICE_MESSAGES) >= 99
    end_on(loop, system)
    # A slice that ends is not an empty mailbox.
    assert actor.num_settled == 1


@pytest.mark.parametrize("delays", [(0.0,), (0.02,), (0.0, 0.02), (0.02, 0.0)], ids=str)
def test_a_coroutine_beside_the_actor_may_set_its_timers(loop: CountingLoop, delays: tuple[float, ...]) -> None:
    system = LocalSystem()
    seen: list[int] = []
    actor = Doing(lambda actor, message: seen.append(message.value))
    system.spawn(actor, "actor", loop=loop)
    system.start()
    system.send("actor", Number(0))
    turn(loop, lambda: seen == [0])

    async def set_timers() -> None:
        for delay_s in delays:
            actor.context.after(delay_s, Number(int(delay_s * 100) + 1))

    loop.run_until_complete(set_timers())
    turn(loop, lambda: seen == [0, *sorted(int(delay_s * 100) + 1 for delay_s in delays)])
    end_on(loop, system)


def test_a_timer_that_an_actor_sets_as_it_starts_comes(loop: CountingLoop) -> None:
    heard: list[int] = []

    class Early(Doing):
        """Sets one before its first turn."""

        def started(self) -> None:
            self.context.after(0.0, Number(7))

    system = LocalSystem()
    system.spawn(Early(lambda actor, message: heard.append(message.value)), "early", loop=loop)
    system.start()
    turn(loop, lambda: bool(heard))
    assert heard == [7]
    end_on(loop, system)


def test_an_actor_on_a_closed_loop_is_lost_and_said_to_be() -> None:
    loop = asyncio.new_event_loop()
    failures: list[str] = []
    system = LocalSystem(on_failure=lambda name, error: failures.append(name))
    system.spawn(Doing(ignore), "actor", loop=loop)
    system.send("actor", Number(1))
    loop.close()
    system.start()
    assert failures == ["actor"]
    assert [letter.reason for letter in system.dead_letters.recent()] == [Reason.RECEIVER_FAILED]
    assert not system.send("actor", Number(2))
    assert system.stop() == ()


class Broken(KeyboardInterrupt):
    """What no handler is meant to survive."""


def test_what_breaks_off_a_turn_reaches_the_loop_and_the_actor_has_ended(loop: CountingLoop) -> None:
    def handle(actor: Doing, message: Number) -> None:
        raise Broken

    failures: list[str] = []
    system = LocalSystem(on_failure=lambda name, error: failures.append(f"{name}: {error}"))
    system.spawn(Doing(handle), "actor", loop=loop)
    system.start()
    system.send("actor", Number(1))
    with pytest.raises(Broken):
        turn(loop, lambda: bool(failures))
    assert failures == ["actor: actor: its turn was broken off"]
    loop.run_until_complete(asyncio.sleep(0))
    assert system.stop(timeout_s=GENEROUS_S) == ()
