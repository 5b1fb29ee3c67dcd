"""What a property is: one class with one name, fed with every record in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import msgspec

from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.dispatch import KINDS, Dispatch, Kind, kind_of
from pawl.lifecycle.properties.dispatch import on as on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Record
from pawl.lifecycle.states import Event

ENDS = (Event.FINISH, Event.ABORT)
"""Events after which a request is no more."""


class Violation(msgspec.Struct, frozen=True):
    """A property does not hold."""

    property: str
    explanation: str
    record: int
    """Number of the record that shows it, counted from 0."""
    request: int | None = None
    """The request concerned, where there is one."""


Judge: TypeAlias = Callable[[Any, History], Sequence[Violation]]
"""Judges one record."""


class Property(Dispatch):
    """Something that must hold of every run.

    The same object judges a simulated run, a recorded one, and a live server: it sees records and nothing else. Its
    methods that are marked by `on` judge one record each, `history` has already taken it in; what no method takes does
    not concern it. A property that is to see everything overrides `observe` instead. A property may keep state of its
    own. It must not raise, and must not report what it cannot know.
    """

    name: ClassVar[str]
    """As it stands in reports, metrics and docs."""
    unjudged: str = ""
    """What it could not judge, and why, where a trace that is whole leaves that open."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        """Begin in the middle of a run, `history` has begun there already: see the start of the engine, and every
        arrival of a request that is live. A property that keeps more than these tell takes it from `beginning`."""
        known: tuple[Record, ...] = (beginning.started, *beginning.arrivals)
        return [violation for record in known for violation in self.observe(record, history)]

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        """Judge one record; `history` has already taken it in."""
        method = self.methods.get(kind_of(record))
        found: Sequence[Violation] = () if method is None else method(self, record, history)
        return found

    @classmethod
    def judges(cls) -> Mapping[Kind, Callable[..., Sequence[Violation]]]:
        """The kinds of records that concern it, each with the method that is to see them."""
        return cls.methods if cls.observe is Property.observe else dict.fromkeys(KINDS, cls.observe)

    def finish(self, history: History) -> Sequence[Violation]:
        """Judge the whole, after the last record of a complete trace."""
        return ()

    def broken_off(self, history: History) -> Sequence[Violation]:
        """Judge what there is of a trace that is not complete."""
        return ()

    def violation(self, history: History, explanation: str, request: int | None = None) -> Violation:
        """This property does not hold at the current record."""
        return Violation(self.name, explanation, history.number, request)
