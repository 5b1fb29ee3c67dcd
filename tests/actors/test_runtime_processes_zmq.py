"""A wire of ZeroMQ in one thread, over sockets within this process: nothing of it takes time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import zmq

from pawl.actors.runtime.codec import Frame
from pawl.actors.runtime.processes.frames import MOST_FRAMES
from pawl.actors.runtime.processes.wires import IN_A_ROW
from pawl.actors.runtime.processes.zmq_wire import COPIED_BYTES, ZmqWire


class Heard:
    """A link that notes what comes, and what it is asked."""

    peer = "other"

    def __init__(self) -> None:
        self.heard: list[Sequence[Frame]] = []
        self.ended: list[str] = []
        self.pumped = 0

    def receive(self, frames: Sequence[Frame]) -> None:
        self.heard.append(frames)

    def ends(self, reason: str) -> None:
        self.ended.append(reason)

    def pump(self) -> None:
        self.pumped += 1


class Watched:
    """In place of the thread that reads."""

    def __init__(self) -> None:
        self.added: list[object] = []
        self.woken = 0

    def add(self, wire: object) -> None:
        self.added.append(wire)

    def wake(self) -> None:
        self.woken += 1


class Ends:
    """Two wires that are each other's, of which a socket takes a few messages before it is full."""

    def __init__(self, context: zmq.Context[Any], link: Heard) -> None:
        self.thread, self.link = Watched(), link
        thread: Any = self.thread
        anything: Any = link
        sockets = [context.socket(kind) for kind in (zmq.PUSH, zmq.PULL, zmq.PUSH, zmq.PULL)]
        for socket in sockets:
            socket.set_hwm(1000)
        for at, (pull, push) in enumerate(((1, 2), (3, 0))):
            sockets[pull].bind(f"inproc://{at}")
            sockets[push].connect(f"inproc://{at}")
        self.near = ZmqWire(thread, zmq, "inproc://near", sockets[0], sockets[1])
        self.far = ZmqWire(thread, zmq, "inproc://far", sockets[2], sockets[3])
        for wire in (self.near, self.far):
            wire.carry(anything)


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as made:
        yield made
        made.destroy(linger=0)


def contents(messages: Sequence[Sequence[Frame]]) -> list[list[bytes]]:
    return [[bytes(frame) for frame in frames] for frames in messages]


@pytest.mark.parametrize("count", [0, 1, 2, IN_A_ROW - 1, IN_A_ROW, IN_A_ROW + 1, 2 * IN_A_ROW + 1])
def test_all_that_has_come_is_heard_but_no_more_in_a_row_than_leaves_others_their_turn(
    count: int, context: zmq.Context[Any]
) -> None:
    ends = Ends(context, Heard())
    sent = [[b"%d" % at, b"", b"array"][: 1 + at % 3] for at in range(count)]
    assert all(ends.near.send(frames) for frames in sent)
    for look in range(1, 4):
        ends.far.look()
        assert contents(ends.link.heard) == sent[: look * IN_A_ROW]
    ends.near.look()
    assert len(ends.link.heard) == count, "what one sends is the other's"
    assert (ends.link.ended, ends.link.pumped) == ([], 0)


def test_the_frames_behind_the_first_two_are_read_where_they_lie(context: zmq.Context[Any]) -> None:
    ends = Ends(context, Heard())
    frames = [b"head", b"message", bytes(COPIED_BYTES - 1), bytes(COPIED_BYTES), b""]
    assert ends.near.send(frames)
    ends.far.look()
    assert contents(ends.link.heard) == [frames]
    assert [type(frame) for frame in ends.link.heard[0]] == [bytes, bytes, *[memoryview] * 3]


@pytest.mark.parametrize("count", [MOST_FRAMES, MOST_FRAMES + 1, MOST_FRAMES + 2, MOST_FRAMES + 50])
def test_of_a_message_with_too_many_frames_one_too_many_is_kept(count: int, context: zmq.Context[Any]) -> None:
    ends = Ends(context, Heard())
    assert ends.near.send([b"x"] * count)
    assert ends.near.send([b"the next"])
    ends.far.look()
    assert [len(frames) for frames in ends.link.heard] == [min(count, MOST_FRAMES + 1), 1]


def test_nothing_is_heard_any_more_once_the_wire_is_closed(context: zmq.Context[Any]) -> None:
    class Closes(Heard):
        def receive(self, frames: Sequence[Frame]) -> None:
            super().receive(frames)
            ends.far.close(0.0)

    ends = Ends(context, Closes())
    assert all(ends.near.send([b"%d" % at]) for at in range(3))
    woken = ends.thread.woken
    ends.far.look()
    assert contents(ends.link.heard) == [[b"0"]]
    assert ends.thread.woken == woken + 1, "whoever reads is to close it"
    assert not ends.far.send([b"too late"])


def test_what_cannot_be_heard_ends_the_link_and_what_comes_after_it_is_read_on(context: zmq.Context[Any]) -> None:
    class Deaf(Heard):
        def receive(self, frames: Sequence[Frame]) -> None:
            super().receive(frames)
            raise RuntimeError("a defect")

    ends = Ends(context, Deaf())
    assert all(ends.near.send([b"%d" % at]) for at in range(2))
    ends.far.look()
    assert contents(ends.link.heard) == [[b"0"], [b"1"]]
    assert ends.link.ended == ["what it said could not be handled: RuntimeError"] * 2


def test_a_full_wire_is_the_readers_until_there_is_room_again(context: zmq.Context[Any]) -> None:
    ends = Ends(context, Heard())
    (pull, *its), none = ends.near.polled()[0], ends.near.polled()[1:]
    assert (its, none) == ([True, False], [])
    count = 0
    while ends.near.send([b"%d" % count]):
        count += 1
    assert (ends.near.blocked, ends.thread.woken) == (True, 1)
    assert ends.near.polled()[0] == (pull, True, False)
    assert [wants for _, *wants in ends.near.polled()[1:]] == [[False, True]]
    ends.near.look()
    assert (ends.near.blocked, ends.link.pumped, ends.thread.woken) == (True, 0, 1)
    while len(ends.link.heard) < count:
        ends.far.look()
    assert contents(ends.link.heard) == [[b"%d" % at] for at in range(count)]
    ends.far.look()
    assert not ends.near.send([b"before anybody has looked"])
    ends.near.look()
    assert (ends.near.blocked, ends.link.pumped, ends.thread.woken) == (False, 1, 2)
    assert ends.near.send([b"again"])
    ends.near.look()
    assert (ends.link.pumped, ends.thread.woken) == (1, 2), "who is not full is not looked after"


def test_a_full_wire_that_is_closed_is_nobodys(context: zmq.Context[Any]) -> None:
    ends = Ends(context, Heard())
    count = 0
    while ends.near.send([b"x"]):
        count += 1
    ends.near.closed = True
    while len(ends.link.heard) < count:
        ends.far.look()
    ends.far.look()
    ends.near.look()
    assert (ends.near.blocked, ends.link.pumped) == (True, 0)


def test_both_sockets_are_shut_and_nothing_is_sent_any_more(context: zmq.Context[Any]) -> None:
    ends = Ends(context, Heard())
    ends.near.close(60.0)
    ends.near.shut()
    assert (ends.near._push.closed, ends.near._pull.closed) == (True, True)
    assert not ends.near.send([b"too late"])
