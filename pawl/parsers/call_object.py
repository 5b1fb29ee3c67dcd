"""One call of a tool as most models write it, `{"name": "f", "arguments": {...}}`, read a character at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from enum import Enum

NAME_KEYS = ("name", "function")
ARGUMENTS_KEYS = ("arguments", "parameters")
OTHER_KEYS = ("type", "id")
CLOSING = {"{": "}", "[": "]"}


class Progress(Enum):
    """How far an object has come."""

    OPEN = "open"
    DONE = "done"
    BROKEN = "broken"
    """This is not a call; said only before `named`."""


class CallObject:
    """A fold over the characters of one object, from behind its `{`.

    Once there is a name and the first of the arguments, nothing can break any more: what a client has been sent cannot
    be taken back.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names`: of the tools that may be called."""
        self._names = names
        self.progress = Progress.OPEN
        self.name: str | None = None
        self._arguments: list[str] = []
        self._has_arguments = False
        self._key = ""
        self._value = _Value()
        self._state: Callable[[str], None] = self._before_key

    @property
    def named(self) -> bool:
        """Whether this is a call for certain."""
        return self.name is not None and (self._has_arguments or self.progress is Progress.DONE)

    @property
    def between_members(self) -> bool:
        """Whether no key and no value is being read."""
        return self.progress is Progress.OPEN and self._state == self._before_key

    @classmethod
    def of(cls, name: str) -> CallObject:
        """A call whose name is known and whose arguments come next."""
        call = cls((name,))
        for char in f'"name":{json.dumps(name)},"arguments":':
            call.feed(char)
        return call

    def take_arguments(self) -> str:
        """The arguments, or what is new of them; there is at least `{}` once it is done."""
        taken, self._arguments = "".join(self._arguments), []
        if self.progress is Progress.DONE and not self._has_arguments:
            self._has_arguments = True
            return "{}"
        return taken

    def feed(self, char: str) -> None:
        """Take one more character; what follows a done or broken object is not for it."""
        self._state(char)

    def _break(self) -> None:
        self.progress = Progress.DONE if self.named else Progress.BROKEN

    def _before_key(self, char: str) -> None:
        if char == '"':
            self._begin(char, self._in_key)
        elif char == "}":
            self.progress = Progress.BROKEN if self.name is None else Progress.DONE
        elif char != "," and not char.isspace():
            self._break()

    def _begin(self, char: str, state: Callable[[str], None]) -> None:
        self._value = _Value()
        self._state = state
        state(char)

    def _in_key(self, char: str) -> None:
        if self._value.feed(char):
            key = _string(self._value.text)
            self._key = key or ""
            self._state = self._before_colon
            if key not in (*NAME_KEYS, *ARGUMENTS_KEYS, *OTHER_KEYS):
                self._break()

    def _before_colon(self, char: str) -> None:
        if char == ":":
            self._state = self._before_value
        elif not char.isspace():
            self._break()

    def _before_value(self, char: str) -> None:
        if char.isspace():
            return
        if self._key in ARGUMENTS_KEYS and char == "{" and not self._has_arguments:
            self._has_arguments = True
            self._begin(char, self._in_arguments)
        else:
            self._begin(char, self._in_value)

    def _in_arguments(self, char: str) -> None:
        self._arguments.append(char)
        if self._value.feed(char):
            self._state = self._before_key

    def _in_value(self, char: str) -> None:
        ended = self._value.feed(char)
        if not ended and not self._value.over:
            return
        self._state = self._before_key
        self._take(self._value.text)
        if self._value.over and self.progress is Progress.OPEN:
            self._before_key(char)

    def _take(self, text: str) -> None:
        """The value of the last key, but for arguments that are an object."""
        if self._key in NAME_KEYS and self.name is None:
            name = _string(text)
            if name is None or name not in self._names:
                self._break()
            else:
                self.name = name
        elif self._key in ARGUMENTS_KEYS and not self._has_arguments and text != "null":
            # Some models write the object into a string.
            inner = _string(text)
            self._arguments = [text if inner is None else inner]
            self._has_arguments = True


class _Value:
    """Where one JSON value ends: brackets and strings are looked at, nothing else."""

    def __init__(self) -> None:
        self._chars: list[str] = []
        self.over = False
        """The last character was not part of the value, a number or a word, any more."""
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        return "".join(self._chars)

    def feed(self, char: str) -> bool:
        """Whether `char` is the value's last."""
        if not self._in_string and not self._open and self._chars and char in ",}] \t\n\r":
            self.over = True
            return False
        self._chars.append(char)
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                return not self._open
        elif char == '"':
            self._in_string = True
        elif char in CLOSING:
            self._open.append(CLOSING[char])
        elif self._open and char in "]}":
            # A bracket that closes another's is taken as its own: the text is not judged here.
            self._open.pop()
            return not self._open
        return False


def _string(text: str) -> str | None:
    """The string that `text` writes in JSON, without halves of surrogate pairs; None for anything else."""
    try:
        value = json.loads(text, strict=False) if text.startswith('"') else None
    except ValueError:
        return None
    return value.encode(errors="replace").decode() if isinstance(value, str) else None
