"""Adapters that make way for others rest: whoever names one finds it, as often as they take turns."""

from __future__ import annotations

import pytest

from pawl.lifecycle.machines.adapter import AdapterEvent
from pawl.lifecycle.states import Cause
from pawl.loops import adapters
from pawl.loops.pacing import PACINGS
from tests.loops.test_adapters import Server, said


def test_a_request_that_was_on_its_way_when_its_adapter_made_way_is_served_and_another_one_rests() -> None:
    server = Server(max_loaded_loras=2)
    server.loaded("a", "b")
    numbers = dict(server.adapters)
    server.loaded("c")
    assert list(server.adapters) == ["b", "c"]
    request = server.ask_numbered(numbers["a"])
    assert list(server.adapters) == ["a", "c"], "nobody has used the second since"
    server.serve()
    assert server.output_of[request] == said("ghost:a")
    assert AdapterEvent.MADE_WAY in server.moves("b")


@pytest.mark.parametrize("pacing", PACINGS)
def test_with_more_adapters_in_use_than_may_be_loaded_nobody_comes_too_late(pacing: str) -> None:
    server = Server(max_loaded_loras=2, pacing=pacing)
    names = "abcdefgh"
    server.loaded(*names)
    numbers = {adapter.name: adapter.number for adapter in server.keeper.by_number.values()}
    assert list(numbers) == list(names)
    asked = [(name, server.ask_numbered(numbers[name])) for name in 3 * names]
    server.serve()
    for name, request in asked:
        assert server.output_of[request] == said(f"ghost:{name}")
    assert {len(server.keeper.named()), len(server.keeper.by_number)} == {2, 8}
    server.keeper.check()


def test_an_adapter_that_rests_keeps_its_slot_until_another_needs_it() -> None:
    server = Server(max_loras=3, max_loaded_loras=3)
    server.loaded("a", "b", "c")
    numbers = dict(server.adapters)
    server.load("d")
    server.turn()
    server.answer_readings()
    server.serve()
    assert server.output_of[server.ask_and_serve(numbers["b"])] == said("ghost:b")
    assert server.moves("b") == [AdapterEvent.READ, AdapterEvent.LOADED], "it was not read again"


def test_a_name_that_is_loaded_anew_forgets_the_one_that_rests() -> None:
    server = Server(max_loaded_loras=2)
    server.loaded("a", "b")
    numbers = dict(server.adapters)
    server.loaded("c")
    loading = server.load("a", "ghost:d")
    request = server.ask_numbered(numbers["a"])
    assert "is not loaded any more" in server.ending_of[request].message
    server.turn()
    server.answer_readings()
    assert server.outcome_of[loading].ok
    assert [adapter.name for adapter in server.keeper.by_number.values()] == ["b", "c", "a"]
    assert server.output_of[server.ask_and_serve(server.adapters["a"])] == said("ghost:d")


def test_one_that_rests_is_unloaded_as_any_other() -> None:
    server = Server(max_loaded_loras=2)
    server.loaded("a", "b")
    numbers = dict(server.adapters)
    server.loaded("c")
    unloading = server.unload("a")
    server.turn()
    assert server.outcome_of[unloading].ok
    request = server.ask_numbered(numbers["a"])
    assert server.ending_of[request].cause is Cause.INVALID
    assert "'a' is not loaded" in server.outcome_of[server.unload("a")].message


def test_of_more_than_are_remembered_the_one_used_the_longest_time_ago_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapters, "MOST_RESTING", 2)
    server = Server(max_loaded_loras=2)
    server.loaded(*"abcd")
    request = server.ask_numbered(1, count=20)
    server.loaded(*"efghij")
    server.turn()
    assert [adapter.name for adapter in server.keeper.by_number.values()] == ["a", "g", "h", "i", "j"]
    server.serve()
    assert server.output_of[request] == said("ghost:a", 20), "who has named it is served"
    assert [adapter.name for adapter in server.keeper.by_number.values()] == ["g", "h", "i", "j"]
