"""The detokenizer and the grammar actor: an exception at any line costs one request at the most, and leaves nothing
behind."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np

from pawl.actors import detokenizer, grammar
from pawl.actors.detokenizer import Detokenizer
from pawl.actors.grammar import GrammarCompiler
from pawl.actors.messages.generate import (
    Accepted,
    Admitted,
    Ended,
    Opened,
    Outputs,
    StepTokens,
    TextOptions,
    Timing,
    Usage,
)
from pawl.actors.messages.grammar import Compile, Release
from pawl.actors.names import NAMES
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.text import stream
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.plain import Plain
from pawl.lifecycle.states import Cause
from pawl.loops.orders.grammars import GrammarFailed, GrammarReady
from pawl.loops.orders.requests import Abort, Finish
from tests.actors.raising import Strike, each_struck
from tests.actors.test_grammar import BAD, SOUND
from tests.actors.vocabularies import byte_level
from tests.gpu.grammar_tools import ghost_words

WORDS = ["hello", " world", "hell", "o", " wor", "ld"]


@cache
def ids() -> list[int]:
    """Of these words, each of which is one token."""
    found = [byte_level().encode(word, add_special=False).tolist() for word in WORDS]
    assert [len(each) for each in found] == [1] * len(WORDS)
    return [token for (token,) in found]


class Spoken:
    """Four requests of a detokenizer: one has its whole text, one finds its stop string, one is aborted, one is drained
    at the end. What it orders is done."""

    def __init__(self, strike: Strike) -> None:
        self.actor = Detokenizer(byte_level())
        self.context = ManualContext(self.actor, NAMES.detokenizer)
        self.text: defaultdict[int, str] = defaultdict(str)
        self.ends: defaultdict[int, list[Cause]] = defaultdict(list)
        self.accepted: list[int] = []
        self.rows: dict[int, int] = {}
        self._strike = strike
        for row, stop in enumerate(((), ("hell wor",), (), ("never",))):
            self.rows[row] = 10 + row
            prompt = np.arange(3, dtype=np.int32)
            self.tell(Opened(row, 10 + row, TextOptions(stop=stop), 3, prompt))
        self.steps({0: 0, 1: 2, 2: 1, 3: 3}, admitted=True)
        self.steps({0: 1, 1: 4, 2: 5, 3: 0})
        self.ends_with(2, Cause.CLIENT)
        self.steps({0: 3, 3: 1})
        self.ends_with(0, Cause.LENGTH)
        self.steps({3: 0})
        self.actor.stopped("over")
        self.hear()

    def steps(self, words: dict[int, int], *, admitted: bool = False) -> None:
        here = {row: ids()[word] for row, word in words.items() if row in self.rows}
        begun = tuple(Admitted(row, 0, Timing(0.0, 0.0)) for row in here) if admitted else ()
        drawn = np.array(list(here), np.int32), np.array(list(here.values()), np.int32)
        self.tell(StepTokens(*drawn, admitted=begun))

    def ends_with(self, row: int, cause: Cause, message: str = "") -> None:
        """The scheduler says the end of the request in this row."""
        request = self.rows.pop(row, None)
        if request is not None:
            end = Ended(row, request, cause, Usage(3, 1, 0), Timing(0.0), message)
            self.tell(StepTokens(np.zeros(0, np.int32), np.zeros(0, np.int32), ended=(end,)))

    def tell(self, message: Any) -> None:
        self._strike.deliver(self.actor, message)
        self.hear()

    def hear(self) -> None:
        for sent in self.context.take_sent():
            match sent.message:
                case Accepted(request=request):
                    self.accepted.append(request)
                case Outputs(outputs=outputs):
                    for each in outputs:
                        assert not self.ends[each.request], "an output behind the end"
                        self.text[each.request] += each.text
                        self.ends[each.request] += [each.done.cause] if each.done is not None else []
                case Finish(request=request):
                    self.ends_with(request - 10, Cause.STOP_STRING)
                case Abort(requests=(request,), cause=cause):
                    self.ends_with(request - 10, cause, "failed")


SPOKEN = {10: "hello worldo", 11: "", 12: " worldld", 13: "ohello worldhello"}
ENDS = {10: Cause.LENGTH, 11: Cause.STOP_STRING, 12: Cause.CLIENT, 13: Cause.DRAINED}


def test_an_exception_at_any_line_of_the_detokenizer_costs_one_request_at_the_most() -> None:
    whole = Spoken(Strike(()))
    assert (whole.text, whole.accepted) == (SPOKEN, [10, 11, 12, 13])
    assert whole.ends == {each: [ENDS[each]] for each in ENDS}
    tried = list(each_struck((detokenizer, stream), Spoken, said="16b4ac21"))
    assert len(tried) > 50
    for name, life in tried:
        failed = [request for request, causes in life.ends.items() if causes == [Cause.INTERNAL]]
        assert len(failed) <= 1, name
        assert all(len(life.ends[request]) == 1 for request in ENDS), f"{name}: {life.ends}"
        assert life.actor.num_open == 0, name
        for request in ENDS.keys() - {*failed}:
            assert (life.text[request], life.ends[request]) == (SPOKEN[request], [ENDS[request]]), name


class Compiled:
    """Four requests with grammars, one of which is none, and one of which ends before its turn."""

    def __init__(self, strike: Strike) -> None:
        self.grammars = Grammars("plain", Plain, ghost_words())
        self.actor = GrammarCompiler(self.grammars)
        self.context = ManualContext(self.actor, NAMES.grammar)
        self.told: defaultdict[int, list[type]] = defaultdict(list)
        self._strike = strike
        for request, asked in enumerate((SOUND, BAD, SOUND, SOUND), 1):
            self.tell(Compile(request, asked))
        self.tell(Release(3))
        for _ in range(6):
            self.turn()
        for request in (1, 2, 4):
            self.tell(Release(request))
        for _ in range(6):
            self.turn()

    def tell(self, message: Any) -> None:
        self._strike.deliver(self.actor, message)
        self._hear()

    def turn(self) -> None:
        """Nothing arrives meanwhile."""
        self._strike.settle(self.actor)
        self._hear()

    def _hear(self) -> None:
        for sent in self.context.take_sent():
            match sent.message:
                case GrammarReady(request=request) | GrammarFailed(request=request) | Abort(requests=(request,)):
                    self.told[request].append(type(sent.message))


ANSWERS = {1: GrammarReady, 2: GrammarFailed, 4: GrammarReady}


def test_an_exception_at_any_line_of_the_grammar_actor_costs_one_request_at_the_most() -> None:
    assert Compiled(Strike(())).told == {request: [kind] for request, kind in ANSWERS.items()}
    tried = list(each_struck((grammar,), Compiled, said="289c9f93"))
    assert len(tried) > 15
    for name, life in tried:
        assert all(len(life.told[request]) == 1 for request in ANSWERS), f"{name}: {life.told}"
        others = [request for request in life.told if life.told[request] != [ANSWERS.get(request)]]
        assert len(others) <= 1, f"{name}: {life.told}"
        assert (life.actor.num_open, life.grammars.num_held) == (0, 0), name
