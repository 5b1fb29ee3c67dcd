"""A subject whose calls are guarded, looked at and remembered: what it raises, and nonsense that it returns, is told as
its own fault, and a run can be told again as a script."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pawl.testing.expectations import PropertyFailed
from pawl.testing.subject import checks, watchdog
from pawl.testing.subject.checks import checked_accounting, checked_outputs, checked_step
from pawl.testing.subject.port import (
    Abort,
    Accounting,
    Apply,
    Call,
    Flush,
    Lost,
    Made,
    Output,
    Refused,
    Request,
    Schedule,
    Settings,
    Step,
    Subject,
    Submit,
    Tokens,
)
from pawl.testing.subject.telling import in_words, output_in_words, step_in_words
from pawl.testing.subject.watchdog import Hung, limited, note, pressed

T = TypeVar("T")
LIMIT_S = 5.0
"""Seconds after which a call counts as hanging."""
FRAMES = 4
"""Of the subject's traceback, told to a person."""


class GuardedSubject:
    """The port, for a subject that may do anything. Every method raises PropertyFailed; `submit` also Refused."""

    def __init__(self, kind: type[Subject], settings: Settings, limit_s: float = LIMIT_S) -> None:
        self.calls: list[tuple[Call, str]] = []
        """In order, each with what came of it in words."""
        self._limit_s = limit_s
        self._steps: dict[int, Step] = {}
        """Number -> step as the subject returned it, which it gets back."""
        self._kind, self._settings = kind, settings
        self._subject: Subject

    def make(self) -> None:
        """The first call."""
        self.calls.append((Made(self._settings), ""))
        # A protocol says nothing about how it is made.
        make: Any = self._kind
        self._subject = self._guard("__init__", lambda: make(self._settings))

    def submit(self, request: Request) -> None:
        self._call(Submit(request))
        self._guard("submit", lambda: self._subject.submit(request))

    def abort(self, request: int) -> None:
        self._call(Abort(request))
        self._guard("abort", lambda: self._subject.abort(request))

    def schedule(self, number: int, known: Iterable[int]) -> Step | None:
        """The step that gets this number, with plain tuples in it."""
        self._call(Schedule(number))
        returned = self._guard("schedule", self._subject.schedule)
        if returned is None:
            self._came("there is nothing to do")
            return None
        step = self._guard("schedule", lambda: checked_step(returned, known))
        self._steps[number] = returned
        self._came(step_in_words(step))
        return step

    def apply(self, number: int, tokens: Tokens, known: Iterable[int]) -> list[Output]:
        self._call(Apply(number, tokens))
        step, given = self._steps.pop(number), dict(tokens)
        returned = self._guard("apply", lambda: self._subject.apply(step, given))
        if given != tokens:
            words = f"apply changed the tokens that it was given: {dict(tokens)} became {given}"
            raise PropertyFailed("well_formed", words)
        outputs = self._guard("apply", lambda: checked_outputs(returned, known))
        self._came("; ".join(map(output_in_words, outputs)) or "nobody is told anything")
        return outputs

    def lost(self, number: int) -> None:
        self._call(Lost(number))
        step = self._steps.pop(number)
        self._guard("lost", lambda: self._subject.lost(step))

    def flush(self) -> bool:
        self._call(Flush())
        done = bool(self._guard("flush", self._subject.flush))
        self._came("done" if done else "not now")
        return done

    def pages(self) -> Accounting | None:
        returned = self._guard("pages", self._subject.pages)
        return None if returned is None else self._guard("pages", lambda: checked_accounting(returned))

    def _call(self, call: Call) -> None:
        self.calls.append((call, ""))
        note(f"\n  {in_words(call)}")

    def _came(self, words: str) -> None:
        self.calls[-1] = self.calls[-1][0], words
        note(f": {words}")

    def _guard(self, verb: str, call: Callable[[], T]) -> T:
        try:
            with limited(self._limit_s, call=verb):
                return call()
        except PropertyFailed:
            raise
        except Hung as error:
            words = f"{verb} does not return{_frames(error)}"
            raise PropertyFailed("returns", words) from None
        except BaseException as error:
            if pressed(error) or (verb == "submit" and isinstance(error, Refused)):
                raise
            # Whatever it is, a SystemExit say, it ends this run and not the exploration.
            words = f"{verb} raised {type(error).__name__}: {_said(error)}{_frames(error)}"
            raise PropertyFailed("raises_nothing", words) from error


def _said(error: BaseException) -> str:
    try:
        return f"{error!s:.300}"
    except Exception:
        return "its __str__ raises, too"


def _frames(error: BaseException) -> str:
    """The subject's own lines, the last ones."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in _OURS]
    return "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames[-FRAMES:])


_OURS = frozenset({__file__, checks.__file__, watchdog.__file__})
