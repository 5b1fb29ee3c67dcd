"""What a reply is made of, and how it is told from the text of a model while that still comes."""

from __future__ import annotations

from itertools import groupby
from typing import Protocol, TypeAlias

import msgspec


class Content(msgspec.Struct, frozen=True):
    """New text for the user."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """New text that the model wrote for itself."""

    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """The model calls the tool `name`; it is call `index` of the reply."""

    index: int
    name: str


class Arguments(msgspec.Struct, frozen=True):
    """More of the arguments of call `index`, JSON as the model writes it."""

    index: int
    text: str


Event: TypeAlias = Content | Reasoning | CallBegin | Arguments


class Parser(Protocol):
    """A fold over the text of one reply. However the text is cut, the events are the same once their texts are joined,
    and no text makes it raise."""

    def push(self, text: str) -> list[Event]:
        """What `text`, which follows all before, makes known."""

    def close(self) -> list[Event]:
        """What was held back, now that no text follows."""


class Collected:
    """Events of one push, made a character at a time."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        """All so far, the texts of neighbours of one kind joined."""
        events, self._events = self._events, []
        joined: list[Event] = []
        for _, group in groupby(events, _what):
            joined.append(_join(list(group)))
        return joined


def _what(event: Event) -> tuple[object, ...]:
    index = event.index if isinstance(event, CallBegin | Arguments) else 0
    return type(event), index


def _join(events: list[Event]) -> Event:
    first = events[0]
    if isinstance(first, CallBegin) or len(events) == 1:
        return first
    text = "".join(event.text for event in events if not isinstance(event, CallBegin))
    return msgspec.structs.replace(first, text=text)
