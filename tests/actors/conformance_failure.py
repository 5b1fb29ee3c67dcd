"""Conformance of a runtime: restart, quarantine, escalation, Down."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.runtime.supervision import Reason, Restart
from tests.actors.conformance_base import Boom, Conformance, Crash, Relay, Say, Scribe, SetTimers


class FailureConformance(Conformance):
    """Restart, quarantine, escalation, Down."""

    @staticmethod
    def only_at(armed: dict[int, int]) -> Callable[[Crash], bool]:
        """Arms the crash with number n for its first armed[n] deliveries."""

        def goes_off(crash: Crash) -> bool:
            armed[crash.number] -= 1
            return armed[crash.number] >= 0

        return goes_off

    def policy(self, armed: Callable[[Crash], bool], max_restarts: int = 3) -> Restart:
        return Restart(factory=lambda: self.scribe(armed), max_restarts=max_restarts, backoff_s=0.001)

    def test_without_a_policy_a_failure_escalates_at_once(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "weak")
        system.send("weak", Say(1))
        system.send("weak", Crash(5))
        system.send("weak", Say(2))
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert self.journal.of("failures") == [("weak", "crash 5")]
        assert self.journal.of("weak") == ["started", Say(1), Crash(5), "stopped: failed: Boom('crash 5')"]
        assert self.reasons() == [Reason.RECEIVER_FAILED] * 2
        assert not system.send("weak", Say(3))

    def test_down_comes_after_every_earlier_message_of_the_peer_in_every_lane(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "watcher")
        system.spawn(self.scribe(), "peer")
        system.watch("watcher", "peer")
        for number in range(200):
            system.send("watcher", Say(number))
        for lane in (Lane.DATA, Lane.CONTROL, Lane.SYSTEM):
            system.send("peer", Relay("watcher", count=40, lane=lane))
        system.send("peer", Crash())
        system.start()
        self.run_until(lambda: any(isinstance(what, Down) for what in self.journal.of("watcher")))
        received = self.journal.of("watcher")
        down = next(index for index, what in enumerate(received) if isinstance(what, Down))
        assert received[down].name == "peer"
        assert "crash 0" in received[down].reason
        before = [what for what in received[:down] if isinstance(what, Say) and what.speaker == "peer"]
        assert len(before) == 120

    def test_an_actor_that_was_stopped_sends_no_down(self) -> None:
        system = self.new_system()
        for name in ("watcher", "peer"):
            system.spawn(self.scribe(), name)
        system.watch("watcher", "peer")
        system.start()
        system.stop(["peer", "watcher"])
        assert self.journal.of("watcher") == ["started", "stopped: stopped"]

    def test_watching_one_that_is_gone_gives_down_at_once(self) -> None:
        system = self.new_system()
        for name in ("watcher", "peer"):
            system.spawn(self.scribe(), name)
        system.send("peer", Crash())
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        system.watch("watcher", "peer")
        self.run_until(lambda: any(isinstance(what, Down) for what in self.journal.of("watcher")))

    def test_only_actors_that_accept_down_may_watch(self) -> None:
        class Deaf(Scribe):
            accepts = Say

        system = self.new_system()
        system.spawn(Deaf(self.journal), "deaf")
        system.spawn(self.scribe(), "peer")
        with pytest.raises(TypeError, match="Down"):
            system.watch("deaf", "peer")

    def test_a_restarted_actor_goes_on_where_the_failed_one_fell(self) -> None:
        system = self.new_system()
        armed = self.only_at({7: 1})
        system.spawn(self.scribe(armed), "weak", restart=self.policy(armed))
        for message in (Say(1), Crash(7), Say(2), Say(3)):
            system.send("weak", message)
        system.start()
        self.run_until(lambda: 3 in self.journal.numbers("weak"))
        failed = "stopped: failed: Boom('crash 7')"
        assert self.journal.of("weak")[:8] == [
            *("started", Say(1), Crash(7), failed),
            *("started", Crash(7), Say(2), Say(3)),
        ]
        assert system.statistics()["weak"].restarts == 1
        assert system.stop() == ()
        assert self.journal.of("failures") == []
        assert self.reasons() == []

    def test_a_message_that_kills_twice_is_quarantined_and_the_rest_is_handled(self) -> None:
        system = self.new_system()
        armed = self.only_at({7: 99})
        system.spawn(self.scribe(armed), "weak", restart=self.policy(armed))
        for message in (Say(1), Crash(7), Say(2)):
            system.send("weak", message)
        system.start()
        self.run_until(lambda: 2 in self.journal.numbers("weak"))
        assert self.journal.of("weak").count(Crash(7)) == 2
        assert [(letter.message, letter.reason) for letter in self.journal.of("dead letters")] == [
            (Crash(7), Reason.QUARANTINED)
        ]
        assert system.statistics()["weak"].restarts == 2

    def test_when_no_restart_is_left_the_failure_escalates(self) -> None:
        system = self.new_system()
        armed = self.only_at({1: 99, 2: 99})
        system.spawn(self.scribe(armed), "weak", restart=self.policy(armed, max_restarts=3))
        system.spawn(self.scribe(), "watcher")
        system.watch("watcher", "weak")
        for message in (Crash(1), Crash(2), Say(3)):
            system.send("weak", message)
        system.start()
        self.run_until(lambda: any(isinstance(what, Down) for what in self.journal.of("watcher")))
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert self.journal.of("failures") == [("weak", "crash 2")]
        assert self.journal.of("weak").count("started") == 4
        assert system.statistics()["weak"].restarts == 3
        assert self.reasons() == [Reason.QUARANTINED, Reason.QUARANTINED, Reason.RECEIVER_FAILED]

    def test_timers_die_with_the_instance_that_set_them(self) -> None:
        system = self.new_system()
        armed = self.only_at({1: 1})
        system.spawn(self.scribe(armed), "weak", restart=self.policy(armed))
        # Timer 0 is due before the crash and waits in the mailbox then; timer 1 is still in the future.
        system.send("weak", SetTimers((0.0, 0.01)), Lane.SYSTEM)
        system.send("weak", Crash(1), Lane.SYSTEM)
        system.start()
        self.run_until(lambda: self.journal.of("weak").count(Crash(1)) == 2)
        system.send("weak", SetTimers((0.0, 0.0, 0.1)))
        self.run_until_numbers("weak", [0, 1, 2])

    def test_a_due_timer_of_a_failed_actor_is_no_dead_letter(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "weak")
        for message in (SetTimers((0.0,)), Crash(1)):
            system.send("weak", message, Lane.SYSTEM)
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert [letter.message for letter in self.journal.of("dead letters")] == [Crash(1)]

    def test_a_failure_of_settled_is_supervised_too(self) -> None:
        class Restless(Scribe):
            def settled(self) -> None:
                raise Boom("restless")

        system = self.new_system()
        system.spawn(
            Restless(self.journal), "weak", restart=Restart(factory=lambda: Scribe(self.journal), backoff_s=0.0)
        )
        system.send("weak", Say(1))
        system.start()
        self.run_until(lambda: self.journal.of("weak").count("started") == 2)
        assert system.send("weak", Say(2))
        self.run_until_numbers("weak", [1, 2])

    def test_a_failure_of_started_is_supervised_too_and_is_not_followed_by_stopped(self) -> None:
        class Stillborn(Scribe):
            def started(self) -> None:
                super().started()
                raise Boom("stillborn")

        system = self.new_system()
        restart = Restart(factory=lambda: Stillborn(self.journal), max_restarts=2, backoff_s=0.0)
        system.spawn(Stillborn(self.journal), "weak", restart=restart)
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert self.journal.of("weak") == ["started"] * 3

    def test_a_factory_that_fails_uses_up_restarts(self) -> None:
        def factory() -> Actor:
            self.journal.note("factory", "called")
            raise Boom("no replacement")

        system = self.new_system()
        system.spawn(self.scribe(), "weak", restart=Restart(factory=factory, max_restarts=2, backoff_s=0.0))
        system.send("weak", Crash(1))
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert self.journal.of("factory") == ["called"] * 2
        assert self.journal.of("failures") == [("weak", "no replacement")]
        assert self.reasons() == [Reason.RECEIVER_FAILED]

    def test_a_failure_while_stopping_is_told(self) -> None:
        class Bitter(Scribe):
            def stopped(self, reason: str) -> None:
                raise Boom("bitter end")

        system = self.new_system()
        system.spawn(Bitter(self.journal), "bitter")
        system.start()
        assert system.stop() == ()
        assert self.journal.of("failures") == [("bitter", "bitter end")]

    def test_a_stop_does_not_wait_for_a_restart(self) -> None:
        system = self.new_system()
        system.spawn(
            self.scribe(),
            "weak",
            restart=Restart(factory=self.scribe, backoff_s=3600.0, max_backoff_s=3600.0),
        )
        system.send("weak", Crash(1))
        system.start()
        self.run_until(lambda: any(str(what).startswith("stopped") for what in self.journal.of("weak")))
        assert system.stop() == ()
        assert self.journal.of("weak").count("started") == 1
