"""An exception at any line of any handler ends at most one request, and the engine serves on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from msgspec import structs

from pawl.actors.askers import Askers
from pawl.actors.control.adapters import LoadAdapter, UnloadAdapter
from pawl.actors.control.serving import PauseGeneration
from pawl.actors.control.sessions import OpenSessionByName
from pawl.actors.control.state import GetState
from pawl.actors.runtime.cell import Cell
from pawl.actors.scheduler import Scheduler
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk, Strategy
from pawl.actors.storage import Storage
from pawl.actors.worker import Worker
from pawl.features.request import BAD_GRAMMAR
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.memory import ReleaseMemory, ResumeMemory
from pawl.loops.orders.weights import UpdateWeights
from pawl.loops.recovery import recover
from pawl.loops.requests import Requests
from pawl.memory.page_pool import PagePool
from pawl.testing.injection import INJECTED, Place, inject, places_of
from pawl.testing.lines import lines_that_raise
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control, Workload
from tests.mutants.mutant import Edit, Group, Mutant, planted

Ways = Callable[[int], Strategy]

NUM_SAMPLED = 30
NIGHTLY = settings().max_examples > 1000


def workload(**shape: object) -> Workload:
    """Requests that share a prefix, stop at strings, want scores, hang up, and come late: the last two must be served
    whatever happened before them. There are too few pages for all."""
    arrivals = (
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=4),
        Arrival(prompt=(1, 2, 3, 4, 6, 7), max_new_tokens=5, stop_after=3),
        Arrival(prompt=(9, 8, 7), max_new_tokens=6, seed=5, top_logprobs=2, prompt_logprobs=True),
        Arrival(prompt=(4, 4), max_new_tokens=5, leaves_after=2),
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=3, after_tokens=8),
        Arrival(prompt=(3, 3, 3), max_new_tokens=2, after_tokens=20),
    )
    return Workload(arrivals=arrivals, shape=Shape(**{"prefill_chunk": 4, **shape}))  # type: ignore[arg-type]


def sampled(places: list[Place], count: int = NUM_SAMPLED) -> list[Place]:
    """Some of them; at night all."""
    return places if NIGHTLY else random.Random(1).sample(places, min(count, len(places)))


def broken(places: list[Place], seed: int, asked: Workload | None = None) -> list[str]:
    """What does not hold after an exception at some hit of each place."""
    found, chance = [], random.Random(seed)
    asked = asked or workload()
    for place in places:
        hit = chance.choice((1, place.hits, chance.randint(1, place.hits)))
        result = inject(asked, place, hit, chance.choice(INJECTED))
        if result.error is not None:
            found.append(f"{place}, hit {hit}: {type(result.error).__name__}: {result.error}")
    return found


def test_an_exception_at_any_of_a_sample_of_lines_ends_at_most_one_request() -> None:
    places = list(places_of(workload()))
    assert len({place.file.split("/")[0] for place in places}) >= 3
    assert broken(sampled(places), 1) == []


def test_an_exception_at_any_of_a_sample_of_lines_about_grammars_ends_at_most_one_request() -> None:
    places = [place for place in places_of(with_grammars()) if "grammar" in f"{place.file} {place.function}".lower()]
    assert len({place.file for place in places}) >= 3
    assert broken(sampled(places), 1, with_grammars()) == []


@pytest.mark.parametrize("strategy", [lambda seed: Fair(), lambda seed: RandomWalk(5)], ids=["in-order", "overtaken"])
def test_a_request_that_cannot_be_taken_has_one_end_and_leaves_nothing_behind(strategy: Ways) -> None:
    turns = [Arrival(prompt=(number,), max_new_tokens=3, session=True) for number in (1, 2)]
    gone, other = (
        Arrival(prompt=(5, 6, 7, 8, 9), max_new_tokens=4, leaves_after=0),
        Arrival(prompt=(1,), max_new_tokens=2),
    )
    opens = Control(body=OpenSessionByName(capacity=60, session_id="session", streaming=False))
    shape = Shape(prefill_chunk=4, mailbox=1, short=3)
    asked = Workload(arrivals=(*turns, gone, other), shape=shape, controls=(opens,))
    places = [place for place in places_of(asked, strategy) if place.function == "Intake.submit"]
    tried = [(place, hit + 1) for place in places for hit in range(place.hits)]
    results = {(place, hit): inject(asked, place, hit, strategy=strategy) for place, hit in tried}
    assert [(str(place), hit, result.error) for (place, hit), result in results.items() if result.error] == []
    assert len(tried) > 20
    assert all(result.struck for result in results.values())


HALF_DONE = {
    "a failure behind an end is taken for one before it": (
        Edit(Requests.touched_others, "self.recorded == row or ", ""),
        "RequestTable.free",
        3,
    ),
    "who gave way is not known to be recorded": (
        Edit(Requests.gave_way, "each.recorded = True", "pass"),
        "Ledger.discard",
        1,
    ),
    "who gave way is said to be recorded before it is": (
        Edit(Requests.gave_way, "self.retracted(", "each.recorded = True; self.retracted("),
        "Requests.retracted",
        1,
    ),
    "pages are counted as waiting before anything will free them": (
        Edit(
            PagePool._give_back,
            "self._ledger.after(fence, self._undefer, pages, waits)\n    self.deferred += len(pages)",
            "self.deferred += len(pages)\n    self._ledger.after(fence, self._undefer, pages, waits)",
        ),
        "Ledger.after",
        4,
    ),
}


@pytest.mark.parametrize(("edit", "function", "hit"), HALF_DONE.values(), ids=list(HALF_DONE))
def test_what_was_half_done_when_it_failed_is_known(edit: Edit, function: str, hit: int) -> None:
    asked = with_grammars()
    places = [place for place in places_of(asked) if place.function == function and place.hits >= hit]
    assert [result.error for place in places if (result := inject(asked, place, hit)).error] == []
    with planted(without(edit)):
        assert any(inject(asked, place, hit).error for place in places)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_exception_at_any_line_with_grammars_ends_at_most_one_request(seed: int) -> None:
    assert broken(list(places_of(with_grammars())), seed, with_grammars()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_exception_at_any_line_ends_at_most_one_request(seed: int) -> None:
    assert broken(list(places_of(workload())), seed) == []


def test_an_exception_at_any_line_of_an_update_of_the_weights_leaves_an_engine_that_serves() -> None:
    update = Control(body=UpdateWeights(model_path="ghost:a", weight_version="a"), after_tokens=6)
    asked = structs.replace(workload(), controls=(update,))
    files = "loops/weights.py", "loops/orders/weights.py", "actors/stager.py", "actors/weight_client.py"
    functions = "Worker._swap", "Worker.receive", "Scheduler.receive"
    places = [place for place in places_of(asked) if place.file in files or place.function in functions]
    assert {place.file for place in places} >= {*files, "actors/worker.py", "actors/scheduler.py"}
    assert broken(sampled(places), 0, asked) == []


@pytest.mark.slow
def test_an_exception_at_any_line_of_a_release_leaves_an_engine_that_serves() -> None:
    release = Control(body=ReleaseMemory(), after_tokens=6, undo_s=0.5)
    again = Control(body=ResumeMemory(), at_s=3.0)  # what could not be resumed stays released until it is
    pause = Control(body=PauseGeneration("retract"), after_tokens=5)
    asked = structs.replace(workload(), controls=(pause, release, again))
    files = "loops/residency.py", "loops/orders/memory.py", "actors/memory_client.py"
    places = [place for place in places_of(asked) if place.file in files or place.function == "Worker._move"]
    assert {place.file for place in places} == {*files, "actors/worker.py"}
    assert broken(sampled(places), 0, asked) == []


def with_adapters() -> Workload:
    """Adapters take turns in one slot, one cannot be read, one is unloaded, and one takes the place of another."""
    arrivals = (
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=4),
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=6, adapter="x", at_s=0.5),
        Arrival(prompt=(9, 8, 7), max_new_tokens=6, adapter="y", at_s=0.5),
        Arrival(prompt=(3, 3, 3), max_new_tokens=2, at_s=3.0),
        Arrival(prompt=(3, 3, 3), max_new_tokens=3, adapter="y", at_s=3.0),
    )
    loads = {
        0.1: ("x", "ghost:a"),
        0.2: ("y", "ghost:b"),
        0.3: ("z", "nowhere"),
        4.0: ("x", "ghost:a"),
        5.0: ("z", "ghost:c"),
    }
    controls = (
        *(Control(body=LoadAdapter(name=name, path=path), at_s=at_s) for at_s, (name, path) in loads.items()),
        Control(body=UnloadAdapter("x"), at_s=1.5),
    )
    return Workload(arrivals=arrivals, controls=controls, shape=Shape(prefill_chunk=4, max_loras=1, max_loaded_loras=2))


@pytest.mark.slow
def test_an_exception_at_any_line_about_adapters_leaves_an_engine_that_serves() -> None:
    asked, files = with_adapters(), ("loops/adapters.py", "loops/orders/adapters.py", "actors/adapter_client.py")
    places = [place for place in places_of(asked) if place.file in files]
    assert {place.file for place in places} == set(files)
    assert broken(sampled(places), 0, asked) == []


@pytest.mark.slow
def test_an_exception_at_any_line_of_a_second_pool_ends_at_most_one_request() -> None:
    asked = workload(window=4, num_window_pages=6, num_pages=10)
    places = [place for place in places_of(asked) if place.file.startswith("memory/window")]
    assert len(places) > 50
    assert broken(places, 0, asked) == []


def with_drafts() -> Workload:
    """Drafts that are right, wrong, and half right."""
    arrivals = (
        Arrival(prompt=(97, 97, 97), max_new_tokens=10, logit_bias=((97, 60.0),), top_logprobs=1),
        Arrival(prompt=(97, 98, 97, 98), max_new_tokens=6),
        Arrival(prompt=(97, 97, 98), max_new_tokens=7, seed=3, logit_bias=((97, 60.0), (98, 60.0)), after_tokens=4),
    )
    shape = Shape(num_pages=14, prefill_chunk=8, speculate="ngram", num_speculative_tokens=3, checkpoint_bytes=2000)
    return Workload(arrivals=arrivals, shape=shape)


DRAFTS = ("loops/speculation", "loops/runs", "loops/loop", "memory/trim")


def test_an_exception_at_a_line_of_drafts_ends_at_most_one_request_and_usage_is_what_was_recorded() -> None:
    places = [place for place in places_of(with_drafts()) if place.file.startswith(DRAFTS)]
    assert len({place.file for place in places}) == len(DRAFTS)
    assert broken(sampled(places), 1, with_drafts()) == []


def with_tiers() -> Workload:
    """Pages go down to host memory and to files and come up again, the engine is asked for its state, and its cache is
    emptied at rest."""
    long, other, third = ((base + 1, 2, 3, 4, 5, 6, 7, 8) for base in (0, 10, 20))
    arrivals = (
        Arrival(prompt=long, max_new_tokens=3),
        Arrival(prompt=other, max_new_tokens=3, after_tokens=3),
        Arrival(prompt=third, max_new_tokens=5, leaves_after=2, after_tokens=6),
        Arrival(prompt=long, max_new_tokens=3, after_tokens=8),
        Arrival(prompt=other, max_new_tokens=3, after_tokens=9),
        Arrival(prompt=(9, 8, 7), max_new_tokens=6, timeout_s=0.5, after_tokens=10),
        Arrival(prompt=third, max_new_tokens=2, after_tokens=14),
        Arrival(prompt=long, max_new_tokens=2, after_tokens=20),
    )
    controls = (
        Control(body=GetState(detail=True), after_tokens=7),
        Control(body=FlushCache(timeout_s=1.0), after_tokens=16),
    )
    shape = Shape(prefill_chunk=4, host_pages=8, storage_pages=12)
    return Workload(arrivals=arrivals, controls=controls, shape=shape)


def with_grammars() -> Workload:
    """Requests wait for their grammars, one of which is none; some leave, and memory is taken from some."""
    regexes = ("[a-e]{1,3}", "(ab|c)*d?", "(e |t)+")
    short, other, long = (Grammar(GrammarKind.REGEX, regex) for regex in regexes)
    arrivals = (
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=4, grammar=short),
        Arrival(prompt=(1, 2, 3, 4, 6, 7), max_new_tokens=5),
        Arrival(prompt=(9, 8, 7), max_new_tokens=6, grammar=other, leaves_after=0),
        Arrival(prompt=(4, 4), max_new_tokens=5, grammar=long, leaves_after=2),
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=3, after_tokens=4, grammar=short),
        Arrival(prompt=(1, 2, 3), max_new_tokens=3, after_tokens=5, grammar=BAD_GRAMMAR),
        Arrival(prompt=(3, 3, 3), max_new_tokens=2, after_tokens=10),
    )
    return Workload(arrivals=arrivals, shape=Shape(prefill_chunk=4))


TIERS = ("actors/tiers/", "actors/storage", "loops/lower_tiers", "loops/fetching", "loops/saving", "memory/tiers/")
ORDERS = ("actors/control/", "loops/orders/", "loops/intake", "loops/loop")


def test_an_exception_at_any_of_a_sample_of_lines_of_tiers_and_orders_ends_at_most_one_request() -> None:
    places = [place for place in places_of(with_tiers()) if place.file.startswith(TIERS + ORDERS)]
    assert {place.file for place in places} > {"actors/storage.py", "loops/saving.py", "loops/orders/cache.py"}
    assert broken(sampled(places), 1, with_tiers()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_exception_at_any_line_of_tiers_and_orders_ends_at_most_one_request(seed: int) -> None:
    places = [place for place in places_of(with_tiers()) if place.file.startswith(TIERS + ORDERS)]
    assert broken(places, seed, with_tiers()) == []


CONTAINMENT = (
    Edit(Cell._contained, "if actor is None or not isinstance(error, Exception):", "if True:"),
    Edit(recover, "loop.memory.replace(loop.fresh_memory(), written)", "pass"),
)


@pytest.mark.parametrize("edit", CONTAINMENT, ids=["nothing is contained", "memory is believed"])
def test_a_server_without_its_containment_is_found_out(edit: Edit) -> None:
    places = [place for place in places_of(workload()) if place.function == "RequestTable.complete"]
    with planted(without(edit)):
        assert broken(places, 0) != []


BESIDE_REQUESTS = {
    "an answer about a grammar is lost": (
        Edit(Scheduler.requests_of, " | GrammarReady() | GrammarFailed()", ""),
        "Requests.grammar_ready",
    ),
    "who gave an order that failed waits": (
        Edit(
            Askers.failed,
            "self._end(self._waiting.keys() - owed - {number for _, number, _ in self._untold}, message)",
            "pass",
        ),
        "Loop.flush",
    ),
    "a save that failed is not answered": (
        Edit(Worker.spares, "self._mover.failed(message)", "pass"),
        "PageCopier.save",
    ),
    "a fetch that failed is not answered": (
        Edit(Storage.spares, "self._fill(ticket, pages, np.empty((0, 0), np.uint8), after)", "pass"),
        "TierStore.read",
    ),
}


@pytest.mark.parametrize(("edit", "function"), BESIDE_REQUESTS.values(), ids=list(BESIDE_REQUESTS))
def test_tiers_and_orders_without_their_containment_are_found_out(edit: Edit, function: str) -> None:
    asked = with_grammars() if "grammar" in function else with_tiers()
    places = [place for place in places_of(asked) if place.function == function]
    with planted(without(edit)):
        assert broken(places, 0, asked) != []


def without(edit: Edit) -> Mutant:
    return Mutant("uncontained", Group.LIFECYCLE, "fault_isolation", "", "an exception takes others along", (edit,))


def test_lines_that_only_move_what_is_at_hand_raise_nothing() -> None:
    def moves(box: Place) -> Place:
        return box

    def calls(box: Place) -> str:
        return str(box)

    assert len(lines_that_raise(moves.__code__)) == 0
    assert len(lines_that_raise(calls.__code__)) == 1
