"""Regular expressions over ASCII as automata on bytes.

    a|b  ab  (a)  (?:a)  a*  a+  a?  a{2}  a{2,}  a{2,5}  [a-z]  [^a-z]  .  \\d \\w \\s \\D \\W \\S \\n \\t \\r  \\.

A dot and a negated class are of ASCII characters, a newline excepted; other characters stand for themselves alone.
Anchors at the ends are taken, as the whole output is matched; everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from pawl.gpu.grammars.base import GrammarRefused

MAX_STATES = 20_000
MAX_DEPTH = 100
_ASCII = frozenset(range(128))
_DIGITS = frozenset(b"0123456789")
_WORD = _DIGITS | frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_SPACE = frozenset(b" \t\n\r\f\v")
_NEWLINE = frozenset(b"\n")
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE, "D": _ASCII - _DIGITS, "W": _ASCII - _WORD, "S": _ASCII - _SPACE}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}

Bytes = frozenset[int]
Fragment = tuple[int, int]
"""First and last state of a part."""


class Automaton:
    """States with edges by bytes, and edges that need none."""

    def __init__(self) -> None:
        self._edges: list[list[tuple[Bytes, int]]] = []
        self._free: list[list[int]] = []
        self.start = self.accept = 0

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self._edges)

    def state(self) -> int:
        """A new one. Raises GrammarRefused for one too many."""
        if self.size >= MAX_STATES:
            raise GrammarRefused(f"the regex is too large: its automaton has more than {MAX_STATES} states")
        self._edges.append([])
        self._free.append([])
        return self.size - 1

    def join(self, source: int, target: int, by: Bytes | None = None) -> None:
        """An edge by any of these bytes; None: by none."""
        if by is None:
            self._free[source].append(target)
        else:
            self._edges[source].append((by, target))

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """These and all that are reached without a byte."""
        found, waiting = set(states), list(states)
        while waiting:
            for target in self._free[waiting.pop()]:
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        return frozenset(found)

    @lru_cache(maxsize=1 << 16)  # noqa: B019 - an automaton lives as long as its grammar
    def after(self, states: frozenset[int], byte: int) -> frozenset[int]:
        """Those reached by one byte; empty: it cannot follow."""
        return self.closure([to for state in sorted(states) for by, to in self._edges[state] if byte in by])

    def text(self, text: bytes) -> Fragment:
        """A part that reads exactly this."""
        first = last = self.state()
        for byte in text:
            last, before = self.state(), last
            self.join(before, last, frozenset((byte,)))
        return first, last


def choice_automaton(choices: Sequence[str]) -> Automaton:
    """One of these strings."""
    found = Automaton()
    found.start, found.accept = _either(found, [found.text(choice.encode()) for choice in choices])
    return found


def automaton_of(pattern: str) -> Automaton:
    """What matches the whole of an output. Raises GrammarRefused."""
    parser = _Parser(pattern.removeprefix("^"))
    parser.found.start, parser.found.accept = parser.alternatives(0)
    if parser.rest:
        raise parser.wrong("a parenthesis is not opened")
    return parser.found


def _either(found: Automaton, parts: Sequence[Fragment]) -> Fragment:
    first, last = found.state(), found.state()
    for begin, end in parts:
        found.join(first, begin)
        found.join(end, last)
    return first, last


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.found = Automaton()
        self._pattern = pattern
        self._at = 0

    @property
    def rest(self) -> str:
        return self._pattern[self._at :]

    def wrong(self, what: str) -> GrammarRefused:
        return GrammarRefused(f"the regex is not valid: {what} at character {self._at}")

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        taken = self._next()
        if not taken:
            raise self.wrong("it ends too early")
        self._at += 1
        return taken

    def alternatives(self, depth: int) -> Fragment:
        if depth > MAX_DEPTH:
            raise GrammarRefused(f"the regex is nested more than {MAX_DEPTH} deep")
        parts = [self._sequence(depth)]
        while self._next() == "|":
            self._at += 1
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else _either(self.found, parts)

    def _sequence(self, depth: int) -> Fragment:
        first = last = self.found.state()
        while self._next() not in ("", "|", ")"):
            if self.rest == "$":
                self._at += 1
                break
            begin, end = self._repeated(depth)
            self.found.join(last, begin)
            last = end
        return first, last

    def _repeated(self, depth: int) -> Fragment:
        begins = self._at
        part = self._atom(depth)
        least, most = self._counts()
        if (least, most) == (1, 1):
            return part
        ends, parts = self._at, [part] if most != 0 else []
        # Each repetition is a part of its own, read from the same characters again.
        for _ in range(1, max(least + 1 if most is None else most, 1)):
            self._at = begins
            parts.append(self._atom(depth))
        self._at = ends
        found = self.found
        first, last = found.state(), found.state()
        at = first
        for index, (begin, end) in enumerate(parts):
            if index >= least:
                found.join(at, last)
            found.join(at, begin)
            at = end
        if most is None:
            found.join(parts[-1][1], parts[-1][0])
        found.join(at, last)
        return first, last

    def _counts(self) -> tuple[int, int | None]:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if (found := simple.get(self._next())) is not None:
            self._at += 1
        elif self._next() == "{":
            end = self._pattern.find("}", self._at)
            low, comma, high = self._pattern[self._at + 1 : end].partition(",")
            if end < 0 or not low.isdecimal() or not (high.isdecimal() or not high) or len(low + high) > 9:
                raise self.wrong("a repetition is not understood")
            self._at = end + 1
            most = int(low) if not comma else int(high) if high else None
            found = int(low), most
            if most is not None and most < int(low):
                raise self.wrong("a repetition has its bounds the wrong way round")
        else:
            return 1, 1
        if self._next() in ("*", "+", "?", "{"):
            raise self.wrong("a repetition of a repetition is not supported")
        return found

    def _atom(self, depth: int) -> Fragment:
        taken = self._take()
        match taken:
            case "(":
                if self.rest.startswith("?:"):
                    self._at += 2
                elif self._next() == "?":
                    raise self.wrong(f"({self.rest[:2]} is not supported")
                inner = self.alternatives(depth + 1)
                if self._next() != ")":
                    raise self.wrong("a parenthesis is not closed")
                self._at += 1
                return inner
            case "[":
                return self._one_of(self._class())
            case ".":
                return self._one_of(_ASCII - _NEWLINE)
            case "\\":
                kind = self._take()
                if kind in _CLASSES:
                    return self._one_of(_CLASSES[kind])
                return self.found.text(self._escaped(kind).encode())
            case "*" | "+" | "?" | "{" | "^" | "$":
                raise self.wrong(f"{taken} is not supported there")
        return self.found.text(taken.encode())

    def _escaped(self, kind: str) -> str:
        if kind.isalnum() and kind not in _CONTROLS:
            raise self.wrong(f"\\{kind} is not supported")
        return _CONTROLS.get(kind, kind)

    def _class(self) -> Bytes:
        negated = self._next() == "^"
        self._at += negated
        members: set[int] = set()
        begins = self._at
        while self._next() != "]" or self._at == begins:
            low = self._member(members)
            if low is not None and self._next() == "-" and not self.rest.startswith("-]"):
                self._at += 1
                high = self._member(set())
                if high is None or high < low:
                    raise self.wrong("a range of a class is not understood")
                members.update(range(low, high + 1))
        self._at += 1
        return _ASCII - _NEWLINE - members if negated else frozenset(members)

    def _member(self, members: set[int]) -> int | None:
        """Read one member of a class; None for a whole class in it."""
        taken = self._take()
        if taken == "\\":
            kind = self._take()
            if kind in _CLASSES:
                members.update(_CLASSES[kind])
                return None
            taken = self._escaped(kind)
        if ord(taken) > 127:
            raise self.wrong("a class of characters beyond ASCII is not supported")
        members.add(ord(taken))
        return ord(taken)

    def _one_of(self, members: Bytes) -> Fragment:
        if not members:
            raise self.wrong("a class is empty")
        first, last = self.found.state(), self.found.state()
        self.found.join(first, last, members)
        return first, last
