"""The local runtime: the conformance suite in threads and on an event loop, and what only this runtime promises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pawl.actors.runtime.actor import Actor, Overflow
from pawl.actors.runtime.dead_letters import DeadLetter, Reason
from pawl.actors.runtime.local import OUTSIDE, LocalSystem, OnFailure
from tests.actors.conformance import RuntimeConformance
from tests.actors.runtime_doing import GENEROUS_S, Doing, Number, ignore


class TestThreads(RuntimeConformance):
    """Each actor in its own thread."""

    def make_system(
        self,
        *,
        seed: int = 0,
        on_failure: OnFailure | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> LocalSystem:
        return LocalSystem(seed, on_failure=on_failure, on_dead_letter=on_dead_letter)

    def run_until(self, condition: Callable[[], bool]) -> None:
        with self.journal.changed:
            assert self.journal.changed.wait_for(condition, GENEROUS_S), self.journal.entries[-20:]


class LoopSystem(LocalSystem):
    """A local system that puts every actor on one event loop."""

    loop: asyncio.AbstractEventLoop

    def spawn(
        self,
        actor: Actor,
        name: str,
        *,
        capacity: int = 1024,
        overflow: Overflow = Overflow.REJECT,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().spawn(actor, name, capacity=capacity, overflow=overflow, loop=loop or self.loop)


class TestEventLoop(TestThreads):
    """All actors on one event loop."""

    def setup_method(self) -> None:
        super().setup_method()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="event loop")
        self.thread.start()

    def teardown_method(self) -> None:
        try:
            super().teardown_method()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(GENEROUS_S)
            self.loop.close()

    def make_system(self, **options: Any) -> LocalSystem:
        system = LoopSystem(**options)
        system.loop = self.loop
        return system


def test_where_no_thread_can_be_started_any_more_a_stop_is_made_by_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while an interpreter ends, from Python 3.12 on."""
    system = LocalSystem()
    actor = Doing(ignore)
    system.spawn(actor, "actor")
    system.start()

    def refuses(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    assert system.stop() == ()
    assert actor.was_stopped.is_set()
    assert system.stop() == (), "and is over"


def test_a_message_from_outside_to_nobody_is_a_dead_letter_that_says_so() -> None:
    system = LocalSystem()
    message = Number(1)
    assert not system.send("nobody", message)
    (letter,) = system.dead_letters.recent()
    assert (letter.to, letter.sender, letter.message) == ("nobody", OUTSIDE, message)
    assert letter.reason is Reason.UNKNOWN_RECEIVER


@pytest.mark.parametrize("begun", [False, True])
def test_a_system_that_was_stopped_does_not_start_again(begun: bool) -> None:
    system, actor = LocalSystem(), Doing(ignore)
    system.spawn(actor, "actor")
    if begun:
        system.start()
    assert system.stop() == ()
    with pytest.raises(RuntimeError, match="already"):
        system.start()
    assert actor.was_stopped.is_set() == begun
    assert not system.send("actor", Number(1))


def test_who_waits_for_a_stop_that_fails_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    system = LocalSystem()

    def fails(order: tuple[str, ...], timeout_s: float) -> None:
        raise OSError("a defect")

    monkeypatch.setattr(system, "_stop_in_order", fails)
    with pytest.raises(OSError, match="a defect"):
        system._stop_all((), 1.0)
    assert system.wait(0.0)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)  # it would fail again, in a thread of its own
    assert system.stop() == ()
