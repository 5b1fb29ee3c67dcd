"""One task in this process, or several in processes of their own, which report in JSON lines.

Those are forked: what is loaded here, which takes a second, is loaded there.
"""

from __future__ import annotations

import selectors
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pawl.commands.failures import CommandFailed
from pawl.exploration import Totals
from pawl.exploration.task import Report, Task, explore
from pawl.exploration.watched import LEAVING_S, LOOK_S, Tell, Watched

SCHEDULES_OF_FEWER = 50
OVERTIME_S = 5.0
"""For a process that makes what it has found smaller to end once its time is over."""
UNSAVED = "not saved: the process that explored was lost with it"


class Watcher(NamedTuple):
    """Who is told how far it is."""

    tick: Callable[[], None]
    """Time has passed."""
    found: Callable[[str], None]
    """This was found, and saved; it may still get smaller."""


def follow(task: Task, output: Path, watcher: Watcher) -> tuple[Totals, str]:
    """Explore in this process; what it comes to, and what was found, as text."""
    last = Report()
    for last in _saved(explore(task), output):
        if last.text and not last.final:
            watcher.found(last.text)
        watcher.tick()
    return last.totals, last.text


def _tell(task: Task, output: Path, tell: Tell) -> None:
    """The body of a child: it tells each report."""
    for report in _saved(explore(task), output):
        tell({"totals": report.totals._asdict(), "text": report.text, "final": report.final})


def _saved(reports: Iterator[Report], output: Path) -> Iterator[Report]:
    """The reports; a counterexample is saved before it is told."""
    for report in reports:
        if report.found is not None:
            report.found.save(output)
        yield report


@contextmanager
def started(tasks: Sequence[Task]) -> Iterator[Sequence[Child]]:
    """A child process for each task, until the context ends. To be entered before there are other threads, which might
    hold locks that the child would wait for."""
    with tempfile.TemporaryDirectory() as folder:
        children = [Child(task, Path(folder) / f"{number}.json") for number, task in enumerate(tasks)]
        try:
            yield children
        finally:
            for child in children:
                child.end()


def with_fewer(text: str, task: Task, output: Path) -> str:
    """What was found, of a process that was lost, `text` of that: the same in fewer requests, if it is."""
    first, ends = text.splitlines()[0], time.monotonic() + task.shrink_seconds
    for most in range(1, text.count("\n  request")):
        now = time.monotonic()
        if now >= ends:
            break
        with started([task._replace(max_requests=most, schedules=SCHEDULES_OF_FEWER, ends=ends)]) as children:
            _, again = gather(children, output, Watcher(lambda: None, lambda found: None))
        if again.splitlines()[:1] == [first]:
            return again
    return text


def gather(children: Sequence[Child], output: Path, watcher: Watcher) -> tuple[Totals, str]:
    """What all of them come to; the first that finds something is waited for, the others are ended."""
    finder = _watch(children, output, watcher)
    statuses = [child.end(LEAVING_S if child.final else 0.0) for child in children]
    totals = Totals()
    for child in children:
        totals = totals.plus(child.totals)
    if finder is not None:
        finder.copy(output)
        return totals, finder.text
    if any(statuses):
        raise CommandFailed("a process of the exploration failed; what it said is above")
    return totals, ""


def _watch(children: Sequence[Child], output: Path, watcher: Watcher) -> Child | None:
    """Read what they report until all have ended; the one that found something, if one did."""
    finder = None
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.reports, selectors.EVENT_READ, child)
        while selector.get_map():
            for key, _ in selector.select(timeout=LOOK_S):
                if not key.data.take() or key.data.final:
                    selector.unregister(key.fileobj)
            for child in [key.data for key in selector.get_map().values()]:
                if child.is_lost():
                    selector.unregister(child.reports)
            if finder is None:
                finder = next((child for child in children if child.text), None)
                if finder is not None:
                    finder.copy(output)
                    if not finder.final or finder.text.endswith(UNSAVED):
                        watcher.found(finder.text)
                    for other in children:
                        if other is not finder:
                            other.stop()
            elif not finder.final and time.monotonic() > finder.ends + OVERTIME_S:
                finder.stop()  # a run of what it makes smaller takes too long, and what it has found is saved
                break
            watcher.tick()
    return finder


class Child(Watched):
    """A process with one task."""

    def __init__(self, task: Task, output: Path) -> None:
        self.totals = Totals()
        self.text = ""
        self.final = False
        self.ends = task.ends
        self._output = output
        super().__init__(partial(_tell, task, output))

    def take(self) -> bool:
        """Take one report. False when there is no further one."""
        told = self.read()
        if told is not None:
            self.totals = Totals.told(told["totals"])
            self.text, self.final = told["text"], told["final"]
        elif not self.final:
            self.said_no_more()
            self._take_lost()
        return told is not None

    def is_lost(self) -> bool:
        """Whether a call of it stands still, for which it is ended."""
        hung = self.look()
        self._take_lost()
        return hung

    def _take_lost(self) -> None:
        if self.lost and not self.text:
            self.text, self.final = f"PartFailed: {self.lost}{self.noted}\n{UNSAVED}", True

    def copy(self, output: Path) -> None:
        """Copy its counterexample, if it has saved one."""
        if self._output.exists():
            shutil.copyfile(self._output, output)


class Clock:
    """Advances a progress bar of seconds."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._began = time.monotonic()
        self._told = 0

    def tick(self) -> None:
        """Show the seconds that have passed since."""
        now = int(time.monotonic() - self._began)
        self._advance(now - self._told)
        self._told = now
