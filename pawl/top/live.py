"""The live view: one thread looks at the server, one does what keys ask for, and this one shows and listens.

The last never waits for a server, so that keys work while none answers.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

import msgspec

from pawl.top.keys import ESCAPE, Command, Do, Quit, Ui, decoded, press
from pawl.top.reading import Lost, Reading, Source, Watched
from pawl.top.terminal import Terminal
from pawl.top.view import screen

ESCAPE_WAIT_S = 0.05
"""How long the rest of a key may take, behind the `escape` that it begins with."""
AS_A_SHELL_COUNTS = 128
"""Added to the signal that ended a command."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The first of them also where a shell that has no jobs had it ignored: its key is one of the view's."""
SIGNALS = (signal.SIGWINCH, signal.SIGTSTP, *ENDING)

Heard: TypeAlias = Reading | Lost | str
"""What the other threads tell: a look, or what came of a command."""


def time_of_day() -> str:
    return time.strftime("%H:%M:%S")


class Helpers:
    """The threads that wait for the server. What they tell lies in `heard`; `wake` is called behind it."""

    def __init__(self, source: Source, interval_s: float, wake: Callable[[], None]) -> None:
        self.heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._source, self._interval_s, self._wake = source, interval_s, wake
        self._commands: queue.SimpleQueue[Do] = queue.SimpleQueue()
        self._at_once = threading.Event()
        for run in (self._look, self._do):
            # Nobody waits for them at the end: one may be waiting for a server that says nothing.
            threading.Thread(target=run, name=f"top{run.__name__}", daemon=True).start()

    def do(self, command: Do) -> None:
        """Have it done, after those before it."""
        self._commands.put(command)

    def _tell(self, heard: Heard) -> None:
        self.heard.put(heard)
        self._wake()

    def _look(self) -> None:
        while True:
            self._tell(self._source.look(time.monotonic(), time_of_day()))
            self._at_once.wait(self._interval_s)
            self._at_once.clear()

    def _do(self) -> None:
        while True:
            command = self._commands.get()
            self._tell(f"{command.what}: {self._source.do(command.path, command.body)}")
            self._at_once.set()


class Live:
    """What is shown, and how it changes."""

    def __init__(self, url: str, terminal: Terminal, do: Callable[[Do], None]) -> None:
        self._terminal, self._do = terminal, do
        self._watched, self._ui = Watched(url), Ui()
        self._typed = ""

    @property
    def in_a_key(self) -> bool:
        """Whether only the beginning of a key has come so far."""
        return bool(self._typed)

    def hear(self, heard: Heard) -> None:
        """A look, or what came of a command."""
        if isinstance(heard, str):
            self._ui = msgspec.structs.replace(self._ui, message=heard)
        else:
            self._watched.add(heard)

    def type(self, data: bytes) -> bool:
        """Keys were pressed. False: to leave."""
        keys, self._typed = decoded(self._typed + data.decode(errors="replace"))
        return all(self._press(key) for key in keys)

    def no_more(self) -> None:
        """What has come of a key is all of it."""
        self._typed = ""
        self._press(ESCAPE)

    def show(self) -> None:
        width, height = self._terminal.size()
        self._terminal.draw(screen(self._watched, self._ui, width, height, time_of_day()))

    def _press(self, key: str) -> bool:
        command: Command | None
        self._ui, command = press(self._ui, key, self._watched)
        if isinstance(command, Do):
            self._ui = msgspec.structs.replace(self._ui, message=f"{command.what} ...")
            self._do(command)
        return not isinstance(command, Quit)


def run(source: Source, url: str, terminal: Terminal, interval_s: float) -> int:
    """Show the server until somebody quits, or a signal says so; the exit status."""
    with _waking() as (woken, wake, signals), terminal, selectors.DefaultSelector() as selector:
        helpers = Helpers(source, interval_s, wake)
        live = Live(url, terminal, helpers.do)
        selector.register(terminal.source, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        live.show()
        while True:
            ready = selector.select(ESCAPE_WAIT_S if live.in_a_key else None)
            if not ready:
                live.no_more()
            for key, _ in ready:
                data = os.read(key.fd, 4096)
                if key.fd == terminal.source and not (data and live.type(data)):
                    return 0
            while not helpers.heard.empty():
                live.hear(helpers.heard.get())
            while signals:
                number = signals.pop()
                if number in ENDING:
                    return AS_A_SHELL_COUNTS + number
                terminal.forget()
                if number == signal.SIGTSTP:
                    terminal.suspend()
            live.show()


@contextmanager
def _waking() -> Iterator[tuple[int, Callable[[], None], list[int]]]:
    """(what becomes readable, a call that makes it so, signals that have come); a signal makes it so, too."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(woken, False)
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in SIGNALS}
    before_fd = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def wake() -> None:
        with suppress(BlockingIOError):  # it is awake
            os.write(waker, b"\0")

    try:
        yield woken, wake, came
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
