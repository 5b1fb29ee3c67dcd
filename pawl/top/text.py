"""Lines for a terminal: styled text of a known width that holds nothing a terminal would obey.

What a server says holds names that its clients chose. Every text passes through `clean` on its way into a line, so no
control character, and with it no escape sequence, reaches the terminal but those that `paint` writes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from rich.cells import get_character_cell_size

UNSHOWABLE = "?"


class Style(StrEnum):
    """How a text is shown; the value is the parameter of `ESC [ … m`."""

    PLAIN = "0"
    TITLE = "1"
    QUIET = "2"
    GOOD = "32"
    WARN = "33"
    BAD = "31"
    CHOSEN = "7"


class Span(NamedTuple):
    """A text in one style."""

    text: str
    style: Style = Style.PLAIN


Line: TypeAlias = Sequence[Span]


def clean(text: str) -> str:
    """`text` with `?` for each character that has no width of its own, or that a terminal might obey: controls, marks
    of direction, lone surrogates, characters that join or combine."""
    return "".join(map(_shown, unicodedata.normalize("NFC", text)))


def width_of(text: str) -> int:
    """Cells that a clean text takes."""
    return len(text) if text.isascii() else sum(map(get_character_cell_size, text))


def clipped(text: str, width: int) -> str:
    """The beginning of a clean text, in `width` cells at the most; `~` stands for what is left out."""
    if width_of(text) <= width:
        return text
    used, kept = 0, []
    for character in text:
        used += get_character_cell_size(character)
        if used > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "~" if width > 0 else ""


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Any text in exactly `width` cells."""
    text = clipped(clean(text), width)
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def fitted(line: Iterable[Span], width: int) -> list[Span]:
    """The line, clean, in `width` cells at the most."""
    fitting: list[Span] = []
    for span in line:
        text = clean(span.text)
        left = width - sum(width_of(each.text) for each in fitting)
        kept = clipped(text, left)
        fitting.append(Span(kept, span.style))
        if kept != text:
            break
    return [span for span in fitting if span.text]


def paint(line: Line, *, colour: bool) -> str:
    """A fitted line as a terminal takes it; without `colour`, as plain text."""
    if not colour:
        return "".join(span.text for span in line).rstrip()
    return "".join(span.text if span.style is Style.PLAIN else f"\x1b[{span.style}m{span.text}\x1b[0m" for span in line)


def _shown(character: str) -> str:
    return character if character.isprintable() and get_character_cell_size(character) > 0 else UNSHOWABLE
