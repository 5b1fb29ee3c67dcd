"""Calls written as in Python: `[f(a=1, b="x"), g()]`, as Llama 4 and others have them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from pawl.parsers.calls import CallParser

MOST_DEPTH = 32
"""Lists and dictionaries in each other."""
WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
TOKEN = re.compile(
    r"""\s*(?:(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"""
    r"""|(?P<word>[A-Za-z_]\w*)|(?P<sign>[\[\](){},:=]))""",
    re.DOTALL,
)


class PythonicCalls(CallParser):
    """Each call is known once its last bracket is there."""

    begin = ("<|python_start|>",)
    end = ("<|python_end|>",)
    opening = "["
    shown = False

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._name: list[str] = []
        self._depth = 0
        self._quote = ""
        self._escaped = False
        self._listed = False

    def _before_call(self, char: str) -> None:
        if char == "[" and not self._listed:
            self._listed = True
            self._raw.append(char)
        elif char == "]" and self._listed and self._after_call:
            self._listed = False
            self._raw, self._state = [], self._text
        elif char.isalpha() or char == "_":
            self._name = []
            self._state = self._in_name
            self._in_name(char)
        elif char.isspace() or (char == "," and self._after_call):
            self._raw.append(char)
        else:
            self._leave(char)

    def _give_up(self, rest: str) -> None:
        self._listed = False
        super()._give_up(rest)

    def _in_name(self, char: str) -> None:
        if char == "(" and "".join(self._name) in self._names:
            self._raw.append(char)
            self._depth, self._state = 1, self._in_call
            self._arguments: list[str] = []
        elif char.isalnum() or char in "_.-":
            self._raw.append(char)
            self._name.append(char)
        else:
            self._give_up(char)

    def _in_call(self, char: str) -> None:
        self._raw.append(char)
        if self._quote:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == self._quote:
                self._quote = ""
        elif char in "'\"":
            self._quote = char
        elif char in "([{":
            self._depth += 1
        elif char in ")]}":
            self._depth -= 1
            if self._depth == 0:
                self._finish()
                return
        self._arguments.append(char)

    def _finish(self) -> None:
        try:
            arguments = read_arguments("".join(self._arguments))
        except ValueError:
            self._give_up("")
            return
        self._call("".join(self._name))
        self._argue(json.dumps(arguments))
        self._state = self._before_call


def read_arguments(text: str) -> dict[str, Any]:
    """The keyword arguments in the brackets of a call, whose values are literals. Raises ValueError."""
    reader = _Reader(text)
    arguments: dict[str, Any] = {}
    while not reader.at_end():
        name = reader.next("word")
        reader.expect("=")
        arguments[name] = reader.value(MOST_DEPTH)
        if not reader.at_end():
            reader.expect(",")
    return arguments


class _Reader:
    """Literals of Python, and the words of JSON."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        place, text = 0, text.rstrip()
        while place < len(text):
            found = TOKEN.match(text, place)
            if found is None:
                raise ValueError("no literal")
            self._tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
            place = found.end()
        self._tokens.reverse()

    def at_end(self) -> bool:
        return not self._tokens

    def _pop(self) -> tuple[str, str]:
        if not self._tokens:
            raise ValueError("the text ends early")
        return self._tokens.pop()

    def next(self, kind: str) -> str:
        """The next token, which must be of this kind."""
        found, text = self._pop()
        if found != kind:
            raise ValueError(f"{found} where {kind} should be")
        return text

    def expect(self, sign: str) -> None:
        if self._pop() != ("sign", sign):
            raise ValueError(f"no {sign!r}")

    def value(self, depth: int) -> Any:
        """The next value, with at most `depth` brackets around another."""
        kind, text = self._pop()
        match kind, text:
            case "string", _:
                return _string(text)
            case "number", _:
                number = int(text) if text.lstrip("-").isdecimal() else float(text)
                if abs(number) == float("inf"):
                    raise ValueError("a number that is too large")
                return number
            case "word", _ if text in WORDS:
                return WORDS[text]
            case "sign", "[" | "(" if depth:
                return self._items("]" if text == "[" else ")", lambda: self.value(depth - 1))
            case "sign", "{" if depth:
                return dict(self._items("}", lambda: self._member(depth - 1)))
        raise ValueError(f"{text!r} is no literal")

    def _member(self, depth: int) -> tuple[str, Any]:
        key = _string(self.next("string"))
        self.expect(":")
        return key, self.value(depth)

    def _items(self, closing: str, item: Callable[[], Any]) -> list[Any]:
        items: list[Any] = []
        while self._tokens and self._tokens[-1] != ("sign", closing):
            items.append(item())
            if self._tokens and self._tokens[-1] != ("sign", closing):
                self.expect(",")
        self.expect(closing)
        return items


def _string(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("no string") from error
