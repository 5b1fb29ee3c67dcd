"""Words of another process that cannot be true: each is counted, and changes nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import pytest

from pawl.actors.runtime.actor import Lane
from pawl.actors.runtime.codec import Codec, Frame
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.processes.ends import Unread
from pawl.actors.runtime.processes.frames import Beat, Credit, Eager, Post, written
from pawl.actors.runtime.processes.link import Link
from tests.actors.conformance_base import Say
from tests.actors.test_runtime_processes_link import Between


@pytest.fixture
def between() -> Iterator[Between]:
    made = Between()
    yield made
    made.stop()


def post(sender: str, number: int, lane: Lane = Lane.DATA) -> list[Frame]:
    return written(Post(sender, "y", int(lane), number, False), Codec(Say).encode(Say(7)))


def before_hello(link: Link) -> list[Frame]:
    link.met = False
    return written(Credit("x", 0))


LIES: dict[str, tuple[Callable[[Link], Sequence[Frame]], str]] = {
    "of a stranger": (lambda link: post("stranger", 1), "a message of an actor that there is not"),
    "of an actor that lives here": (lambda link: post("y", 1), "a message of an actor that there is not"),
    "once more": (lambda link: post("x", 1), "it has come before"),
    "number nothing": (lambda link: written(Post("x", "y", 0, 0, False)), "Expected `int` >= 1 - at `$[4]`"),
    "credit of nobody": (lambda link: written(Credit("nobody", 0)), "credit for an actor that there is not"),
    "credit of one here": (lambda link: written(Credit("y", 0)), "credit for an actor that there is not"),
    "too much credit": (lambda link: written(Credit("x", 1)), "1 taken, of 0 that were sent"),
    "nobody is waited for": (lambda link: written(Eager("nobody")), "about an actor that there is not"),
    "one there is waited for": (lambda link: written(Eager("x")), "about an actor that there is not"),
    "a beat that says something": (lambda link: written(Beat(), [b"abcd"]), "Beat has no message"),
    "before hello": (before_hello, "Credit before Hello"),
    "nothing": (lambda link: [], "0 frames, and no header"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_true_is_counted_and_changes_nothing(lie: str, between: Between) -> None:
    between.a.send("x", Say(0))
    (link,) = between.b.links.values()
    link.receive(post("x", 1))
    words, why = LIES[lie]
    frames = words(link)

    def known() -> dict[str, object]:
        parts = {name: part for name, part in vars(link).items() if isinstance(part, dict | list | deque | int | float)}
        return {name: repr(part) for name, part in parts.items()}

    before, waiting = known(), between.waiting("y")
    link.receive(frames)
    assert known() == before
    assert between.waiting("y") == waiting
    assert not between.wires["b"].sent
    (letter,) = between.b.dead_letters.recent()
    assert (letter.to, letter.sender, letter.message) == ("a", "a", Unread(why))
    assert letter.reason is Reason.MALFORMED
    assert between.lost == []
