"""Calls of tools, told from the text around them. The formats differ in the marks before and behind the calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from pawl.parsers.call_object import CallObject, Progress
from pawl.parsers.events import Arguments, CallBegin, Collected, Content, Event


class CallParser(ABC):
    """What the formats share: text, marks, and what turns out to be no call.

    White space between text and calls, and between calls, belongs to neither. What begins like a call and is none is
    text, from its mark on. The first character of each mark does not occur in it again.
    """

    begin: tuple[str, ...] = ()
    """Marks, one of which comes before calls."""
    end: tuple[str, ...] = ()
    """Marks that may come behind calls, and then are not shown."""
    opening: str = ""
    """Characters that begin calls without a mark, where no text is before them."""
    shown: bool = True
    """Whether the mark before what turns out to be no call is text."""

    def __init__(self, names: Collection[str]) -> None:
        """`names`: of the tools that may be called."""
        self._names = names
        self._events = Collected()
        self.num_calls = 0
        self._space: list[str] = []
        self._mark = ""
        self._raw: list[str] = []
        """All since the last text or call: text, if no call comes of it."""
        self._at_start = True
        self._after_call = False
        self._fresh = False
        """Whether nothing but white space has followed the mark."""
        self._state: Callable[[str], None] = self._text

    def push(self, text: str) -> list[Event]:
        for char in text:
            self._state(char)
        return self._events.take()

    def close(self) -> list[Event]:
        if self._state != self._text:
            self._give_up("")
        mark, self._mark = self._mark, ""
        for char in mark:
            self._say(char)
        if self._space and not self.num_calls:
            self._events.add(Content("".join(self._space)))
        self._space = []
        return self._events.take()

    # ---- text ----

    def _text(self, char: str) -> None:
        mark = self._mark + char
        known = (*self.begin, *(self.end if self._after_call else ()))
        if mark in known:
            self._mark = ""
            if mark in self.begin:
                self._enter(mark if self.shown else "")
            return
        if any(one.startswith(mark) for one in known):
            self._mark = mark
            return
        held, self._mark = self._mark, ""
        for one in held:
            self._say(one)
        if held:
            self._text(char)
        elif self._at_start and char in self.opening:
            self._enter("")
            self._state(char)
        else:
            self._say(char)

    def _enter(self, mark: str) -> None:
        """Calls are to come."""
        self._raw, self._space, self._fresh = [*self._space, mark], [], True
        self._state = self._before_call

    def _say(self, char: str) -> None:
        if char.isspace():
            self._space.append(char)
            return
        space = "" if self._after_call else "".join(self._space)
        self._events.add(Content(space + char))
        self._space.clear()
        self._at_start = self._after_call = False

    # ---- calls ----

    @abstractmethod
    def _before_call(self, char: str) -> None:
        """The state before each call of one mark."""

    def _call(self, name: str) -> None:
        """A call begins for certain."""
        self._events.add(CallBegin(self.num_calls, name))
        self.num_calls += 1
        self._raw, self._space = [], []
        self._at_start = self._after_call = True

    def _argue(self, text: str) -> None:
        if text:
            self._events.add(Arguments(self.num_calls - 1, text))

    def _leave(self, char: str) -> None:
        """`char` is not part of the calls."""
        if any(map(str.strip, self._raw)):
            self._give_up(char)
        else:
            self._raw, self._state = [], self._text
            self._text(char)

    def _give_up(self, rest: str) -> None:
        """What is held is no call: it is text, without another look for marks in it; `rest` is looked at."""
        raw, self._raw, self._state = "".join(self._raw), [], self._text
        for char in raw:
            self._say(char)
        for char in rest:
            self._state(char)


class JsonCalls(CallParser):
    """Objects with a name and arguments, one or several, in a list or behind each other."""

    between = "[],; \t\r\n"

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._object = CallObject(names)

    def _before_call(self, char: str) -> None:
        if char == "{":
            self._raw.append(char)
            self._object = CallObject(self._names)
            self._state = self._in_object
        elif char not in self.between or (char == "[" and self._after_call):
            self._leave(char)
        elif self._raw:
            self._raw.append(char)

    def _in_object(self, char: str) -> None:
        call, known = self._object, self._object.named
        call.feed(char)
        self._raw.append(char)
        if call.progress is Progress.BROKEN:
            self._give_up("")
            return
        if call.named:
            if not known:
                self._call(call.name or "")
            self._raw = []
            self._argue(call.take_arguments())
        if call.progress is Progress.DONE:
            self._state = self._before_call


class HermesCalls(JsonCalls):
    """Hermes, Qwen 2.5 and 3, SmolLM2: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`."""

    begin = ("<tool_call>",)
    end = ("</tool_call>",)


class LlamaCalls(JsonCalls):
    """Llama 3: the reply begins with an object; `<|python_tag|>` may come first, `;` between calls."""

    begin = ("<|python_tag|>",)
    opening = "{"
    shown = False


class PlainCalls(JsonCalls):
    """A list of calls and nothing else, as a grammar makes a model write them."""

    opening = "[{"


class MistralCalls(JsonCalls):
    """Mistral: `[TOOL_CALLS]` before a list of objects, or before a name and its arguments, as newer models have it:
    `[TOOL_CALLS]f[ARGS]{...}`."""

    begin = ("[TOOL_CALLS]",)
    shown = False

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._name: list[str] = []

    def _before_call(self, char: str) -> None:
        if self._fresh and char not in self.between + "{":
            self._name = []
            self._state = self._in_name
            self._in_name(char)
        else:
            self._fresh = self._fresh and char.isspace()
            super()._before_call(char)

    def _in_name(self, char: str) -> None:
        if char != "{":
            self._raw.append(char)
            self._name.append(char)
            return
        name = "".join(self._name).partition("[")[0].strip()
        if name in self._names:
            self._object = CallObject.of(name)
            self._state = self._in_arguments
            self._in_arguments(char)
        else:
            self._give_up(char)

    def _in_arguments(self, char: str) -> None:
        """As in an object that has this one member."""
        self._in_object(char)
        if self._object.between_members:
            self._in_object("}")
