"""What is left in a private book at rest is found, whatever object of ours keeps it."""

from __future__ import annotations

from typing import Any

from pawl.actors.asks import AskExpired, Asks
from pawl.actors.gateway import Gateway
from pawl.actors.simulation.strategies.simple import Fair
from pawl.actors.simulation.system import SimulatedSystem
from pawl.actors.watchdog import Tick, Watchdog
from pawl.testing.books import KEPT, needless_timers, open_books


def test_a_fresh_actor_has_empty_books() -> None:
    assert list(open_books({"gateway": Gateway(traced=True)})) == []


def test_what_stands_in_a_book_of_an_actor_or_of_what_it_has_is_found() -> None:
    gateway: Any = Gateway()
    gateway.new_book = {1: "forgotten"}
    assert isinstance(gateway.asks, Asks)
    gateway.asks.newer = [7]
    assert sorted(open_books({"gateway": gateway})) == [
        "Asks.newer has 1: [7]",
        "Gateway.new_book has 1: {1: 'forgotten'}",
    ]


def test_every_book_that_is_kept_has_a_reason() -> None:
    assert all(len(reason.split()) > 2 for reason in KEPT.values())


def test_the_timer_of_a_question_that_is_answered_is_found_at_rest() -> None:
    class Asking(Watchdog):
        def started(self) -> None:
            super().started()
            self.context.after(5.0, AskExpired(1))

    system = SimulatedSystem(Fair(), seed=1)
    system.spawn(Asking(), "watchdog")
    system.start()
    system.step()
    assert list(needless_timers(system)) == ["watchdog still waits for AskExpired(ticket=1)"]


def test_a_timer_that_is_set_twice_is_found() -> None:
    class Hasty(Watchdog):
        def started(self) -> None:
            super().started()
            self.context.after(self.interval_s, Tick())

    for kind, found in ((Watchdog, []), (Hasty, ["watchdog waits 2 times for Tick()"])):
        system = SimulatedSystem(Fair(), seed=1)
        system.spawn(kind(), "watchdog")
        system.start()
        system.step()
        assert list(needless_timers(system)) == found
