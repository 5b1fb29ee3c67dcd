"""Conformance of a runtime: the failure of an actor, and Down."""

from __future__ import annotations

import pytest

from pawl.actors.runtime.actor import Down, Lane
from pawl.actors.runtime.dead_letters import Reason
from tests.actors.conformance_base import Boom, Conformance, Crash, Relay, Say, Scribe, SetTimers


class FailureConformance(Conformance):
    """The failure of an actor, and Down."""

    def test_a_failure_ends_the_actor_and_what_waits_is_a_dead_letter(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "weak")
        system.send("weak", Say(1))
        system.send("weak", Crash(5))
        system.send("weak", Say(2))
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert self.journal.of("failures") == [("weak", "crash 5")]
        assert self.journal.of("weak") == ["started", Say(1), Crash(5), "stopped: failed: Boom"]
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
        assert "Boom" in received[down].reason
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

    def test_a_due_timer_of_a_failed_actor_is_no_dead_letter(self) -> None:
        system = self.new_system()
        system.spawn(self.scribe(), "weak")
        for message in (SetTimers((0.0,)), Crash(1)):
            system.send("weak", message, Lane.SYSTEM)
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert [letter.message for letter in self.journal.of("dead letters")] == [Crash(1)]

    def test_a_failure_of_settled_ends_the_actor_too(self) -> None:
        class Restless(Scribe):
            def settled(self) -> None:
                raise Boom("restless")

        system = self.new_system()
        system.spawn(Restless(self.journal), "weak")
        system.send("weak", Say(1))
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert self.journal.of("weak") == ["started", Say(1), "stopped: failed: Boom"]
        assert self.reasons() == []

    def test_a_failure_of_started_is_told_and_not_followed_by_stopped(self) -> None:
        class Stillborn(Scribe):
            def started(self) -> None:
                super().started()
                raise Boom("stillborn")

        system = self.new_system()
        system.spawn(Stillborn(self.journal), "weak")
        system.start()
        self.run_until(lambda: bool(self.journal.of("failures")))
        assert self.journal.of("weak") == ["started"]

    def test_a_failure_while_stopping_is_told(self) -> None:
        class Bitter(Scribe):
            def stopped(self, reason: str) -> None:
                raise Boom("bitter end")

        system = self.new_system()
        system.spawn(Bitter(self.journal), "bitter")
        system.start()
        assert system.stop() == ()
        assert self.journal.of("failures") == [("bitter", "bitter end")]
