"""The terminal: the one place that changes its modes, and puts them back whatever happens."""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from pawl.top.text import Line, paint

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
"""Another screen beside the one of the shell, no cursor, no line that wraps by itself."""
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
TO_LINE, REST_OF_LINE, REST_OF_SCREEN = "\x1b[{};1H", "\x1b[K", "\x1b[J"
USUAL_SIZE = os.terminal_size((80, 24))
MOST = 500
"""Columns, and lines, beyond which none is used."""


class Terminal:
    """The terminal of this process, as a context. One that cannot put text where it should be (`TERM=dumb`) gets one
    screen below the other."""

    def __init__(self, source: int, target: int, environment: Mapping[str, str]) -> None:
        """`source`: where keys come from; `target`: where lines go."""
        self.source, self._target = source, target
        self.addressed = environment.get("TERM", "dumb") not in ("dumb", "unknown")
        self._colour = self.addressed and not environment.get("NO_COLOR")
        self._modes: list[Any] | None = None
        self._drawn = ""

    def __enter__(self) -> Terminal:
        self._modes = termios.tcgetattr(self.source)
        self._take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_back()

    def size(self) -> tuple[int, int]:
        """(columns, lines)"""
        try:
            size = os.get_terminal_size(self._target)
        except OSError:
            size = USUAL_SIZE
        return min(size.columns or USUAL_SIZE.columns, MOST), min(size.lines or USUAL_SIZE.lines, MOST)

    def draw(self, lines: Sequence[Line]) -> None:
        """Show these lines, and nothing else."""
        texts = [paint(line, colour=self._colour) for line in lines]
        if self.addressed:
            rows = (TO_LINE.format(number) + text + REST_OF_LINE for number, text in enumerate(texts, 1))
            screen = "".join(rows) + (REST_OF_SCREEN if texts else "")
        else:
            screen = "\n".join(texts) + "\n\n"
        if screen != self._drawn:
            self._drawn = screen
            self._write(screen)

    def forget(self) -> None:
        """Draw all anew next time: the size has changed, or others have written here."""
        self._drawn = ""

    def suspend(self) -> None:
        """Stop as the shell wants it, and go on when it says so."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.forget()

    def _take(self) -> None:
        tty.setcbreak(self.source, termios.TCSANOW)
        if self.addressed:
            self._write(ENTER)

    def _give_back(self) -> None:
        try:
            if self.addressed:
                self._write(LEAVE)
        finally:
            if self._modes is not None:
                termios.tcsetattr(self.source, termios.TCSANOW, self._modes)

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._target, data) :]
