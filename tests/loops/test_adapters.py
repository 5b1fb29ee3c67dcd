"""Adapters, given to a loop as a scheduler gives them: each request is computed with its own, and none shares pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from pawl.gpu.ghost.language import adapter_salt_of
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.step_runner import AdapterRefused
from pawl.lifecycle.machines.adapter import AdapterEvent, AdapterPhase
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.records import AdapterMoved
from pawl.lifecycle.states import Cause, State
from pawl.loops.adapters import CHANGED, Adapters
from pawl.loops.intake import Order, Outcome
from pawl.loops.orders.adapters import AdapterFailed, AdapterLoaded, LoadAdapter, UnloadAdapter
from pawl.loops.orders.memory import ReleaseMemory
from pawl.loops.pacing import PACINGS
from pawl.loops.residency import READING
from pawl.memory.prefix.namespace import namespace_of
from tests.loops.driver import Driver

PROMPT = list(range(1, 12))


class Server(Driver):
    """A driver whose ghost reads adapters, when a test lets it."""

    def __init__(self, **overrides: object) -> None:
        super().__init__(**{"max_loras": 2, "max_loaded_loras": 8} | overrides)
        self.number = 100
        self.full = False
        """Nothing can be sent."""

    def read(self, ticket: int, slot: int, source: str) -> None:
        self.send()
        super().read(ticket, slot, source)

    def answered(self, number: int, outcome: Outcome) -> None:
        self.send()
        super().answered(number, outcome)

    def send(self) -> None:
        if self.full:
            raise MemoryError

    def fail(self, does: Callable[[], object]) -> None:
        """Let the loop fail at what it sends, and recover."""
        self.full = True
        with pytest.raises(MemoryError):
            does()
        self.full = False
        self.keeper.recovered(self.now)

    @property
    def keeper(self) -> Adapters:
        assert self.intake.adapters is not None
        return self.intake.adapters

    def deliver(self, order: Order) -> int:
        """The number under which its outcome is told."""
        self.number += 1
        self.intake.deliver(order, self.now, self.number)
        return self.number

    def load(self, name: str, source: str = "", **fields: Any) -> int:
        return self.deliver(LoadAdapter(name=name, path=source or f"ghost:{name}", **fields))

    def unload(self, name: str) -> int:
        return self.deliver(UnloadAdapter(name))

    def turn(self) -> None:
        """Nothing but what a loop does when something has arrived."""
        self.now += 1.0
        self.intake.turn(self.now)

    def answer_readings(self) -> None:
        while self.readings:
            ticket, slot, source = self.readings.pop(0)
            try:
                order: Order = AdapterLoaded(ticket, self.ghost.load_adapter(slot, source))
            except AdapterRefused as refused:
                order = AdapterFailed(ticket, str(refused))
            self.deliver(order)

    def loaded(self, *names: str, **fields: Any) -> None:
        for name in names:
            number = self.load(name, **fields)
            self.turn()
            self.answer_readings()
            assert self.outcome_of[number].ok, self.outcome_of[number].message

    def ask(self, name: str = "", count: int = 8, **fields: Any) -> int:
        namespace = namespace_of(adapter=self.keeper.part(self.adapters[name] if name else 0))
        return self.submit(PROMPT, count, namespace=namespace, **fields)

    def ask_numbered(self, number: int, count: int = 8) -> int:
        """As of a client who knows it by this number."""
        return self.submit(PROMPT, count, namespace=namespace_of(adapter=self.keeper.part(number)))

    def ask_and_serve(self, number: int) -> int:
        """The same, at its end."""
        request = self.ask_numbered(number)
        self.serve()
        return request

    def serve(self) -> None:
        """Steps, and readings, until there is nothing to do."""
        while self.step() or self.readings:
            self.answer_readings()
        self.turn()

    def moves(self, name: str) -> list[AdapterEvent]:
        return [each.event for each in self.records if isinstance(each, AdapterMoved) and each.name == name]

    def state(self, request: int) -> State:
        return State(int(self.loop.table.state[self.loop.table.row_of[request]]))


def said(source: str, count: int = 8) -> list[int]:
    return expected(PROMPT, count, adapter_salt_of(source) if source else 0)


@pytest.mark.parametrize("pacing", PACINGS)
def test_requests_of_one_batch_are_computed_each_with_its_own_adapter(pacing: str) -> None:
    server = Server(pacing=pacing)
    server.loaded("a", "b")
    requests = {name: server.ask(name) for name in ("a", "", "b")}
    server.serve()
    for name, request in requests.items():
        assert server.output_of[request] == said(name and f"ghost:{name}")
        assert server.ending_of[request].info.num_cached == 0, "nobody begins with what another adapter computed"


def test_an_adapter_is_named_by_nobody_before_it_is_read_and_by_nobody_after_it_is_unloaded() -> None:
    server = Server()
    loading = server.load("a")
    assert server.adapters == {}
    server.turn()
    assert loading not in server.outcome_of
    server.answer_readings()
    assert server.outcome_of[loading].facts == {"loaded_adapters": {"a": "ghost:a"}}
    assert list(server.adapters) == ["a"]
    server.unload("a")
    assert server.adapters == {}
    moved = [each for each in server.records if isinstance(each, AdapterMoved)]
    assert [(each.event, each.slot, each.fingerprint) for each in moved] == [
        (AdapterEvent.READ, 1, ""),
        (AdapterEvent.LOADED, 1, "ghost:a"),
        (AdapterEvent.UNLOAD, 1, "ghost:a"),
    ]


def test_an_adapter_that_cannot_be_read_leaves_nothing_behind() -> None:
    server = Server()
    loading = server.load("a", "nowhere")
    server.turn()
    server.answer_readings()
    assert not server.outcome_of[loading].ok
    assert (server.keeper.by_number, server.adapters) == ({}, {})
    server.loaded("a")
    request = server.ask("a")
    server.serve()
    assert server.output_of[request] == said("ghost:a")


def test_news_of_a_reading_that_nobody_waits_for_is_passed_over() -> None:
    server = Server()
    server.loaded("a")
    count = len(server.records)
    server.deliver(AdapterFailed(99, "no such file"))
    server.deliver(AdapterLoaded(99, "ghost:b"))
    assert [type(record).__name__ for record in server.records[count:]] == ["Delivered"] * 2
    assert [adapter.phase for adapter in server.keeper.by_number.values()] == [AdapterPhase.READY]


def test_an_unload_is_over_when_the_last_request_that_named_it_has_ended() -> None:
    server = Server(max_running=1)
    server.loaded("a")
    first, second = server.ask("a"), server.ask("a")
    server.step()
    unloading = server.unload("a")
    server.loop.requests.abort(first, Cause.CLIENT, server.now)
    server.step()
    assert unloading not in server.outcome_of, "the second one waits, and counts"
    server.serve()
    assert server.outcome_of[unloading].ok
    assert server.output_of[second] == said("ghost:a")
    assert server.moves("a")[-2:] == [AdapterEvent.UNLOAD, AdapterEvent.UNUSED]


def test_the_slot_of_an_unloaded_adapter_is_nobody_elses_while_a_step_in_flight_computes_with_it() -> None:
    server = Server(pacing="overlap", max_loras=1)
    server.loaded("a")
    request = server.ask("a")
    server.turn()
    assert server.loop.in_flight
    unloading = server.unload("a")
    server.loop.requests.abort(request, Cause.CLIENT, server.now)
    server.load("b")
    server.turn()
    assert (server.readings, unloading in server.outcome_of) == ([], False)
    server.serve()
    assert server.outcome_of[unloading].ok
    assert "b" in server.adapters


def test_a_name_that_is_loaded_again_is_another_adapter_and_shares_no_page_with_the_one_before() -> None:
    server = Server()
    server.loaded("a")
    server.ask("a")
    server.serve()
    again = server.ask("a")
    server.serve()
    assert server.ending_of[again].info.num_cached > 0
    server.unload("a")
    server.turn()
    server.loaded("a")
    fresh = server.ask("a")
    server.serve()
    assert server.ending_of[fresh].info.num_cached == 0
    assert server.output_of[fresh] == said("ghost:a")


def test_who_names_an_adapter_that_is_being_unloaded_is_refused_with_the_names_that_are_loaded() -> None:
    server = Server()
    server.loaded("a", "b")
    number = server.adapters["a"]
    server.unload("a")
    request = server.submit(PROMPT, 4, namespace=namespace_of(adapter=server.keeper.part(number)))
    assert server.cause(request) is Cause.INVALID
    assert server.ending_of[request].message.endswith("loaded: b")


def test_more_adapters_than_slots_take_turns_and_each_is_read_again_when_it_is_needed() -> None:
    server = Server(max_loras=1)
    server.loaded("a", "b")
    assert [adapter.slot for adapter in server.keeper.by_number.values()] == [0, 1]
    requests = [server.ask(name) for name in ("a", "b", "a", "b")]
    server.turn()
    assert server.state(requests[0]) is State.QUEUED_LOADING
    server.serve()
    assert [server.output_of[request] for request in requests] == [said("ghost:a"), said("ghost:b")] * 2


def test_a_request_for_another_adapter_is_not_overtaken_for_ever() -> None:
    server = Server(max_loras=1)
    server.loaded("b", "a")
    running = server.ask("a", 60)
    server.step()
    waiting, later = server.ask("b", 2), server.ask("a", 2)
    server.serve()
    ends = list(server.ending_of)
    assert ends == [running, waiting, later]


def test_a_pinned_adapter_keeps_its_slot_and_one_slot_stays_free_of_pins() -> None:
    server = Server(max_loras=2)
    server.loaded("a", pinned=True)
    refused = server.load("c", pinned=True)
    assert "starvation" in server.outcome_of[refused].message
    server.loaded("b", "c")
    requests = [server.ask(name) for name in ("b", "c", "a")]
    server.serve()
    assert AdapterEvent.EVICTED not in server.moves("a")
    assert AdapterEvent.EVICTED in server.moves("b")
    assert [server.output_of[request] for request in requests] == [said(f"ghost:{name}") for name in "bca"]


def test_who_waits_for_a_slot_holds_up_nobody_whose_adapter_keeps_its_own() -> None:
    """Of two slots one is pinned: what is to come free is the other one, however long ago the pinned one was used."""
    server = Server()
    server.loaded("pinned", pinned=True)
    server.loaded("kept", "waited_for")
    server.ask("kept", 30)
    server.turn()
    server.answer_readings()
    server.step()
    waits, goes_on = server.ask("waited_for"), server.ask("pinned")
    server.step()
    assert server.state(waits) == State.QUEUED_LOADING
    assert server.state(goes_on).owns_memory
    server.serve()
    assert server.output_of[waits] == said("ghost:waited_for")
    assert server.output_of[goes_on] == said("ghost:pinned")


def test_an_adapter_whose_content_has_changed_is_not_served_for_the_one_that_was_loaded() -> None:
    server = Server(max_loras=1)
    server.loaded("a", "b")
    request = server.ask("a")
    server.turn()
    ((ticket, slot, _),) = server.readings
    server.readings.clear()
    server.deliver(AdapterLoaded(ticket, server.ghost.load_adapter(slot, "ghost:other")))
    assert (server.cause(request), CHANGED in server.ending_of[request].message) == (Cause.ADAPTER, True)
    again = server.ask("a")
    server.serve()
    assert server.output_of[again] == said("ghost:a"), "it stays loaded, and is read for who comes next"


def test_a_name_cannot_be_loaded_twice_or_unloaded_while_it_is_read() -> None:
    server = Server(max_loaded_loras=2)
    loading = server.load("a")
    twice, early, unknown = server.load("a"), server.unload("a"), server.unload("b")
    outcomes = [server.outcome_of[number] for number in (twice, early, unknown)]
    assert [outcome.ok for outcome in outcomes] == [False] * 3
    assert "already loaded" in outcomes[0].message
    server.turn()
    server.answer_readings()
    assert server.outcome_of[loading].ok


def test_where_as_many_are_loaded_as_may_be_the_one_used_the_longest_time_ago_makes_way_and_no_pinned_one() -> None:
    server = Server(max_loras=3, max_loaded_loras=3)
    server.loaded("a", pinned=True)
    server.loaded("b")
    server.loaded("c")
    server.ask("b")
    server.serve()
    server.loaded("d")
    assert [adapter.name for adapter in server.keeper.named()] == ["a", "b", "d"]
    assert AdapterEvent.MADE_WAY in server.moves("c")


def test_a_load_that_fails_costs_no_other_adapter_its_place() -> None:
    server = Server(max_loaded_loras=2)
    server.loaded("a", "b")
    loading = server.load("c", "nowhere")
    server.turn()
    server.answer_readings()
    assert not server.outcome_of[loading].ok
    assert list(server.adapters) == ["a", "b"]


def test_those_that_are_being_loaded_count_and_each_takes_one_place() -> None:
    server = Server(max_loaded_loras=2)
    server.loaded("a", "b")
    server.load("c")
    server.load("d")
    assert "unload one first" in server.outcome_of[server.load("e")].message
    server.turn()
    server.answer_readings()
    assert list(server.adapters) == ["c", "d"]


def test_a_load_is_refused_where_none_of_those_that_are_loaded_may_go() -> None:
    server = Server(max_loaded_loras=2)
    server.loaded("a", pinned=True)
    server.load("b")
    assert "unload one first" in server.outcome_of[server.load("c")].message


def test_a_snapshot_holds_adapters_that_are_read_and_that_are_unloaded() -> None:
    server, other = Server(), Server()
    server.loaded("a")
    server.load("b")
    server.turn()
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(server.keeper.snapshot()))
    other.keeper.restore(plain)
    other.readings = list(server.readings)
    other.answer_readings()
    assert [adapter.phase for adapter in other.keeper.by_number.values()] == [AdapterPhase.READY] * 2
    assert other.keeper.part(1) == server.keeper.part(1)


def test_what_was_being_read_when_the_loop_failed_is_read_again_and_the_first_answer_is_late() -> None:
    server = Server()
    loading = server.load("a")
    server.turn()
    late = server.readings.pop()
    server.keeper.recovered(server.now)
    server.deliver(AdapterLoaded(late[0], "ghost:a"))
    assert loading not in server.outcome_of
    server.answer_readings()
    assert server.outcome_of[loading].ok


def test_an_adapter_whose_reading_was_never_asked_for_is_not_computed_with_after_a_failure() -> None:
    server = Server()
    server.load("a")
    server.fail(server.turn)
    (adapter,) = server.keeper.by_number.values()
    assert (adapter.slot, adapter.resident) == (server.readings[0][1], False)
    server.answer_readings()
    assert adapter.resident


def test_nobody_waits_for_ever_whose_answer_was_lost_to_a_failure() -> None:
    server = Server()
    server.load("a")
    server.turn()
    server.fail(server.answer_readings)
    assert (server.intake.owed, list(server.adapters)) == (set(), ["a"])
    server.load("b", "nowhere")
    server.turn()
    server.fail(server.answer_readings)
    server.unload("a")
    server.fail(server.turn)
    assert (server.intake.owed, server.keeper.by_number) == (set(), {})


def test_weights_are_not_released_under_an_adapter_that_is_being_read_and_a_release_waits_for_it() -> None:
    server = Server()
    server.load("a")
    server.turn()
    refused = server.deliver(ReleaseMemory((MemoryTag.WEIGHTS,), timeout_s=0))
    waiting = server.deliver(ReleaseMemory((MemoryTag.WEIGHTS,)))
    assert server.outcome_of[refused].message == READING
    assert (list(server.intake.waiting), server.intake.memory.move) == ([waiting], None)
    server.answer_readings()
    server.turn()
    move = server.intake.memory.move
    assert move is not None
    assert move.asker == waiting


@pytest.mark.parametrize("tags", [(MemoryTag.WEIGHTS,), None])
@pytest.mark.parametrize("release_first", [True, False])
def test_no_adapter_is_read_while_the_weights_are_released(
    release_first: bool, tags: tuple[MemoryTag, ...] | None
) -> None:
    server = Server()
    release, load = partial(server.deliver, ReleaseMemory(tags)), partial(server.load, "a")
    for give in (release, load) if release_first else (load, release):
        give()
    assert server.loop.released == {*(tags or MemoryTag)}
    server.turn()
    assert server.readings == []
    server.loop.released = frozenset()
    server.turn()
    assert len(server.readings) == 1


@pytest.mark.parametrize("order", [LoadAdapter(name="a", path="ghost:a"), UnloadAdapter("a")])
def test_an_engine_without_slots_says_how_to_have_some(order: Order) -> None:
    driver = Driver()
    driver.intake.deliver(order, 0.0, 1)
    assert "--enable-lora" in driver.outcome_of[1].message


def test_no_more_stay_loaded_than_may_be_where_the_loop_fails_as_one_more_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(max_loras=3, max_loaded_loras=2)
    server.loaded("a", "b")
    number = server.load("c")
    server.turn()

    def fails(now: float) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(server.keeper, "_make_room", fails)
        with pytest.raises(MemoryError):
            server.answer_readings()
    server.keeper.recovered(server.now)
    assert [adapter.name for adapter in server.keeper.named()] == ["b", "c"]
    assert server.outcome_of[number].ok
