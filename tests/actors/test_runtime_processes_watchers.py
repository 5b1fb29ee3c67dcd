"""Who watches an actor of another process is forgotten with it."""

from __future__ import annotations

from pawl.actors.runtime.actor import Down
from tests.actors.conformance_base import Crash
from tests.actors.runtime_doing import GENEROUS_S
from tests.actors.test_runtime_processes_link import Between


def test_nobody_is_remembered_as_watching_an_actor_that_has_ended() -> None:
    between = Between()
    between.a.start()
    between.b.start()
    assert between.a._watchers == {"y": ["x"]}
    between.a.send("y", Crash(1))
    between.deliver()
    failed = between.b.find("y")
    assert failed is not None
    assert failed.over.wait(GENEROUS_S)
    between.deliver()
    between.wait_for("x", Down("y", "failed: Boom"))
    assert between.a._watchers == {}
    between.stop()
