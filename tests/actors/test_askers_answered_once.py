"""Whoever answers and then fails has answered once: an exception at any line of storage, of the stager, of the groups
actor and of what tells who waits at the scheduler, also at those behind the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from pawl.actors import askers, stager, storage, weight_groups
from pawl.actors.askers import Askers
from pawl.actors.control import Ask
from pawl.actors.messages.adapters import EmptyAdapterSlot, ReadAdapter
from pawl.actors.messages.control import Reply
from pawl.actors.messages.execution import RunnerBack
from pawl.actors.messages.hand_over import Expect, HandedPages, PagesEnd, Received, Taken, TicketOver
from pawl.actors.messages.transfer import Blocks, Fetch, Fill, Saved
from pawl.actors.messages.weights import JoinGroup, ReceiveParts, Stage
from pawl.actors.names import NAMES
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.stager import Stager
from pawl.actors.storage import Storage
from pawl.actors.tiers.checksums import checksums
from pawl.actors.tiers.store import TierStore
from pawl.actors.weight_groups import Heard, Trainers, WeightGroups
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.step_runner import RunnerLost
from pawl.gpu.trainers.received import Received as ReceivedParts
from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.lifecycle.weight_source import FromDisk, FromMemory
from pawl.loops.intake import Outcome
from pawl.loops.orders.adapters import AdapterFailed, AdapterLoaded
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.weight_groups import GroupLost, GroupMet, PartsReceived
from pawl.loops.orders.weights import WeightsFailed, WeightsStaged
from pawl.memory.tiers.host import HostPool
from pawl.memory.tiers.keys import KEY_BYTES
from tests.actors.raising import Planted, Strike, each_struck

PAGE_BYTES = 32
PARTS = (TensorSpec("ghost.first", "uint64", (1,)),)


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


def pages(*values: int) -> np.ndarray:
    return np.stack([np.full(PAGE_BYTES, value, np.uint8) for value in values])


class Stored:
    """Pages that are kept, read, make way for others and come from a prefill replica."""

    def __init__(self, strike: Strike) -> None:
        actor = Storage(TierStore(HostPool(2, PAGE_BYTES), None, eager=True))
        context = ManualContext(actor, "storage")
        handed, data = (key(7),), pages(7)
        for message in (
            Blocks(1, (key(1), key(2)), pages(1, 2)),
            Blocks(2, (key(3),), pages(3)),  # one gives way
            Fetch(5, (key(3),), np.array([4], np.int32), 0),
            Fetch(6, (key(9),), np.array([4], np.int32), 0),  # is not there, which is said
            Expect(8, handed),
            HandedPages(8, "sender", 1, handed, checksums(handed, data), (data,)),
            PagesEnd(8, "sender", 3),
        ):
            strike.deliver(actor, message)
        self.idle = actor.incoming.idle
        told = [(sent.to, sent.message) for sent in context.take_sent()]
        self.answers = Counter[Any]()
        for _, message in told:
            match message:
                case Saved(number) | Fill(number) | Received(number):
                    self.answers[type(message), number] += 1
        self.sender_knows = {type(message) for to, message in told if to == "sender"}


def test_an_exception_at_any_line_of_storage_has_every_message_answered_once() -> None:
    due = {(Saved, 1), (Saved, 2), (Fill, 5), (Fill, 6), (Received, 8)}
    tried = list(each_struck((storage,), Stored, said="325e82e4"))
    assert len(tried) > 25
    for name, life in [("whole", Stored(Strike(()))), *tried]:
        assert life.answers == dict.fromkeys(due, 1), name
        # It waits for room until it hears that its pages are taken, or that nobody wants them.
        assert TicketOver in life.sender_knows, name
        assert life.sender_knows & {Taken, TicketOver}, name
        assert life.idle, name


class Losing(Ghost):
    """Is lost under the first adapter that it reads."""

    lost_now = True

    def load_adapter(self, slot: int, source: str) -> str:
        if self.lost_now:
            self.lost_now = False
            raise RunnerLost("a rank is gone")
        return super().load_adapter(slot, source)


class Staged:
    """Weights and adapters that are read while others wait, under a loss of what computes."""

    def __init__(self, strike: Strike) -> None:
        actor = Stager(Losing(num_pages=4, page_size=2, num_slots=2, max_context=8))
        context = ManualContext(actor, NAMES.stager)
        for message in (
            Stage(1, FromDisk("ghost:b")),
            ReadAdapter(2, 1, "ghost:a"),  # waits, and so does what comes behind it
            Stage(3, FromDisk("nowhere")),
            EmptyAdapterSlot(1),
            RunnerBack(),
            ReadAdapter(4, 1, "ghost:a"),
        ):
            strike.deliver(actor, message)
        strike.deliver(actor, RunnerBack())
        self.answers = Counter[int]()
        for sent in context.take_sent():
            match sent.message:
                case WeightsStaged(ticket) | WeightsFailed(ticket) | AdapterLoaded(ticket) | AdapterFailed(ticket):
                    self.answers[ticket] += 1


def test_an_exception_at_any_line_of_the_stager_has_every_order_answered_once() -> None:
    tried = list(each_struck((stager,), Staged, said="fbce6ca3"))
    assert len(tried) > 15
    for name, life in [("whole", Staged(Strike(()))), *tried]:
        assert life.answers == dict.fromkeys((1, 2, 3, 4), 1), f"{name}: {life.answers}"


def place(address: str) -> Place:
    return Place(group="group", address=address, port=1, rank=1, world_size=2, backend="gloo")


class Member:
    """Of a group; does nothing by itself."""

    def __init__(self, place: Place, limit_s: float, heard: Callable[[str], None]) -> None:
        self.here = True
        self.received = FromMemory(PARTS, (0, 8), np.zeros(8, np.uint8).data)

    def receive(self, specs: Sequence[TensorSpec], flat: bool) -> None:
        """What it is asked for comes as `Heard`."""

    def leave(self) -> None:
        self.here = False


class Grouped:
    """One group that meets and receives, and one of a foreign host."""

    def __init__(self, strike: Strike) -> None:
        members: list[Member] = []

        def make_member(*arguments: Any) -> Member:
            members.append(Member(*arguments))
            return members[-1]

        ghost = Ghost(num_pages=4, page_size=2, num_slots=2, max_context=8)
        actor = WeightGroups(ghost, ReceivedParts(), Trainers(make_member=make_member))
        context = ManualContext(actor, NAMES.groups)
        self.told: dict[int, list[type]] = {1: [], 2: []}
        for message in (
            JoinGroup(1, place("localhost")),
            JoinGroup(2, place("elsewhere")),
            Heard(1, ""),
            ReceiveParts(1, 3, PARTS, True),
            Heard(1, ""),
        ):
            strike.deliver(actor, message)
        for sent in context.take(NAMES.scheduler):
            self.told[sent.number].append(type(sent))
        actor.stopped("over")
        self.left = [member for member in members if member.here]


def test_an_exception_at_any_line_of_the_groups_actor_is_one_end_of_a_group_at_the_most_and_no_member_stays() -> None:
    whole = {1: [GroupMet, PartsReceived], 2: [GroupLost]}
    tried = list(each_struck((weight_groups,), Grouped, said="a7c69add"))
    assert len(tried) > 15
    for name, life in [("whole", Grouped(Strike(()))), *tried]:
        assert life.told[2] == [GroupLost], name
        cut = [life.told[1] == [*whole[1][:count], GroupLost] for count in range(2)]
        assert life.told[1] == whole[1] or any(cut), f"{name}: {life.told}"
        assert life.left == [], name


class Asked:
    """Three who ask: one is answered at once, one behind a step, one when everything stops."""

    def __init__(self, strike: Strike) -> None:
        self.told = Counter[int]()
        self._strike = strike
        self._askers = Askers(lambda _, reply: self._hear(reply))
        first, second, third = (Ask(ticket, FlushCache()) for ticket in (1, 2, 3))
        self._handle(first, lambda: self._ask(first, Outcome(True)))
        self._handle(second, lambda: self._ask(second, Outcome(True, after_steps=True)))
        self._handle(third, lambda: self._ask(third, None))
        self._handle(None, lambda: self._askers.settled(None))
        self._askers.stopped("over")

    def _hear(self, reply: Reply) -> None:
        self.told[reply.ticket] += 1

    def _ask(self, ask: Ask, outcome: Outcome | None) -> None:
        number = self._askers.open(ask)
        if outcome is not None:
            self._askers.answer(number, outcome, in_flight=1)

    def _handle(self, ask: Ask | None, do: Callable[[], None]) -> None:
        """As the scheduler does, whose own lines may fail behind these."""
        with suppress(Planted):
            try:
                self._strike.do(do)
            except Planted:
                self._askers.failed(ask, set(), "it failed")
                raise


def test_an_exception_at_any_line_of_who_waits_at_the_scheduler_costs_no_answer_and_makes_none_twice() -> None:
    tried = list(each_struck((askers,), Asked))
    assert len(tried) > 8
    for name, life in [("whole", Asked(Strike(()))), *tried]:
        assert life.told == {1: 1, 2: 1, 3: 1}, f"{name}: {life.told}"


def test_who_was_answered_before_its_message_failed_is_not_answered_again() -> None:
    told: list[bool] = []
    waiting = Askers(lambda _, reply: told.append(reply.ok))
    asked = Ask(1, FlushCache())
    waiting.answer(waiting.open(asked), Outcome(True), in_flight=None)
    waiting.failed(asked, set(), "a line behind it")
    assert told == [True]
