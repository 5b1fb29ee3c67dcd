"""Who watches an actor of another process is forgotten with it, and who waits for that waits until it was said."""

from __future__ import annotations

from pawl.actors.runtime.actor import Down
from pawl.actors.runtime.processes.frames import Over, Word
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


def test_who_waits_for_the_news_of_an_end_goes_on_when_it_was_said() -> None:
    between = Between()
    (link,) = between.b.links.values()
    said, say = list[bool](), link.say

    def noted(word: Word) -> None:
        if isinstance(word, Over):
            said.append(link._finishing[-1].is_set())
        say(word)

    link.say = noted  # type: ignore[method-assign]
    link.finish("y", failed=False)
    between.deliver()
    assert said == [False]
    assert link._finishing[-1].is_set()
    between.stop()
