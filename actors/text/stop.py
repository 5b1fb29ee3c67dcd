"""Finds stop strings in text that arrives in pieces.

Which match counts is a property of the text alone, never of where the pieces were cut: the stop string that is complete
first, that is, whose end comes first; of several that end at the same character, the longest. So the text before the
match holds no stop string at all, and a stop is known with the very character that completes it: to prefer a match
that starts earlier but is not complete yet would mean to go on generating in order to find out.
"""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    """What one piece of text gave."""

    text: str
    """Safe to show: no stop string, and nothing that could still become part of one."""
    matched: str | None
    """The stop string that is complete. The matcher is then done; text behind the match is dropped."""


class StopMatcher:
    """Holds back the shortest tail of the text that could still become a stop string (less than the longest one)."""

    __slots__ = ("_first", "_held", "_include_stop", "_longest", "_stops")

    def __init__(self, stops: tuple[str, ...], include_stop: bool = False) -> None:
        """`include_stop` keeps the matched stop string at the end of the text. Empty stop strings are refused."""
        if not stops or not all(stops):
            raise ValueError("stop strings must not be empty")
        self._stops = stops
        self._include_stop = include_stop
        self._first = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops))
        self._held = ""

    def push(self, piece: str) -> Found:
        text = self._held + piece
        ends = [(start + len(stop), -len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, minus_length, stop = min(ends)
            self._held = ""
            return Found(text[: end if self._include_stop else end + minus_length], stop)
        cut = self._held_from(text)
        self._held = text[cut:]
        return Found(text[:cut], None)

    def flush(self) -> str:
        """The text held back, when the request ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _held_from(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)
