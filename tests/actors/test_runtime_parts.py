"""Timers, dead letters and the manual context, each by itself."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.runtime.dead_letters import KEPT_LETTERS, DeadLetter, DeadLetters, Reason
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.timers import FEWEST_TO_COMPACT, TimerQueue
from pawl.actors.simulation.manual import ManualContext, Sent
from tests.actors.conformance_base import Journal, Scribe


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = TimerQueue()
    kept = timers.add(3600.0, "kept")
    for number in range(10_000):
        timers.add(1000.0 + number, number).cancel()
    assert len(timers) < 300
    assert timers.num_cancelled == sum(timer.cancelled for *_, timer in timers.heap)
    assert timers.pop_due(5000.0) is kept


def test_compaction_keeps_every_live_timer_in_order() -> None:
    timers = TimerQueue()
    live = []
    for number in range(1000):
        timer = timers.add(float(number % 37), number)
        if number % 5 == 0:
            live.append((float(number % 37), number))
        else:
            timer.cancel()
    popped = []
    while (due := timers.next_due()) is not None:
        timer_due = timers.pop_due(due)
        assert timer_due is not None
        popped.append((due, timer_due.message))
    assert popped == sorted(live)


def test_a_timer_is_claimed_once_and_not_when_it_was_cancelled() -> None:
    timers = TimerQueue()
    first, second = timers.add(0.0, "a"), timers.add(0.0, "b")
    assert first.claim()
    assert not first.claim()
    second.cancel()
    assert not second.claim()


def test_all_dead_letters_are_counted_and_the_latest_kept() -> None:
    letters = DeadLetters()
    for number in range(KEPT_LETTERS + 10):
        letters.add("sink", "source", number, Reason.RECEIVER_GONE)
    assert letters.total == letters.by_receiver["sink"] == letters.by_reason[Reason.RECEIVER_GONE] == KEPT_LETTERS + 10
    assert [letter.message for letter in letters.recent()] == list(range(10, KEPT_LETTERS + 10))


def test_a_callback_that_fails_does_not_reach_the_sender() -> None:
    def callback(letter: DeadLetter) -> None:
        raise ValueError(letter.to)

    letters = DeadLetters(callback)
    letters.add("sink", "source", "message", Reason.UNKNOWN_MESSAGE)
    assert letters.total == 1


class Echo(Actor):
    """Says after a second what it received."""

    accepts = str

    def started(self) -> None:
        self.log: list[Any] = ["started"]

    def receive(self, message: Any) -> None:
        self.log.append((self.context.now(), message))
        if not message.startswith("echo"):
            self.context.after(1.0, f"echo {message}")
            self.context.send("peer", message, Lane.CONTROL)

    def settled(self) -> None:
        self.log.append("settled")


def test_the_manual_context_fires_timers_at_their_own_time() -> None:
    echo = Echo()
    context = ManualContext(echo, "echo")
    echo.receive("a")
    context.advance(0.5)
    echo.receive("b")
    context.advance(10.0)
    assert echo.log == ["started", (0.0, "a"), (0.5, "b"), (1.0, "echo a"), "settled", (1.5, "echo b"), "settled"]
    assert (context.now(), context.wall() - context.now()) == (10.5, 1_000_000.0)
    assert context.take_sent() == [Sent("peer", "a", Lane.CONTROL), Sent("peer", "b", Lane.CONTROL)]
    assert context.take_sent() == []


def test_in_the_manual_context_full_refuses_data_and_gone_refuses_all() -> None:
    context = ManualContext(Echo(), "echo")
    context.full.add("peer")
    assert not context.send("peer", "x")
    assert context.send("peer", "x", Lane.CONTROL)
    context.gone.add("peer")
    assert not context.send("peer", "x", Lane.CONTROL)


def test_word_of_an_end_for_who_has_ended_is_a_dead_letter() -> None:
    system = LocalSystem()
    for name in ("watcher", "watched"):
        system.spawn(Scribe(Journal()), name)
    system.watch("watcher", "watched")
    system._cells["watcher"].mailbox.close()
    system._send_down("watcher", "watched", "failed")
    (letter,) = system.dead_letters.recent()
    down = Down("watched", "failed")
    assert (letter.to, letter.sender, letter.message) == ("watcher", "watched", down)
    assert letter.reason is Reason.RECEIVER_GONE


@pytest.mark.parametrize(
    ("num_set", "num_cancelled", "num_left"),
    [
        (FEWEST_TO_COMPACT + 1, FEWEST_TO_COMPACT - 1, FEWEST_TO_COMPACT + 2),
        (FEWEST_TO_COMPACT + 1, FEWEST_TO_COMPACT, 2),
        (2 * FEWEST_TO_COMPACT + 2, FEWEST_TO_COMPACT + 1, 2 * FEWEST_TO_COMPACT + 3),
        (2 * FEWEST_TO_COMPACT + 2, FEWEST_TO_COMPACT + 2, FEWEST_TO_COMPACT + 1),
    ],
)
def test_cancelled_timers_are_dropped_where_they_are_many_and_most(
    num_set: int, num_cancelled: int, num_left: int
) -> None:
    timers = TimerQueue()
    for timer in [timers.add(float(number), number) for number in range(num_set)][:num_cancelled]:
        timer.cancel()
    timers.add(0.5, "one more")
    assert len(timers) == num_left
    assert sum(1 for _ in timers.messages()) == num_set - num_cancelled + 1
