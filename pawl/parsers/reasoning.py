"""Reasoning of a model that thinks before it answers, told from the answer by the marks around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from pawl.parsers.events import Collected, Content, Event, Reasoning


class ReasoningFormat(msgspec.Struct, frozen=True):
    """Marks around the reasoning. The first character of `end` does not occur in it again."""

    begin: str
    end: str
    always: bool = False
    """Whether every reply begins inside, with or without the mark."""


FORMATS: Mapping[str, ReasoningFormat] = {
    "deepseek_r1": ReasoningFormat("<think>", "</think>", always=True),
    "qwen3": ReasoningFormat("<think>", "</think>"),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
}
"""By the names that SGLang and vLLM give them."""


def format_of(templates: Mapping[str, str]) -> str | None:
    """Name of the format whose marks a model's chat templates show."""
    texts = templates.values()
    return next((name for name in ("qwen3", "mistral") if any(FORMATS[name].end in text for text in texts)), None)


class ReasoningParser:
    """Reasoning comes first or not at all; white space at its edges belongs to neither side."""

    def __init__(self, form: ReasoningFormat, inside: bool) -> None:
        """`inside`: the prompt ended within the reasoning, so the reply begins there."""
        self._form = form
        self._inside = inside or form.always
        self._events = Collected()
        self._space: list[str] = []
        """White space of which what follows will tell where it belongs."""
        self._mark = ""
        """Part of a mark, behind it."""
        self._state: Callable[[str], None] = self._opening

    def push(self, text: str) -> list[Event]:
        if self._state == self._answer:
            return [Content(text)] if text else []
        for index, char in enumerate(text):
            self._state(char)
            if self._state == self._answer:
                if rest := text[index + 1 :]:
                    self._events.add(Content(rest))
                break
        return self._events.take()

    def close(self) -> list[Event]:
        held = self._take()
        if self._state == self._opening and not self._inside and held:
            self._events.add(Content(held))
        elif text := held.strip():
            self._events.add(Reasoning(text if self._state == self._opening else held))
        return self._events.take()

    def _take(self) -> str:
        """What is held back."""
        held = "".join(self._space) + self._mark
        self._space, self._mark = [], ""
        return held

    def _opening(self, char: str) -> None:
        """Before the reasoning, or the answer of a model that did not think."""
        if char.isspace() and not self._mark:
            self._space.append(char)
            return
        self._mark += char
        if self._mark == self._form.begin:
            self._take()
            self._state = self._leading
        elif not self._form.begin.startswith(self._mark):
            text = self._take()
            if self._inside:
                self._state = self._leading
                for one in text:
                    self._state(one)
            else:
                self._events.add(Content(text))
                self._state = self._answer

    def _leading(self, char: str) -> None:
        """Before the first word of the reasoning."""
        if not char.isspace():
            self._state = self._thinking
            self._thinking(char)

    def _thinking(self, char: str) -> None:
        mark = self._mark + char
        if mark == self._form.end:
            self._take()
            self._state = self._trailing
        elif self._form.end.startswith(mark):
            self._mark = mark
        elif self._mark:
            # A mark that was none, and perhaps the beginning of another.
            self._events.add(Reasoning(self._take()))
            self._thinking(char)
        elif char.isspace():
            self._space.append(char)
        else:
            self._events.add(Reasoning("".join(self._space) + char))
            self._space.clear()

    def _trailing(self, char: str) -> None:
        """Before the first word of the answer."""
        if not char.isspace():
            self._events.add(Content(char))
            self._state = self._answer

    def _answer(self, char: str) -> None:
        self._events.add(Content(char))
