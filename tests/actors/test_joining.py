"""Replicas that are told what the others know before they take part."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from pawl.actors.joining import Joining
from pawl.actors.messages.control import Reply, Stalled
from pawl.actors.messages.generate import Opened, TextOptions
from pawl.actors.messages.replicas import Parted
from pawl.actors.names import names_of
from pawl.actors.routed import Replica
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.loops.orders.adapters import LoadNumberedAdapter, UnloadAdapter
from pawl.loops.orders.limits import SetState
from pawl.loops.orders.memory import ReleaseMemory, ResumeMemory
from pawl.loops.orders.serving import Pause


class Questions:
    """Answers when a test says so."""

    def __init__(self) -> None:
        self.present = SimpleNamespace(untellable="")
        self.num_lasting = 0
        self.told: list[tuple[int, Any]] = []
        self.waiting: dict[int, Callable[[Reply], object]] = {}

    def tell(self, replica: Replica, order: Any, answered: Callable[[Reply], object]) -> None:
        self.told.append((replica.number, order))
        self.waiting[replica.number] = answered

    def waits_for(self, number: int) -> bool:
        return number in self.waiting

    def answer(self, number: int, *, ok: bool = True) -> None:
        self.waiting.pop(number)(Reply(0, ok, "words"))


class Bench:
    def __init__(self, *numbers: int, orders: tuple[Any, ...] = ()) -> None:
        self.questions, self.up, self.refused = Questions(), list[int](), list[tuple[int, str]]()
        self.joining = Joining(
            self.questions,  # type: ignore[arg-type]
            self._up,
            self._refused,
        )
        for number in numbers:
            self.joining.begin(Replica(names_of(number)), list(orders))

    def _up(self, replica: Replica) -> None:
        self.up.append(replica.number)
        self.joining.forget(replica)

    def _refused(self, replica: Replica, why: str) -> None:
        self.refused.append((replica.number, why))
        self.joining.forget(replica)


ORDERS = (SetState(max_running=2), Pause())


def test_each_order_is_told_when_the_one_before_is_answered_and_then_it_takes_part() -> None:
    bench = Bench(3, orders=ORDERS)
    assert bench.questions.told == [(3, ORDERS[0])]
    bench.questions.answer(3)
    bench.joining.ordered(ORDERS[0])  # the others have carried it out meanwhile
    # At once: what it is at may need this to end.
    assert bench.questions.told == [(3, ORDERS[0]), (3, ORDERS[1]), (3, ORDERS[0])]
    assert (bench.up, list(bench.joining.replicas)) == ([], [3])
    bench.questions.answer(3)
    assert (bench.up, list(bench.joining.replicas)) == ([3], [])


def test_what_is_ordered_while_others_are_to_be_told_comes_behind_these() -> None:
    bench = Bench(3, orders=ORDERS)
    for order in (LOAD, UNLOAD):
        bench.joining.ordered(order)
        bench.joining.ordered(None)
    assert bench.questions.told == [(3, ORDERS[0])]
    while 3 in bench.questions.waiting:
        bench.questions.answer(3)
    assert [order for _, order in bench.questions.told] == [*ORDERS, LOAD, UNLOAD]
    assert bench.up == [3]


def test_nobody_takes_part_while_the_others_are_at_something_that_is_to_be_told() -> None:
    bench = Bench()
    bench.questions.num_lasting = 1
    bench.joining.begin(Replica(names_of(3)), [])
    assert (bench.up, bench.questions.told) == ([], [])
    bench.questions.num_lasting = 0
    bench.joining.ordered(Pause())
    assert bench.questions.told == [(3, Pause())]
    bench.questions.answer(3)
    bench.joining.begin(Replica(names_of(4)), [])
    assert bench.up == [3, 4]
    bench.questions.num_lasting = 1
    bench.joining.begin(Replica(names_of(5)), [])
    bench.questions.num_lasting = 0
    bench.joining.ordered(None)  # the others have refused it
    assert bench.up == [3, 4, 5]


RELEASE, RESUME = ReleaseMemory(tags=(MemoryTag.CUDA_GRAPH,)), ResumeMemory(tags=(MemoryTag.CUDA_GRAPH,))
LOAD, UNLOAD = LoadNumberedAdapter(name="x", path="disk:x", number=1), UnloadAdapter(name="x")


def test_memory_is_had_again_before_what_waits_for_it_is_answered() -> None:
    bench = Bench(3, orders=(RELEASE, LOAD, UNLOAD))
    bench.questions.answer(3)
    bench.joining.ordered(RESUME)  # the load waits for it
    assert [order for _, order in bench.questions.told] == [RELEASE, LOAD, RESUME]
    while 3 in bench.questions.waiting:
        bench.questions.answer(3)
    assert (bench.up, bench.refused) == ([3], [])


def test_memory_is_had_again_once_it_is_released_and_not_meanwhile() -> None:
    bench = Bench(3, orders=(RELEASE, LOAD))
    bench.joining.ordered(RESUME)
    assert bench.questions.told == [(3, RELEASE)]
    bench.questions.answer(3)
    assert bench.questions.told == [(3, RELEASE), (3, RESUME)]
    bench.joining.ordered(RELEASE)  # behind the load, as all orders are
    bench.questions.answer(3)
    bench.questions.answer(3)
    assert [order for _, order in bench.questions.told] == [RELEASE, RESUME, LOAD, RELEASE]


def test_what_the_others_have_again_is_not_released_first() -> None:
    both = ReleaseMemory(tags=(MemoryTag.WEIGHTS, MemoryTag.CUDA_GRAPH))
    bench = Bench(3, 4, orders=(LOAD, both, LOAD))
    bench.joining.ordered(RESUME)
    bench.questions.answer(3)
    assert bench.questions.told[2:] == [(3, ReleaseMemory(tags=(MemoryTag.WEIGHTS,)))]
    bench.joining.ordered(ResumeMemory())
    bench.questions.answer(4)
    assert bench.questions.told[3:] == [(4, LOAD)]
    bench.questions.answer(4)
    assert bench.up == [4]


def test_once_the_others_have_what_cannot_be_told_all_that_join_are_refused() -> None:
    bench = Bench(3, 4, orders=ORDERS)
    bench.questions.present.untellable = "weights were sent"
    bench.joining.ordered(Pause())
    assert bench.refused == [(3, "weights were sent"), (4, "weights were sent")]
    bench.joining.begin(Replica(names_of(5)), [])
    assert bench.refused[2:] == [(5, "weights were sent")]
    told = list(bench.questions.told)
    bench.questions.answer(3)
    assert (bench.questions.told, bench.up, list(bench.joining.replicas)) == (told, [], [])


def test_who_refuses_an_order_is_refused_with_its_words_and_who_is_gone_is_none_of_these() -> None:
    bench = Bench(3, 4, 5, orders=ORDERS)
    bench.questions.answer(3, ok=False)
    assert bench.refused == [(3, "words")]
    for _ in range(2):
        bench.joining.forget(Replica(names_of(4)))
        assert list(bench.joining.replicas) == [5]
    bench.joining.stopped()
    bench.questions.answer(5)
    assert (bench.up, len(bench.questions.told)) == ([], 3)


def test_it_is_heard_before_it_takes_part() -> None:
    bench = Bench(3, orders=ORDERS)
    assert bench.joining.hears(Stalled(2.0, replica=3))
    assert bench.joining.replicas[3].pace == Stalled(2.0, replica=3)
    assert not bench.joining.hears(Stalled(2.0, replica=4))
    assert not bench.joining.hears(Reply(1, True))


def test_rows_of_any_number_are_kept_apart() -> None:
    replica = Replica(names_of(0))
    for row in (3, 63, 64, 65, 500, 7):
        replica.holds(row, 1000 + row)
    held = {row: stream for row, stream in enumerate(replica.streams.tolist()) if stream >= 0}
    assert held == {row: 1000 + row for row in (3, 7, 63, 64, 65, 500)}


def test_what_one_that_joins_says_of_itself_is_heard_and_nothing_else() -> None:
    bench = Bench(3, orders=ORDERS)
    for message, heard in ((Stalled(1.0, replica=3), True), (Stalled(1.0, replica=4), False), (Parted(3), False)):
        assert bench.joining.hears(message) is heard
    assert not bench.joining.hears(Opened(0, 1, TextOptions(), 0, np.zeros(0, np.int32), replica=3))
    assert bench.joining.replicas[3].pace == Stalled(1.0, replica=3)


def test_all_who_wait_for_what_the_others_are_at_take_part_when_that_is_over() -> None:
    bench = Bench()
    bench.questions.num_lasting = 1
    for number in (3, 4, 5):
        bench.joining.begin(Replica(names_of(number)), [])
    bench.questions.num_lasting = 0
    bench.joining.ordered(Pause())
    assert bench.questions.told == [(number, Pause()) for number in (3, 4, 5)]
    for number in (4, 3, 5):
        bench.questions.answer(number)
    assert bench.up == [4, 3, 5]


def test_who_was_only_to_release_what_the_others_have_again_takes_part_at_once() -> None:
    bench = Bench(3, orders=(Pause(), ReleaseMemory(tags=(MemoryTag.WEIGHTS,))))
    bench.questions.waiting.clear()  # the answer to the first order is lost on its way
    bench.joining.ordered(ResumeMemory((MemoryTag.WEIGHTS,)))
    assert (bench.questions.told, bench.up) == ([(3, Pause())], [3])
    bench = Bench(3, orders=(Pause(), ReleaseMemory(tags=(MemoryTag.WEIGHTS,)), SetState(max_running=2)))
    bench.joining.ordered(ResumeMemory((MemoryTag.WEIGHTS,)))
    assert (bench.questions.told, bench.up) == ([(3, Pause())], [])
    bench.questions.answer(3)
    bench.questions.answer(3)
    assert (bench.questions.told[1:], bench.up) == ([(3, SetState(max_running=2))], [3])
