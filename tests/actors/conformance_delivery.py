"""Conformance of a runtime: order, lanes, bounds, dead letters."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.runtime.actor import Actor, Lane, Overflow
from pawl.actors.runtime.dead_letters import Reason
from tests.actors.conformance_base import Conformance, Relay, Say, Stray


class DeliveryConformance(Conformance):
    """Order, lanes, bounds, dead letters."""

    def test_order_is_kept_along_each_edge_and_nothing_is_doubled(self) -> None:
        system = self.new_system()
        for name in ("sink", "left", "right"):
            system.spawn(self.scribe(), name)
        for name in ("left", "right"):
            for first in range(0, 100, 10):
                assert system.send(name, Relay("sink", count=10, first=first))
        system.start()
        self.run_until(lambda: len(self.journal.numbers("sink")) == 200)
        assert self.journal.numbers("sink", "left") == list(range(100))
        assert self.journal.numbers("sink", "right") == list(range(100))

    def test_system_goes_before_control_before_data(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        for number, lane in enumerate((Lane.DATA, Lane.CONTROL, Lane.SYSTEM, Lane.DATA, Lane.CONTROL, Lane.SYSTEM)):
            assert system.send("sink", Say(number), lane)
        system.start()
        self.run_until_numbers("sink", [2, 5, 1, 4, 0, 3])

    def test_an_abort_overtakes_the_requests_before_it(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        for number in range(100):
            assert system.send("sink", Say(number))
        assert system.send("sink", Say(777), Lane.CONTROL)
        system.start()
        self.run_until_numbers("sink", [777, *range(100)])

    @pytest.mark.parametrize("lane", [Lane.CONTROL, Lane.SYSTEM])
    def test_a_flood_in_a_higher_lane_slows_data_but_does_not_stop_it(self, lane: Lane) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        for number in range(3):
            assert system.send("sink", Say(number))
        for number in range(1000):
            assert system.send("sink", Say(1000 + number), lane)
        system.start()
        self.run_until(lambda: len(self.journal.numbers("sink")) == 1003)
        received = self.journal.numbers("sink")
        assert [number for number in received if number < 1000] == [0, 1, 2]
        assert 3 < received.index(2) < 200

    def test_a_full_mailbox_rejects_data_and_stays_bounded_at_ten_times_overload(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink", capacity=20)
        accepted = [system.send("sink", Say(number)) for number in range(200)]
        assert accepted == [True] * 20 + [False] * 180
        statistics = system.statistics()["sink"]
        assert (statistics.waiting_data, statistics.most_data, statistics.rejected) == (20, 20, 180)
        system.start()
        self.run_until_numbers("sink", list(range(20)))
        assert system.send("sink", Say(20))
        self.run_until_numbers("sink", list(range(21)))
        assert self.reasons() == []

    def test_control_and_system_messages_are_never_refused(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink", capacity=1)
        for number in range(50):
            assert system.send("sink", Say(number), Lane.CONTROL)
            assert system.send("sink", Say(number), Lane.SYSTEM)
        assert system.statistics()["sink"].rejected == 0

    def test_an_actor_learns_that_its_receiver_is_full(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "producer", capacity=1)
        assert system.send("producer", Relay("producer", count=3))
        system.start()
        self.run_until_numbers("producer", [0])
        assert [note for note in self.journal.of("producer") if note in ("sent", "refused")] == [
            "sent",
            "refused",
            "refused",
        ]

    def test_holding_back_the_sender_loses_nothing_and_stays_bounded(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink", capacity=4, overflow=Overflow.HOLD)
        system.spawn(self.scribe(), "producer", capacity=500)
        for number in range(500):
            assert system.send("producer", Relay("sink", first=number))
        system.start()
        self.run_until_numbers("sink", list(range(500)))
        assert system.statistics()["sink"].most_data <= 5
        assert "refused" not in self.journal.of("producer")

    def test_a_sender_outside_is_refused_where_an_actor_would_be_held(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink", capacity=2, overflow=Overflow.HOLD)
        assert [system.send("sink", Say(number)) for number in range(4)] == [True, True, False, False]

    def test_a_message_for_nobody_is_a_dead_letter(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sender")
        assert not system.send("nobody", Say(1))
        system.send("sender", Relay("no one"))
        system.start()
        self.run_until(lambda: len(self.reasons()) == 2)
        self.run_until(lambda: "refused" in self.journal.of("sender"))
        letters = self.journal.of("dead letters")
        assert [letter.to for letter in letters] == ["nobody", "no one"]
        assert letters[1].sender == "sender"
        assert self.reasons() == [Reason.UNKNOWN_RECEIVER] * 2
        assert system.dead_letters.total == 2

    @pytest.mark.parametrize("message", [Stray(), "text", 7, None, {"type": "Say"}, Say])
    def test_a_message_of_an_unknown_type_never_reaches_a_handler(self, message: Any) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        system.start()
        system.send("sink", message)
        system.send("sink", Say(1))
        self.run_until(lambda: "settled" in self.journal.of("sink"))
        assert self.journal.of("sink") == ["started", Say(1), "settled"]
        assert self.reasons() == [Reason.UNKNOWN_MESSAGE]
        assert system.statistics()["sink"].dead_letters == 1

    def test_what_was_delivered_is_counted(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        for number, lane in enumerate(Lane):
            system.send("sink", Say(number), lane)
        waiting = system.statistics()["sink"]
        assert (waiting.waiting_system, waiting.waiting_control, waiting.waiting_data) == (1, 1, 1)
        system.start()
        self.run_until(lambda: "settled" in self.journal.of("sink"))
        statistics = system.statistics()["sink"]
        assert (statistics.delivered, statistics.waiting_data, statistics.alive) == (3, 0, True)

    def test_a_name_is_given_once(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "one")
        with pytest.raises(ValueError, match="one"):
            system.spawn(self.scribe(), "one")

    def test_an_actor_that_accepts_nothing_is_refused(self) -> None:
        with pytest.raises(TypeError, match="accepts"):
            self.new_system().spawn(Actor(), "mute")

    def test_an_actor_spawned_later_runs_at_once(self) -> None:
        system = self.new_system()
        system.start()
        system.spawn(self.scribe(), "late")
        assert system.send("late", Say(1))
        self.run_until_numbers("late", [1])
