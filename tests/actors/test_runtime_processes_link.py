"""What a link promises when frames are lost, doubled, damaged or late: no sockets, and a clock that the tests set."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from pawl.actors.runtime.actor import Down, Lane, Overflow
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.processes.frames import (
    Beat,
    Bye,
    Credit,
    Eager,
    Hello,
    Over,
    Post,
    Spawned,
    Stop,
    read,
    written,
)
from pawl.actors.runtime.processes.remote import RemoteCell
from pawl.actors.runtime.receiver import Phase
from tests.actors.conformance_base import Crash, Journal, Relay, Say, Scribe, Stray
from tests.actors.memory_wires import MemoryWire, TwoProcesses
from tests.actors.runtime_doing import GENEROUS_S
from tests.actors.test_codec import damage

DAMAGED = 4_000
DAMAGED_NIGHTLY = 1_000_000


class Between(TwoProcesses):
    """Scribes "x" in a and "y" in b; y is watched by x."""

    def __init__(self, capacity: int = 8, overflow: Overflow = Overflow.REJECT) -> None:
        super().__init__()
        self.journal = Journal()
        self.a.spawn(Scribe(self.journal), "x")
        self.b.spawn(Scribe(self.journal), "y", capacity=capacity, overflow=overflow)
        self.connect()
        self.a.watch("x", "y")
        self.deliver()

    def wait_for(self, who: str, what: object) -> list[object]:
        """Until `who` noted it; everything that it noted."""
        with self.journal.changed:
            assert self.journal.changed.wait_for(lambda: what in self.journal.of(who), GENEROUS_S)
        return self.journal.of(who)

    def waiting(self, name: str) -> list[int]:
        """How many messages wait in the mailbox of y, or in the outbox that stands for it."""
        system = {"y": self.b, "outbox": self.a}[name]
        found = system.find("y")
        assert found is not None
        return list(found.mailbox.depths())


@pytest.fixture
def between() -> Iterator[Between]:
    made = Between()
    yield made
    made.stop()


def post_number(frames: list[bytes]) -> int:
    """The number of a post; 0 for other words."""
    word, _ = read(frames)
    return word.number if isinstance(word, Post) else 0


def test_a_lost_message_is_the_loss_of_its_process_and_nothing_after_it_is_heard(between: Between) -> None:
    for number in range(4):
        between.a.send("y", Say(number))
    between.deliver(lambda frames: [] if post_number(frames) == 2 else [frames])
    assert between.lost == [("a", "a gap of 1 from outside to y")]
    between.b.start()
    assert between.wait_for("y", "settled") == ["started", Say(0), "settled"]


def test_a_message_for_an_actor_that_is_not_here_is_a_dead_letter_and_costs_nobody_more(between: Between) -> None:
    link = between.b.links["a"]
    link.receive(written(Post("x", "z", int(Lane.DATA), 1, False)))
    (letter,) = between.b.dead_letters.recent()
    assert (letter.to, letter.sender, letter.reason) == ("a", "x", Reason.UNKNOWN_RECEIVER)
    between.a.send("y", Say(1))
    between.deliver().b.start()
    assert between.wait_for("y", "settled") == ["started", Say(1), "settled"]
    assert between.lost == []


def test_a_message_of_too_many_arrays_is_a_dead_letter_and_costs_nobody_more(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pawl.actors.runtime.processes.link.MOST_FRAMES", 1)
    between.a.send("y", Say(0))
    monkeypatch.undo()
    between.a.send("y", Say(1))
    between.deliver().b.start()
    assert between.wait_for("y", "settled") == ["started", Say(1), "settled"]
    assert between.lost == []
    assert [letter.reason for letter in between.b.dead_letters.recent()] == [Reason.UNKNOWN_MESSAGE]


def test_who_is_held_back_hears_of_every_message_from_the_moment_at_which_it_is_told_what_was_taken(
    between: Between,
) -> None:
    """Its receiver may take one just then, in a thread of its own, and would tell nobody."""
    (link,) = between.b.links.values()
    flow, told = link._flow("y"), []
    assert flow.batch == 2
    flow.taken, link._owed = 1, told  # type: ignore[assignment]
    link.pump = lambda: told.append(flow.batch)  # type: ignore[method-assign]
    link.receive(written(Eager("y")))
    assert told == [flow, 1]


def test_all_that_ends_here_is_waited_for(between: Between) -> None:
    (link,) = between.a.links.values()
    waited: list[int] = []

    class Said(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waited.append(round(timeout))
            return True

    link._finishing = [Said(), Said(), Said()]
    link.finished(GENEROUS_S)
    assert waited == [round(GENEROUS_S)] * 3


def test_the_end_of_a_process_is_looked_at_when_it_is_known(between: Between) -> None:
    (link,) = between.a.links.values()
    link.ends("it has ended")
    assert between.wires["a"].woken == 1


def test_what_is_heard_of_a_process_that_is_lost_already_is_no_news(between: Between) -> None:
    (link,) = between.a.links.values()
    between.a.lost(link, "killed")
    between.a.told(link, Bye())
    between.a.lost(link, "killed again")
    assert (between.lost, between.left) == ([("b", "killed")], [])


def test_who_has_heard_of_an_end_does_not_hear_of_it_again_when_the_process_is_lost(between: Between) -> None:
    between.a.start()
    between.b.start()
    between.a.send("y", Crash(1))
    between.deliver()
    failed = between.b.find("y")
    assert failed is not None
    assert failed.over.wait(GENEROUS_S)
    between.deliver(lambda frames: [] if isinstance(read(frames)[0], Over) else [frames])
    between.wait_for("x", Down("y", "failed: Boom"))
    between.a.lost(between.a.links["b"], "killed")
    between.a.send("x", Say(2))
    downs = [each for each in between.wait_for("x", Say(2)) if isinstance(each, Down)]
    assert downs == [Down("y", "failed: Boom")]


def test_a_second_actor_of_a_name_is_not_taken_for_the_first(between: Between) -> None:
    (link,) = between.a.links.values()
    remote = between.a.find("y")
    assert isinstance(remote, RemoteCell)
    here, mailbox = between.b.find("y"), remote.mailbox
    assert isinstance(here, Cell)
    word = Spawned(between.b._card("y", here))
    with capture_logs() as lines:
        between.a.told(link, word)
        assert remote.mailbox is mailbox
        between.a.lost(link, "killed")
        between.a.told(link, word)
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["two actors of one name"]
    assert remote.phase is Phase.RUNNING, "it has come again"
    own = between.a.find("x")
    assert isinstance(own, Cell)
    between.a.start()
    between.a.send("x", Crash(1))
    assert own.over.wait(GENEROUS_S)
    between.a.told(link, Spawned(between.a._card("x", own)))
    assert between.a.find("x") is own, "an actor of this process has its name for good"


def test_what_had_not_gone_to_a_process_that_is_left_is_gone_with_its_receiver(between: Between) -> None:
    between.wires["a"].room = 0
    between.a.send("y", Say(1))  # is at the wire, and counted at the other end
    between.a.send("y", Say(2))
    between.a.leave("b")
    assert [(letter.to, letter.reason) for letter in between.a.dead_letters.recent()] == [("y", Reason.RECEIVER_GONE)]
    assert not between.a.send("y", Say(3))


def test_a_system_that_never_began_stops_though_an_actor_of_its_order_is_lost(between: Between) -> None:
    between.a.send("y", Say(1))
    between.deliver().a.lost(between.a.links["b"], "killed")
    assert between.a.stop(["y"], timeout_s=GENEROUS_S) == ()


def test_who_leaves_behind_an_actor_that_has_failed_is_heard_first_about_that(between: Between) -> None:
    between.b.start()
    between.a.send("y", Relay("x"))  # which x has not taken yet
    between.a.send("y", Crash(1))
    between.deliver()
    failed = between.b.find("y")
    assert failed is not None
    assert failed.over.wait(GENEROUS_S)
    leaving = threading.Thread(target=between.b.leave, args=("a", GENEROUS_S))
    leaving.start()
    between.a.start()
    while leaving.is_alive():
        between.deliver()
    between.deliver()
    assert between.wait_for("x", Down("y", "failed: Boom"))[:2] == ["started", Say(0, "y")]
    assert between.left == ["b"]
    assert between.lost == []


def test_a_doubled_message_is_heard_once(between: Between) -> None:
    for number in range(4):
        between.a.send("y", Say(number))
    between.deliver(lambda frames: [frames, frames])
    between.b.start()
    assert between.wait_for("y", "settled") == ["started", *map(Say, range(4)), "settled"]
    assert between.b.dead_letters.by_reason[Reason.MALFORMED] >= 4
    assert between.lost == []


def test_data_that_was_not_taken_fills_the_outbox_however_much_the_wire_holds(between: Between) -> None:
    assert [between.a.send("y", Say(number)) for number in range(10)] == [True] * 8 + [False] * 2
    between.deliver()
    assert not between.a.send("y", Say(10))
    assert between.a.send("y", Say(11), Lane.CONTROL)
    between.deliver()
    assert between.waiting("y") == [0, 1, 8]
    between.b.start()
    between.wait_for("y", "settled")
    between.deliver()
    assert between.waiting("outbox")[2] < 2
    assert between.a.send("y", Say(12))


def test_a_credit_for_what_was_not_sent_is_malformed(between: Between) -> None:
    between.a.send("y", Say(1))
    link = between.a.links["b"]
    link.receive(written(Credit("y", 2)))
    assert between.a.dead_letters.by_reason == {Reason.MALFORMED: 1}
    assert between.waiting("outbox") == [0, 0, 1]


def test_control_goes_before_data_that_waits_for_the_wire(between: Between) -> None:
    wire = between.wires["a"]
    wire.room = 1
    for number in range(6):
        between.a.send("y", Say(number))
    between.a.send("y", Say(100), Lane.CONTROL)
    between.a.send("y", Say(200), Lane.SYSTEM)
    sent: list[int] = []

    def note(frames: list[bytes]) -> list[list[bytes]]:
        word, _ = read(frames)
        if isinstance(word, Post):
            sent.append(word.lane)
        return [frames]

    between.deliver(note)
    # One was on the wire, and one was refused by it.
    assert sent == [2, 2, 0, 1, 2, 2, 2, 2]


def test_a_process_that_is_silent_is_lost_and_one_that_beats_is_not(between: Between) -> None:
    silent, beats = between.a.links["b"], between.b.links["a"]
    for second in range(1, 10):
        between.now = float(second)
        silent.tick()
        beats.receive(between.wires["a"].sent.pop())
    assert between.lost == []
    between.now = 10.0
    silent.tick()
    beats.tick()
    assert between.lost == [("b", "silent for 10.0 s")]


def test_down_comes_after_everything_that_was_heard_and_nothing_comes_after_it(between: Between) -> None:
    between.a.send("y", Relay("x", count=5))
    between.a.send("y", Relay("x", count=2, lane=Lane.CONTROL), Lane.CONTROL)
    between.deliver()
    between.b.start()
    between.wait_for("y", "settled")
    late = between.wires["b"].sent.copy()
    between.deliver()
    between.a.links["b"].ends("killed")
    between.now = 5.0
    link = between.a.links["b"]
    link.tick()
    link.receive(late[0])
    assert between.lost == [("b", "killed")]
    between.a.start()
    heard = between.wait_for("x", Down("y", "lost: killed"))
    assert [type(what) for what in heard if not isinstance(what, str)] == [*[Say] * 7, Down]
    assert not between.a.send("y", Say(1))


def test_all_who_watch_an_actor_of_a_lost_process_hear_of_it(between: Between) -> None:
    for name in ("v", "w"):
        between.spawn(between.a, Scribe(between.journal), name)
        between.a.watch(name, "y")
    between.a.lost(between.a.links["b"], "killed")
    between.a.start()
    for name in "xvw":
        between.wait_for(name, Down("y", "lost: killed"))


def test_what_a_lost_process_never_took_is_counted_as_dead_letters(between: Between) -> None:
    for number in range(3):
        between.a.send("y", Say(number))
    between.a.lost(between.a.links["b"], "killed")
    assert between.a.dead_letters.by_reason == {Reason.RECEIVER_FAILED: 3}


def test_a_process_that_comes_back_is_sent_to_by_those_who_knew_it(between: Between) -> None:
    between.a.start()
    for first in (1, 7):
        between.a.send("x", Relay("y", first=first))
        with between.journal.changed:
            assert between.journal.changed.wait_for(lambda: "sent" in between.journal.of("x"), GENEROUS_S)
        between.journal.entries.clear()
        if first == 1:
            between.a.lost(between.a.links["b"], "killed")
            between.b = between.system("b")
            between.b.spawn(Scribe(between.journal), "y")
            between.wires = {"a": MemoryWire(), "b": MemoryWire()}
            between.connect()
    between.deliver()
    between.b.start()
    assert between.wait_for("y", "settled") == ["started", Say(7, "x"), "settled"]


def test_processes_of_two_versions_do_not_talk() -> None:
    two = TwoProcesses()
    two.b.process = two.b.process._replace(version="2")
    two.connect()
    assert ("b", "b 2 and not b ") in two.lost
    two.stop()


def test_nothing_is_heard_before_hello() -> None:
    two = Between()
    link = two.a.links["b"]
    link.met = False
    link.receive(written(Beat()))
    assert two.a.dead_letters.by_reason == {Reason.MALFORMED: 1}
    two.stop()


def test_what_no_wire_can_carry_is_a_dead_letter_of_its_receiver_and_costs_no_credit(between: Between) -> None:
    for _ in range(20):
        between.a.send("y", Say(object()))  # type: ignore[arg-type]
        between.a.send("y", Stray())
        between.deliver()
    assert between.b.dead_letters.by_reason == {Reason.UNKNOWN_MESSAGE: 40}
    assert between.waiting("outbox") == [0, 0, 0]


def all_kinds(between: Between) -> list[list[bytes]]:
    """The frames of one message of each kind that b may be sent."""
    kinds: list[list[bytes]] = []
    for message, lane in ((Say(1), Lane.DATA), (Say(2), Lane.CONTROL), (Relay("x"), Lane.SYSTEM)):
        between.a.send("y", message, lane)
    kinds += between.wires["a"].sent
    between.wires["a"].sent.clear()
    return [*kinds, *([bytes(frame) for frame in written(word)] for word in (Beat(), Hello("a", "", ())))]


@pytest.mark.parametrize(
    "count", [DAMAGED, pytest.param(DAMAGED_NIGHTLY, marks=pytest.mark.slow)], ids=["some", "a million"]
)
def test_no_handler_sees_a_damaged_message_and_nothing_dies(between: Between, count: int) -> None:
    source = random.Random(7)
    link = between.b.links["a"]
    whole = all_kinds(between)
    for _ in range(count):
        link.receive(damage(source, source.choice(whole)))
    assert between.b.dead_letters.total == count
    assert set(between.b.dead_letters.by_reason) == {Reason.MALFORMED}
    for frames in whole:
        link.receive(frames)
    between.b.start()
    heard = between.wait_for("y", "settled")
    assert [what for what in heard if isinstance(what, Say)] == [Say(2), Say(1)]
    assert between.lost == []


def test_what_is_to_be_sent_while_something_is_sent_is_sent_after_it(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, count = between.wires["a"].link, 0
    assert link is not None

    def send_all() -> None:
        nonlocal count
        count += 1
        if count == 1:
            link.pump()  # as another thread does, which finds this one at it

    monkeypatch.setattr(link, "_send_all", send_all)
    link.pump()
    assert count == 2


def test_what_comes_after_a_link_is_closed_is_not_heard(between: Between) -> None:
    between.a.send("y", Say(1))
    link, (frames,) = between.wires["b"].link, between.wires["a"].sent
    assert link is not None
    link.close(0.0)
    received = link.num_received
    link.receive(frames)
    assert (link.num_received, between.waiting("y")) == (received, [0, 0, 0])


@pytest.mark.parametrize("way", ["lost", "left", "goodbye"])
def test_a_link_that_is_over_has_closed_its_wire_and_is_known_to_nobody(between: Between, way: str) -> None:
    (link,) = between.a.links.values()
    match way:
        case "lost":
            between.a.lost(link, "it is gone")
        case "left":
            between.a.leave("b")
        case _:
            between.a.told(link, Bye())
    assert (between.wires["a"].closed, link.closed, between.a.links) == (True, True, {})


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_an_actor_ends_when_another_process_says_so_also_one_that_has_not_begun(
    between: Between, started: bool, cut: bool
) -> None:
    if started:
        between.b.start()
    (link,) = between.b.links.values()
    for name in ("nobody", "y"):
        between.b.told(link, Stop(name, "enough", cut))
    told = between.b.find("y")
    assert isinstance(told, Cell)
    assert told.over.wait(GENEROUS_S)
    assert told.phase is Phase.ENDED


def test_an_actor_of_another_process_is_cut_there(between: Between) -> None:
    between.b.start()
    here, there = between.a.find("y"), between.b.find("y")
    assert isinstance(here, RemoteCell)
    assert isinstance(there, Cell)
    here.cut()
    between.deliver()
    assert there.over.wait(GENEROUS_S)
    between.deliver()
    assert here.phase is Phase.ENDED


def test_what_comes_for_an_actor_that_has_just_ended_is_a_dead_letter_and_its_credit_comes_back(
    between: Between,
) -> None:
    (link,) = between.b.links.values()
    between.a.send("y", Say(1))
    between.b.told(link, Stop("y", "enough", False))
    between.wires["b"].sent.clear()  # so that nobody there has heard of it
    between.deliver()
    assert [(each.to, each.message, each.reason) for each in between.b.dead_letters.recent()] == [
        ("y", Say(1), Reason.RECEIVER_GONE)
    ]
    assert link._flows["y"].dropped == 1


def test_who_waits_for_an_actor_that_ends_is_told_that_all_was_taken_or_never_will_be(between: Between) -> None:
    passed: list[str] = []
    remote = between.a.find("y")
    assert isinstance(remote, RemoteCell)
    between.wires["a"].room = 0
    for number in range(2):  # of which one is at the wire
        between.a.send("y", Say(number))
    assert remote.mark(lambda: passed.append("passed"))
    assert passed == []
    (link,) = between.a.links.values()
    for _ in range(2):
        between.a.told(link, Over("y", failed=False))
    between.a.told(link, Over("nobody", failed=True))
    assert (passed, remote.phase) == (["passed"], Phase.ENDED)
    assert [(each.to, each.reason) for each in between.a.dead_letters.recent()] == [("y", Reason.RECEIVER_GONE)]
    assert not remote.mark(lambda: passed.append("late"))
    link._credited(Credit("y", 1))  # which was on its way
    assert passed == ["passed"]
