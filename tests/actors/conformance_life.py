"""Conformance of a runtime: start, settle, timers, randomness, stop."""

from __future__ import annotations

from pawl.actors.runtime.actor import Lane
from pawl.actors.runtime.dead_letters import Reason
from tests.actors.conformance_base import CancelTimer, Conformance, Draw, Parting, Persistent, Say, SetTimers


class LifeConformance(Conformance):
    """Start, settle, timers, randomness, stop."""

    def test_settled_comes_once_after_all_that_had_arrived(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        for number in range(5):
            system.send("sink", Say(number))
        system.start()
        self.run_until(lambda: "settled" in self.journal.of("sink"))
        assert self.journal.of("sink") == ["started", *(Say(number) for number in range(5)), "settled"]

    def test_who_has_more_to_do_settles_again_behind_what_has_arrived_meanwhile(self) -> None:
        system = self.new_system()
        system.spawn(Persistent(self.journal), "sink")
        system.start()
        system.send("sink", Say(1))
        self.run_until(lambda: self.journal.of("sink").count("settled") == 3)
        assert self.journal.of("sink") == ["started", Say(1), "settled", Say(0), "settled", "settled"]

    def test_an_actor_that_received_nothing_does_not_settle(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "idle")
        system.start()
        self.run_until(lambda: self.journal.of("idle") == ["started"])
        system.stop()
        assert self.journal.of("idle") == ["started", "stopped: stopped"]

    def test_timers_come_by_due_time_then_in_the_order_they_were_set(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "clock")
        system.start()
        system.send("clock", SetTimers((0.5, 0.25, 0.0, 0.25)))
        self.run_until_numbers("clock", [2, 1, 3, 0])

    def test_a_timer_is_not_early(self) -> None:
        system = self.new_system()
        actor = self.scribe()
        system.spawn(actor, "clock")
        system.start()
        self.run_until(lambda: bool(self.journal.of("clock")))
        before = actor.context.now()
        system.send("clock", SetTimers((0.05,)))
        self.run_until_numbers("clock", [0])
        assert actor.context.now() - before >= 0.05

    def test_a_cancelled_timer_is_never_delivered_even_if_it_was_due(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "clock")
        system.send("clock", SetTimers((0.0, 0.1, 0.0)), Lane.SYSTEM)
        system.send("clock", CancelTimer(0), Lane.SYSTEM)
        system.start()
        self.run_until_numbers("clock", [2, 1])

    def test_cancelling_a_timer_that_was_delivered_does_nothing(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "clock")
        system.start()
        system.send("clock", SetTimers((0.0,)))
        self.run_until_numbers("clock", [0])
        system.send("clock", CancelTimer(0))
        system.send("clock", SetTimers((0.0,)))
        self.run_until_numbers("clock", [0, 0])

    def test_a_due_timer_goes_before_waiting_data(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "clock")
        for number in range(100, 150):
            system.send("clock", Say(number))
        system.send("clock", SetTimers((0.0,)), Lane.CONTROL)
        system.start()
        self.run_until_numbers("clock", [0, *range(100, 150)])

    def test_randomness_follows_from_seed_and_name_alone(self) -> None:
        draws = []
        for seed in (1, 1, 2):
            system = self.new_system(seed=seed)
            for name in ("a", "b"):
                system.spawn(self.scribe(), name)
                system.send(name, Draw())
            system.start()
            self.run_until(lambda: all("settled" in self.journal.of(name) for name in ("a", "b")))
            draws.append([self.journal.of(name)[1] for name in ("a", "b")])
            self.journal.entries.clear()
        assert draws[0] == draws[1]
        assert draws[0][0] != draws[0][1]
        assert draws[0][0] != draws[2][0]

    def test_stopping_drains_the_mailbox_then_tells_the_actor_once(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        for number in range(100):
            system.send("sink", Say(number))
        system.start()
        assert system.stop() == ()
        assert self.journal.numbers("sink") == list(range(100))
        assert self.journal.of("sink")[-2:] == ["settled", "stopped: stopped"]
        assert self.journal.of("sink").count("stopped: stopped") == 1

    def test_a_last_word_of_one_that_stops_is_heard_downstream(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "down")
        system.spawn(Parting(self.journal, "down"), "up")
        system.start()
        assert system.stop(["up", "down"]) == ()
        assert self.journal.numbers("down", "up") == [99]
        assert self.reasons() == []

    def test_actors_stop_in_the_order_given(self) -> None:
        system = self.new_system()
        names = ["c", "a", "d", "b"]
        for name in sorted(names):
            system.spawn(self.scribe(), name)
        system.start()
        system.stop(names)
        assert [who for who, what in self.journal.entries if what == "stopped: stopped"] == names

    def test_actors_not_named_stop_afterwards_the_latest_first(self) -> None:
        system = self.new_system()
        for name in ("first", "second", "third"):
            system.spawn(self.scribe(), name)
        system.start()
        system.stop(["second"])
        stopped = [who for who, what in self.journal.entries if what == "stopped: stopped"]
        assert stopped == ["second", "third", "first"]

    def test_stopping_twice_is_stopping_once(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        system.start()
        assert system.stop() == ()
        assert system.stop() == ()
        assert self.journal.of("sink").count("stopped: stopped") == 1

    def test_stopping_before_the_start_calls_no_handler(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        system.send("sink", Say(1))
        assert system.stop() == ()
        assert self.journal.of("sink") == []
        assert self.reasons() == [Reason.RECEIVER_GONE]

    def test_a_message_for_a_stopped_actor_is_a_dead_letter(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "sink")
        system.start()
        system.stop()
        assert not system.send("sink", Say(1))
        assert self.reasons() == [Reason.RECEIVER_GONE]
        assert not system.statistics()["sink"].alive

    def test_pending_timers_do_not_delay_a_stop(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "clock")
        system.send("clock", SetTimers((3600.0,)))
        system.start()
        assert system.stop() == ()
        assert self.journal.numbers("clock") == []
