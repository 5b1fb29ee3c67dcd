"""The grammar actor: each Compile has one answer unless it was released before; nothing is held for a request that has
ended."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.grammar import BROKEN, GrammarCompiler
from pawl.actors.messages.grammar import Compile, Release
from pawl.actors.names import NAMES
from pawl.actors.runtime.actor import Actor
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.simulation.strategies.simple import Fair
from pawl.actors.simulation.system import SimulatedSystem
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.plain import Plain
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.states import Cause
from pawl.loops.orders.grammars import GrammarFailed, GrammarReady
from pawl.loops.orders.requests import Abort
from tests.gpu.grammar_tools import ghost_words

SOUND, BAD = Grammar(GrammarKind.REGEX, "ab"), Grammar(GrammarKind.REGEX, "(")


class Failing(Plain):
    """A backend with a defect, for one grammar."""

    def compile(self, grammar: Grammar) -> Any:
        if grammar.text == "defect":
            raise RuntimeError("a defect")
        return super().compile(grammar)


@pytest.fixture
def grammars() -> Grammars:
    return Grammars("plain", Failing, ghost_words())


@pytest.fixture
def actor(grammars: Grammars) -> GrammarCompiler:
    return GrammarCompiler(grammars)


@pytest.fixture
def context(actor: GrammarCompiler) -> ManualContext:
    return ManualContext(actor, NAMES.grammar)


def answers(context: ManualContext) -> list[Any]:
    """What it tells until it has nothing more to do, with nothing arriving meanwhile."""
    actor, going = context._actor, True
    while going:
        try:
            going = bool(actor.settled())
        except Exception as error:
            going = actor.spares(None, error)
    return [sent.message for sent in context.take_sent() if sent.to == NAMES.scheduler]


def test_each_request_is_answered_once_in_order_of_arrival(actor: GrammarCompiler, context: ManualContext) -> None:
    for request, grammar in ((1, SOUND), (2, BAD), (3, SOUND)):
        actor.receive(Compile(request, grammar))
    ready, failed, again = answers(context)
    assert (ready, again) == (GrammarReady(1), GrammarReady(3))
    assert isinstance(failed, GrammarFailed)
    assert failed.message == "the regex is not valid: a parenthesis is not closed at character 1"


def test_a_grammar_is_held_while_its_requests_live(
    actor: GrammarCompiler, context: ManualContext, grammars: Grammars
) -> None:
    for request in (1, 2):
        actor.receive(Compile(request, SOUND))
    answers(context)
    assert (grammars.num_held, actor.num_open) == (2, 2)
    actor.receive(Release(1))
    assert grammars.num_held == 1
    actor.receive(Release(2))
    assert (grammars.num_held, actor.num_open) == (0, 0)


def test_a_request_that_ends_while_its_grammar_waits_is_not_compiled_for(
    actor: GrammarCompiler, context: ManualContext, grammars: Grammars
) -> None:
    actor.receive(Compile(1, SOUND))
    actor.receive(Release(1))
    assert answers(context) == []
    assert (grammars.num_held, actor.num_open) == (0, 0)


def test_a_release_of_what_was_refused_changes_nothing(
    actor: GrammarCompiler, context: ManualContext, grammars: Grammars
) -> None:
    actor.receive(Compile(1, BAD))
    answers(context)
    actor.receive(Release(1))
    assert (grammars.num_held, actor.num_open) == (0, 0)


def test_a_defect_ends_its_request_with_cause_internal_and_nobody_elses(
    actor: GrammarCompiler, context: ManualContext
) -> None:
    actor.receive(Compile(1, Grammar(GrammarKind.REGEX, "defect")))
    actor.receive(Compile(2, SOUND))
    assert answers(context) == [Abort((1,), Cause.INTERNAL, BROKEN), GrammarReady(2)]
    assert actor.num_contained == 1


def test_eager_grammars_are_prepared_when_the_actor_starts_and_a_failure_is_survived() -> None:
    made: list[str] = []

    def make(words: Any) -> Plain:
        made.append("made")
        if len(made) == 1:
            raise OSError("no library")
        return Plain(words)

    actor = GrammarCompiler(Grammars("plain", make, ghost_words(), eager=True))
    context = ManualContext(actor, NAMES.grammar)
    assert made == ["made"]
    actor.receive(Compile(1, SOUND))
    assert answers(context) == [GrammarReady(1)]


@pytest.mark.parametrize("handler", ["receive", "_release", "settled"])
def test_whatever_fails_the_next_request_has_its_answer_and_nothing_stays_held(
    handler: str, actor: GrammarCompiler, context: ManualContext, grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = getattr(GrammarCompiler, handler), 0

    def fails_first(self: GrammarCompiler, *what: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a defect")
        return whole(self, *what)

    monkeypatch.setattr(GrammarCompiler, handler, fails_first)
    for message in (Compile(1, SOUND), Compile(2, SOUND), Release(1), Compile(3, SOUND)):
        context.deliver(message)
    told = answers(context)
    for request in (1, 2, 3):
        context.deliver(Release(request))
    expected: dict[str, list[Any]] = {
        "receive": [Abort((1,), Cause.INTERNAL, BROKEN), GrammarReady(2), GrammarReady(3)],
        "_release": [GrammarReady(2), GrammarReady(3)],
        "settled": [Abort((2,), Cause.INTERNAL, BROKEN), GrammarReady(3)],
    }
    assert told == expected[handler]
    assert (grammars.num_held, actor.num_open, actor.num_contained) == (0, 0, 1)


class Client(Actor):
    """Asks for a grammar for each of four requests, three of which leave while the first is compiled."""

    accepts = GrammarReady | GrammarFailed

    def __init__(self) -> None:
        self.heard: list[int] = []

    def started(self) -> None:
        for request in (1, 2, 3, 4):
            self.context.send(NAMES.grammar, Compile(request, Grammar(GrammarKind.REGEX, "ab" * request)))

    def receive(self, message: GrammarReady | GrammarFailed) -> None:
        self.heard.append(message.request)

    def leave(self) -> None:
        for request in (1, 2, 3):
            self.context.send(NAMES.grammar, Release(request))


def test_what_is_released_while_another_one_is_compiled_is_not_compiled_any_more() -> None:
    client, compiled = Client(), list[str]()

    class Slow(Plain):
        def compile(self, grammar: Grammar) -> Any:
            if not compiled:
                client.leave()
            compiled.append(grammar.text)
            return super().compile(grammar)

    system = SimulatedSystem(Fair())
    system.spawn(GrammarCompiler(Grammars("plain", Slow, ghost_words())), NAMES.grammar)
    system.spawn(client, NAMES.scheduler)
    system.start()
    system.run()
    assert (compiled, client.heard) == (["ab", "abababab"], [1, 4])
