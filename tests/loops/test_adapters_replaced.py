"""An adapter that has a number from outside, as each of several replicas has it, takes the place of one of its name."""

from __future__ import annotations

from pawl.lifecycle.machines.adapter import AdapterEvent
from pawl.loops.orders.adapters import LoadNumberedAdapter
from tests.loops.test_adapters import Server, said


def numbered(server: Server, name: str, number: int, source: str = "", *, pinned: bool = False) -> int:
    load = LoadNumberedAdapter(name=name, path=source or f"ghost:{name}", pinned=pinned, number=number)
    return server.deliver(load)


def read(server: Server) -> None:
    server.turn()
    server.answer_readings()


def test_one_that_is_ready_goes_when_its_last_request_has_ended() -> None:
    server = Server()
    numbered(server, "a", 7)
    read(server)
    request = server.ask_numbered(7, count=5)
    again = numbered(server, "a", 9, "ghost:b")
    assert server.adapters == {}, "the one before takes nobody any more"
    read(server)
    assert server.outcome_of[again].ok
    assert server.adapters == {"a": 9}
    server.serve()
    assert server.output_of[request] == said("ghost:a", 5)
    assert server.output_of[server.ask_and_serve(9)] == said("ghost:b")
    assert list(server.keeper.by_number) == [9]
    assert server.moves("a")[-3:] == [AdapterEvent.READ, AdapterEvent.LOADED, AdapterEvent.UNUSED]


def test_one_that_is_being_read_does_not_go() -> None:
    server = Server()
    numbered(server, "a", 7)
    assert "already loaded" in server.outcome_of[numbered(server, "a", 9)].message
    read(server)
    assert server.adapters == {"a": 7}


def test_its_pin_and_its_place_are_those_of_the_new_one() -> None:
    server = Server(max_loras=2, max_loaded_loras=1)
    numbered(server, "a", 7, pinned=True)
    read(server)
    again = numbered(server, "a", 9, pinned=True)
    read(server)
    server.turn()
    assert server.outcome_of[again].ok
    assert server.adapters == {"a": 9}
    assert list(server.keeper.by_number) == [9]


def test_those_that_rest_are_told_beside_those_that_are_listed() -> None:
    server = Server(max_loaded_loras=2)
    server.loaded("a", "b", "c")
    assert (list(server.adapters), server.resting) == (["b", "c"], ["a"])
    server.ask_numbered(1)
    assert (list(server.adapters), server.resting) == (["a", "c"], ["b"])
    server.unload("b")
    assert server.resting == []
