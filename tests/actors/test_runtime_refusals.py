"""What an actor, a process or a simulation cannot do is refused where it is asked for; and what is bounded stays so."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec.json
import numpy as np
import pytest

from pawl.actors import placement
from pawl.actors.codec import make_codec
from pawl.actors.control_row import not_a_question
from pawl.actors.expert_recorder import ExpertRecorder, WrongState
from pawl.actors.gathering import _merged
from pawl.actors.grammar_fields import _text, tag_grammar
from pawl.actors.names import DECODE, FRONT, NAMES, PREFILL, UNIFIED, is_behind_router, names_of
from pawl.actors.placement import Load, PrefixAffinity
from pawl.actors.present import Present
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.local import OUTSIDE, LocalSystem
from pawl.actors.runtime.processes.frames import Beat, Credit, Malformed, _checksum, read
from pawl.actors.simulation.choice import Choices, Kind, Replay, Value
from pawl.actors.simulation.faults import FaultBudget, FaultKind, Faults
from pawl.actors.simulation.strategies.simple import Fair, Guided
from pawl.actors.simulation.system import SimulatedSystem
from pawl.actors.text.conversion import UnsupportedVocabulary, _sentencepiece
from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.vocabulary import Vocabulary
from pawl.actors.tiers.shared_pages import SharedMemory, SharedPages, SharedReader, shared_reader
from pawl.loops.orders.cache import FlushCache
from tests.actors.conformance_base import Journal, Scribe
from tests.actors.memory_wires import MemoryWire, TwoProcesses
from tests.actors.vocabularies import byte_level_metadata


class Counter:
    """Counts no experts."""

    def start(self) -> None: ...


def _twice(start: Callable[[], object]) -> None:
    start()
    start()


def _watching(watcher: str, watched: str) -> None:
    system = LocalSystem()
    system.spawn(Scribe(Journal()), "a")
    system.watch(watcher, watched)


def _behind_the_last() -> None:
    choices = Choices()
    choices.add(Kind.NEXT, 0, "a")
    saved = msgspec.json.decode(choices.encode())
    Choices.decode(msgspec.json.encode(saved | {"indices": [[1, 1]]}))


def _no_such_option() -> None:
    class Beyond:
        def choose(self, kind: Kind, options: Any) -> int:
            return len(options)

    options = [Value(name, (name, 0), name, "x", False) for name in "ab"]
    SimulatedSystem(Beyond())._decide(Kind.NEXT, options)


def _header_that_is_no_word() -> None:
    body = b"\xc1"
    read([_checksum(body, ()).to_bytes(4, "little") + body])


def _other_secret() -> None:
    pages = SharedPages(1, 8, bytes(16))
    memory = SharedMemory(os.getpid(), pages.memory.handle, bytes(range(16)))
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", lambda: 1)
        SharedReader(memory)


def _no_memory_files() -> None:
    with pytest.MonkeyPatch.context() as system:
        system.delattr(os, "memfd_create")
        SharedPages(1, 8, bytes(16))


def _two_links() -> None:
    TwoProcesses().connect().a.connect("b", MemoryWire())


def _credited(receiver: str) -> None:
    (link,) = TwoProcesses().connect().a.links.values()
    link._credited(Credit(receiver, 1))


def _flow_of_nobody() -> None:
    (link,) = TwoProcesses().connect().a.links.values()
    link._flow("z")


def _deep() -> Any:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"": value}
    return value


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "an order as a question": (lambda: not_a_question(None, FlushCache()), TypeError, "a FlushCache is an order"),  # type: ignore[arg-type]
    "an order of nobody": (lambda: Present().done(Beat()), TypeError, "nobody knows what a Beat comes to"),
    "a second record": (lambda: _twice(ExpertRecorder(Counter()).start), WrongState, "recorded already"),  # type: ignore[arg-type]
    "a tag that is a list": (lambda: tag_grammar("[]", "tag"), InvalidRequest, "tag must be an object"),
    "a second start": (lambda: _twice(LocalSystem().start), RuntimeError, "started already"),
    "a name that an actor has": (
        lambda: _twice(partial(LocalSystem().spawn, Scribe(Journal()), "a")),
        ValueError,
        "'a' alr",
    ),
    "the name of the outside": (
        lambda: LocalSystem().spawn(Scribe(Journal()), OUTSIDE),
        ValueError,
        "there is an actor 'outside' already",
    ),
    "a watch of nobody": (lambda: _watching("a", "z"), KeyError, "z"),
    "a watch by nobody": (lambda: _watching("z", "a"), KeyError, "z"),
    "a second link": (_two_links, ValueError, "there is a link to 'b' already"),
    "a header that is no word": (_header_that_is_no_word, Malformed, "."),
    "credit for nobody": (lambda: _credited("z"), Malformed, "credit for an actor that there is not"),
    "news of nobody": (_flow_of_nobody, Malformed, "about an actor that there is not"),
    "a grammar without end": (lambda: _text(_deep(), "schema"), InvalidRequest, "schema is nested too deeply"),
    "pages of another secret": (_other_secret, OSError, "not the pages that were offered"),
    "a system without memory files": (_no_memory_files, OSError, "this system has no memory files"),
    "a decision after the last": (_behind_the_last, ValueError, "a decision behind the last one"),
    "an option that there is not": (_no_such_option, IndexError, "Beyond chose 2 of 2 options"),
    "a fault more": (lambda: FaultBudget(Faults()).spend(FaultKind.CRASH, "x"), ValueError, "no crash is left"),
    "pieces without scores": (
        lambda: _sentencepiece({"tokenizer.ggml.scores": [0.0]}, ["a", "b"], [1, 1]),
        UnsupportedVocabulary,
        "no score for each token",
    ),
    "pages of this process": (
        lambda: SharedReader(SharedPages(1, 8, bytes(16)).memory),
        OSError,
        "this process itself",
    ),
    "memory of another kind": (lambda: shared_reader(None, 8), OSError, "memory of that kind"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_done_is_refused(what: str) -> None:
    ask, error, words = REFUSALS[what]
    with pytest.raises(error, match=words):
        ask()


def test_choices_are_the_same_as_choices_alone_and_end_fairly() -> None:
    choices = Choices()
    assert choices.__eq__([]) is NotImplemented
    assert Replay(choices).choose(Kind.NEXT, [Value("a", ("a", 0), "a", "x", False)] * 2) == 0


@pytest.mark.parametrize("place", range(3))
def test_a_recorded_choice_is_found_by_its_name_at_whatever_place_it_stands(place: int) -> None:
    choices, names = Choices(), ["x", "y", "z"]
    choices.add(Kind.PICK, 2, "recorded")
    names[place] = "recorded"
    options = [Value(name, (name, 0), name, "", False) for name in names]
    assert Replay(choices).choose(Kind.PICK, options) == place


def test_a_guided_strategy_tells_the_other_one_of_its_own_schedules_alone() -> None:
    heard: list[object] = []

    class Heard(Fair):
        def reached(self, state: Any) -> None:
            heard.append(state)

        def ended(self, choices: Choices) -> None:
            heard.append("ended")

    guided = Guided(["a"], Heard())
    for name in ("guide", "other"):
        assert guided.begin()
        guided.reached(name)
        guided.ended(Choices())
    assert heard == ["other", "ended"]
    assert not guided.begin()


def test_a_table_of_texts_has_one_for_each_token() -> None:
    vocabulary = Vocabulary.from_gguf(byte_level_metadata())
    vocabulary.build_tables()
    vocabulary.visible_texts.pop()
    with pytest.raises(ValueError, match="the byte table has"):
        vocabulary.build_tables()


def test_prompts_that_were_met_are_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MOST_PREFIXES", 2)
    affinity = PrefixAffinity(1)
    affinity.place(np.arange(5, dtype=np.int32), "", [Load(0, 0, 0)])
    assert len(affinity._seen) == 2


def test_facts_of_several_are_one_where_all_say_so() -> None:
    assert [_merged(values, ()) for values in ([True, False], [True, True], [1, 2], ["a", "b", "a"])] == [
        False,
        True,
        3,
        "a | b",
    ]


def test_names_of_one_of_several_are_told_from_those_of_the_only_one() -> None:
    behind = names_of(3, PREFILL)
    assert is_behind_router(behind.scheduler)
    assert is_behind_router(behind.gateway)
    assert not any(map(is_behind_router, ("scheduler", "gateway", "router", "gateway.3")))
    assert all(names_of(3, role).routed for role in (UNIFIED, PREFILL, DECODE))
    assert not NAMES.routed
    assert not FRONT.routed


@pytest.mark.parametrize("codec", [None, make_codec])
def test_a_message_that_an_actor_does_not_accept_is_a_dead_letter_in_a_simulation_too(codec: Any) -> None:
    system = SimulatedSystem(Fair(), make_codec=codec)
    system.spawn(Scribe(Journal()), "a")
    system.start()
    assert not system.send("a", Beat())
    (letter,) = system.dead_letters.recent()
    assert (letter.to, letter.sender, letter.reason) == ("a", OUTSIDE, Reason.UNKNOWN_MESSAGE)
    assert letter.message == Beat()
