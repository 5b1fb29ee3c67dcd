"""The mailbox, read and written by one thread: each rule by itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.mailbox import BURST, HOLD_CEILING, Edge, Mailbox, Outcome
from pawl.actors.runtime.processes.mailboxes import Flow, Inbound, LinkedMailbox, Outbox
from pawl.actors.simulation.strategies.simple import Fair
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.conformance_base import Journal, Scribe


def mailbox(capacity: int = 100, overflow: Overflow = Overflow.REJECT) -> Mailbox:
    return Mailbox(capacity, overflow)


def edge(lane: Lane = Lane.DATA, sender: Mailbox | None = None) -> Edge:
    return Edge("sender", lane, sender)


def take_all(box: Mailbox) -> list[Any]:
    taken = []
    while (entry := box.take()) is not None:
        taken.append(entry[0])
    return taken


def test_an_edge_numbers_what_was_accepted_and_nothing_else() -> None:
    box, data = mailbox(capacity=2), edge()
    outcomes = [box.put(text, data) for text in "abc"]
    assert outcomes == [Outcome.ACCEPTED, Outcome.ACCEPTED, Outcome.REJECTED]
    assert [box.take() for _ in range(2)] == [("a", data, 1), ("b", data, 2)]
    box.put("d", data)
    assert box.take() == ("d", data, 3)


def test_one_data_message_is_taken_after_each_burst_of_higher_ones() -> None:
    box, data, control = mailbox(), edge(), edge(Lane.CONTROL)
    for _ in range(2):
        box.put("data", data)
    for _ in range(3 * BURST):
        box.put("control", control)
    taken = take_all(box)
    assert [index for index, message in enumerate(taken) if message == "data"] == [BURST, 2 * BURST + 1]


def test_control_messages_before_the_data_came_do_not_count_as_its_waiting() -> None:
    box, data, control = mailbox(), edge(), edge(Lane.CONTROL)
    for _ in range(10 * BURST):
        box.put("control", control)
    for _ in range(10 * BURST):
        box.take()
    box.put("data", data)
    box.put("abort", control)
    assert take_all(box) == ["abort", "data"]


def test_a_fenced_message_waits_for_all_before_it_and_overtakes_all_after_it() -> None:
    box = mailbox()
    lanes = [edge(lane) for lane in Lane]
    for sender in lanes:
        box.put(f"before {sender.lane}", sender)
    box.put_fenced("down", edge(Lane.SYSTEM))
    for sender in lanes:
        box.put(f"after {sender.lane}", sender)
    taken = take_all(box)
    # The later SYSTEM and CONTROL messages overtake earlier DATA as always; the fence is passed only after that.
    assert taken == ["before 0", "after 0", "before 1", "after 1", "before 2", "down", "after 2"]


def test_a_fenced_message_has_its_number_among_those_of_its_edge() -> None:
    box, data = mailbox(), edge()
    for put in (box.put, box.put_fenced, box.put, box.put_fenced):
        put("text", data)
    taken = [box.take() for _ in range(4)]
    assert [entry[2] for entry in taken if entry is not None] == [1, 2, 3, 4]


def test_a_fence_in_an_empty_mailbox_is_passed_at_once() -> None:
    box = mailbox()
    assert box.put_fenced("down", edge(Lane.SYSTEM))
    assert take_all(box) == ["down"]


def test_a_held_reader_takes_control_but_no_data() -> None:
    box = mailbox()
    box.put("data", edge())
    box.put("control", edge(Lane.CONTROL))
    box.hold()
    assert take_all(box) == ["control"]
    assert box.park()
    box.release()
    assert take_all(box) == ["data"]


def test_a_release_that_outruns_its_hold_leaves_nothing_held() -> None:
    box = mailbox()
    box.put("data", edge())
    box.release()
    box.hold()
    assert take_all(box) == ["data"]


def test_a_full_holding_mailbox_takes_the_message_and_says_hold_once() -> None:
    sender, box = mailbox(), mailbox(capacity=4, overflow=Overflow.HOLD)
    data = edge(sender=sender)
    outcomes = [box.put(number, data) for number in range(4 * HOLD_CEILING + 1)]
    assert outcomes[:4] == [Outcome.ACCEPTED] * 4
    assert outcomes[4] is Outcome.HELD
    assert outcomes[5:8] == [Outcome.ACCEPTED] * 3
    assert outcomes[8] is Outcome.REJECTED
    assert box.most_data == 4 * HOLD_CEILING


@pytest.mark.parametrize("ending", ["half empty", "closed", "emptied and closed"])
def test_a_held_sender_is_let_go(ending: str) -> None:
    sender, box = mailbox(), mailbox(capacity=4, overflow=Overflow.HOLD)
    sender.put("waiting", edge())
    data = edge(sender=sender)
    for number in range(5):
        if box.put(number, data) is Outcome.HELD:
            sender.hold()
    assert sender.take() is None
    match ending:
        case "half empty":
            box.take()
            box.take()
            assert sender.take() is None
            box.take()
        case "closed":
            box.close()
        case _:
            take_all(box)
            assert box.close_if_empty()
    assert take_all(sender) == ["waiting"]


def test_an_actor_is_never_held_by_its_own_mailbox() -> None:
    box = mailbox(capacity=1, overflow=Overflow.HOLD)
    data = edge(sender=box)
    assert box.put("first", data) is Outcome.ACCEPTED
    assert box.put("second", data) is Outcome.REJECTED


def test_a_parked_reader_is_woken_once_however_much_arrives() -> None:
    box, data = mailbox(), edge()
    wakes: list[int] = []
    box.wake = lambda: wakes.append(1)
    assert box.park()
    for _ in range(10):
        box.put("data", data)
    assert len(wakes) == 1
    assert not box.unpark()


def test_a_reader_does_not_park_while_there_is_something_to_take() -> None:
    box = mailbox()
    box.put("data", edge())
    assert not box.park()


def test_a_nudge_before_parking_is_not_lost() -> None:
    box = mailbox()
    box.nudge()
    assert not box.park()
    assert box.park()


@pytest.mark.parametrize("parked", [False, True])
def test_a_reader_that_had_to_wait_with_settling_looks_around_once_when_the_last_hold_ends(parked: bool) -> None:
    box = mailbox()
    wakes: list[int] = []
    box.wake = lambda: wakes.append(1)
    assert not box.postpone()
    for again in range(2):
        box.hold()
        box.hold()
        assert box.postpone()
        if parked:
            assert box.park()
        box.release()
        assert len(wakes) == again * parked
        box.release()
        assert len(wakes) == (again + 1) * parked
        assert box.park() == parked, "it has been woken, or is told now to look around"
        box.unpark()
        box.hold()
        box.release()
        assert len(wakes) == (again + 1) * parked, "nobody had to wait"
        assert box.park()
        box.unpark()


def test_data_does_not_wake_a_reader_that_may_not_take_it() -> None:
    box = mailbox()
    wakes: list[int] = []
    box.wake = lambda: wakes.append(1)
    box.hold()
    assert box.park()
    box.put("data", edge())
    assert wakes == []
    box.put("control", edge(Lane.CONTROL))
    assert wakes == [1]


def test_closing_gives_back_what_waits_and_takes_nothing_more() -> None:
    box = mailbox()
    for lane in Lane:
        box.put(lane, edge(lane))
    box.put_fenced("down", edge(Lane.SYSTEM))
    assert not box.close_if_empty()
    assert [entry[0] for entry in box.close()] == [*Lane, "down"]
    assert box.put("late", edge()) is Outcome.CLOSED
    assert not box.put_fenced("late", edge(Lane.SYSTEM))
    assert box.depths() == (0, 0, 0)


def test_a_mailbox_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="room"):
        mailbox(capacity=0)


@pytest.mark.parametrize("lane", Lane)
def test_a_simulated_mailbox_in_which_anything_waits_is_not_empty(lane: Lane) -> None:
    system = SimulatedSystem(Fair())
    system.spawn(Scribe(Journal()), "a")
    mailbox = system.drivers[0].cell.mailbox
    assert mailbox.is_empty()
    mailbox._lanes[lane].append(None)  # type: ignore[arg-type]
    assert not mailbox.is_empty()


@pytest.mark.parametrize("seed", range(20))
def test_what_waits_for_an_actor_elsewhere_goes_in_the_order_in_which_it_would_be_taken_here(seed: int) -> None:
    chance, rests = random.Random(seed), random.Random(seed)
    here, there = mailbox(), Outbox(100, Overflow.REJECT, lambda: None)
    edges = {box: [Edge("sender", lane, None) for lane in Lane] for box in (here, there)}
    num_taken, order = 0, list[Any]()
    for number in range(400):
        if chance.random() < 0.5:
            lane, fenced = chance.choice(list(Lane)), chance.random() < 0.1
            for box, ways in edges.items():
                box.put_fenced(number, ways[Lane.SYSTEM]) if fenced else box.put(number, ways[lane])
            continue
        for _ in range(rests.choice((1, 1, 3, 2 * BURST))):
            taken, sent = here.take(), there.next()
            assert (taken is None) == (sent is None)
            if taken is None or sent is None:
                break
            assert (taken[0], taken[1].lane, taken[2]) == (sent[0], sent[1].lane, sent[2])
            order.append(sent[0])
            if sent[1].lane == Lane.DATA:
                num_taken += 1
                there.credit(num_taken)
    assert len(order) > 150
    assert order != sorted(order)


class Walk:
    """Random life of three mailboxes that are written to from each other: what each call gives back, and what shows."""

    def __init__(self, make: Callable[[int, Overflow], Mailbox], seed: int) -> None:
        self.told, self._random = list[object](), random.Random(f"mailboxes {seed}")
        overflows = (Overflow.HOLD, Overflow.HOLD, Overflow.REJECT)
        self._boxes = [make(self._random.choice((1, 2, 5)), overflow) for overflow in overflows]
        self._waiting, self._holds = [False] * 3, list[Mailbox]()
        self._edges: dict[tuple[int, int, Lane], Edge] = {}
        for at, box in enumerate(self._boxes):
            box.wake = lambda at=at: self._woken(at)  # type: ignore[misc]
        self._flow = Flow("receiver", 5, lambda flow: self.told.append((flow.total(), flow.told)))
        for _ in range(400):
            at = self._random.randrange(3)
            acts = (self._reads,) * (not self._waiting[at]) * 8 + (self._writes,) * 8 + (self._others,)
            self.told.append(self._random.choice(acts)(self._boxes[at], at))
            self.told += [
                (box.depths(), [*box.taken], box.rejected, box.most_data, box.waits, self._waiting[at])
                for at, box in enumerate(self._boxes)
            ]

    def _woken(self, at: int) -> None:
        assert self._waiting[at], "it did not wait"
        self._waiting[at] = False

    def _writes(self, box: Mailbox, at: int) -> object:
        lane, sender = self._random.choice((Lane.DATA, Lane.DATA, *Lane)), self._random.randrange(4)
        key = (at, sender, lane)
        if key not in self._edges:
            behind = [*self._boxes, None][sender]
            inbound = sender == 3 and isinstance(box, LinkedMailbox)
            self._edges[key] = Inbound("else", lane, self._flow) if inbound else Edge(str(sender), lane, behind)
        edge, number = self._edges[key], len(self.told)
        if self._random.random() < 0.1:
            return box.put_fenced(number, edge)
        outcome = box.put(number, edge)
        if outcome is Outcome.HELD and edge.sender_mailbox is not None:
            # Whom it holds back may be let go before he hears of it.
            self._holds.append(edge.sender_mailbox)
        return outcome

    def _reads(self, box: Mailbox, at: int) -> object:
        entry = box.next() if isinstance(box, Outbox) else box.take()
        if entry is not None:
            return entry[0], entry[1].lane, entry[2]
        if isinstance(box, LinkedMailbox | Outbox) or self._random.random() < 0.7 or not box.postpone():
            self._waiting[at] = box.park()
            return self._waiting[at]
        return "postponed"

    def _others(self, box: Mailbox, at: int) -> object:
        match self._random.randrange(7):
            case 0 if self._waiting[at]:
                self._waiting[at] = False
                return box.unpark()
            case 1:
                box.nudge()
            case 2 if self._random.random() < 0.3:
                return box.close_if_empty()
            case 3 if self._random.random() < 0.1:
                left = box.close_sent() if isinstance(box, Outbox) else box.close()
                return [entry[0] for entry in left]
            case 4 | 5 if isinstance(box, Outbox):
                try:
                    return box.credit(box.taken[Lane.DATA] + self._random.randrange(-1, 3))
                except ValueError as error:
                    return str(error)
            case _:
                for held in self._holds:
                    held.hold()
                self._holds.clear()
        return None


@pytest.mark.parametrize(
    ("make", "digest"),
    [
        (Mailbox, "94b81679"),
        (LinkedMailbox, "d896eb15"),
        (lambda capacity, overflow: Outbox(capacity, overflow, lambda: None), "569dad0d"),
    ],
    ids=["mailbox", "linked", "outbox"],
)
def test_what_mailboxes_do_in_known_lives_stays_as_it_is(make: Callable[[int, Overflow], Mailbox], digest: str) -> None:
    lives = "\n".join(repr(Walk(make, seed).told) for seed in range(30))
    assert hashlib.blake2b(lives.encode(), digest_size=4).hexdigest() == digest
