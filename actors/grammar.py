"""The grammar actor compiles grammars while their requests wait, and keeps them while these live.

    scheduler ──Compile──► grammar ──GrammarReady, GrammarFailed──► scheduler      scheduler ──Release──► grammar

What it compiles lies in `Grammars`, where workers of the same process find it.
"""

from __future__ import annotations

from typing import Any

from pawl.actors.messages.grammar import Compile, Release, ToGrammar
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.gpu.grammars.base import GrammarRefused
from pawl.gpu.grammars.cache import Grammars
from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.states import Cause
from pawl.loops.orders.grammars import GrammarFailed, GrammarReady
from pawl.loops.orders.requests import Abort

BROKEN = "the server failed to compile the grammar of this request"


class GrammarCompiler(Actor):
    """One job at a time, in order of arrival."""

    accepts = ToGrammar

    def __init__(self, grammars: Grammars, names: Names = NAMES) -> None:
        self._names = names
        self._grammars = grammars
        self._waiting: dict[int, Grammar] = {}
        """request -> its grammar, not compiled yet."""
        self._held: dict[int, Grammar] = {}

    @property
    def num_open(self) -> int:
        """Requests whose grammars are waited for, or held."""
        return len(self._waiting) + len(self._held)

    def started(self) -> None:
        if not self._grammars.eager:
            return
        try:
            self._grammars.prepare()
        except Exception as error:  # the first request with a grammar is told, too
            self.told_of(error)

    def receive(self, message: Any) -> None:
        match message:
            case Compile(request, grammar):
                self._waiting[request] = grammar
            case Release(request):
                self._release(request)

    def settled(self) -> bool:
        """What has arrived is known, so the oldest grammar that still matters is next. Not at once two: what arrives
        meanwhile may release some."""
        for request in list(self._waiting)[:1]:
            self._compile(request)
        return bool(self._waiting)

    def spares(self, message: Any, error: Exception) -> bool:
        match message:
            case Compile(request):
                self.contain(request, error)
            case Release(request):
                self.told_of(error)
                self._release(request)
            case _:
                for request in list(self._waiting)[:1]:
                    self.contain(request, error)
        return True

    def _release(self, request: int) -> None:
        self._waiting.pop(request, None)
        if request in self._held:
            self._grammars.release(self._held.pop(request))

    def end_request(self, request: int) -> None:
        self._answer(request, Abort((request,), Cause.INTERNAL, BROKEN))

    def _compile(self, request: int) -> None:
        try:
            self._held[request] = self._grammars.hold(self._waiting[request])
        except GrammarRefused as error:
            self._answer(request, GrammarFailed(request, str(error)))
        except Exception as error:
            self.contain(request, error)
        else:
            self._answer(request, GrammarReady(request))

    def stopped(self, reason: str) -> None:
        """The scheduler, which stops earlier, has ended every request."""

    def _answer(self, request: int, order: GrammarReady | GrammarFailed | Abort) -> None:
        # In one line: who has an answer is owed none, wherever something fails.
        _ = self.context.send(self._names.scheduler, order, Lane.CONTROL), self._waiting.pop(request, None)
