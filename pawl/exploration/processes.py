"""One task in this process, or several in processes of their own, which report in JSON lines.

Those are forked: what is loaded here, which takes a second, is loaded there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import selectors
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pawl.commands.failures import EXIT_FAILED, CommandFailed, exit_status, told
from pawl.exploration import Totals
from pawl.exploration.task import Report, Task, explore

PATIENCE_S = 10.0
"""For a process to end after its last report."""


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


def _tell(task: Task, output: Path, reports: int, parent: int) -> None:
    """The body of a child: a JSON line for each report, into this descriptor, for as long as the `parent` lives."""
    try:
        with open(reports, "w", encoding="utf-8") as lines:
            for report in _saved(explore(task), output):
                line = {"totals": report.totals._asdict(), "text": report.text, "final": report.final}
                if os.getppid() != parent:
                    return
                print(json.dumps(line), file=lines, flush=True)
    except KeyboardInterrupt:
        sys.exit(EXIT_FAILED)
    except Exception as error:
        status = exit_status(error)
        if status is None:
            raise
        print(f"pawl: {told(error)}", file=sys.stderr)
        sys.exit(status)


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


def gather(children: Sequence[Child], output: Path, watcher: Watcher) -> tuple[Totals, str]:
    """What all of them come to; the first that finds something is waited for, the others are ended."""
    finder = _watch(children, output, watcher)
    statuses = [child.end() for child in children]
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
            for key, _ in selector.select(timeout=1.0):
                child = key.data
                if not child.read() or child.final:
                    selector.unregister(key.fileobj)
                if finder is None and child.text:
                    finder = child
                    child.copy(output)
                    if not child.final:
                        watcher.found(child.text)
                    for other in children:
                        if other is not finder:
                            other.stop()
            watcher.tick()
    return finder


class Child:
    """A process with one task."""

    def __init__(self, task: Task, output: Path) -> None:
        self.totals = Totals()
        self.text = ""
        self.final = False
        self._output = output
        ours, theirs = os.pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_tell, args=(task, output, theirs, os.getpid()))
        self._process.start()
        os.close(theirs)
        self.reports = open(ours, "rb")  # noqa: SIM115 - closed by `end`

    def read(self) -> bool:
        """Take one line of its report. False when there is no further one."""
        line = self.reports.readline()
        if line:
            told = json.loads(line)
            self.totals = Totals.told(told["totals"])
            self.text, self.final = told["text"], told["final"]
        return bool(line)

    def copy(self, output: Path) -> None:
        """Copy its counterexample, if it has saved one."""
        if self._output.exists():
            shutil.copyfile(self._output, output)

    def stop(self) -> None:
        """It is not needed any more."""
        self._process.terminate()

    def end(self) -> int:
        """Its exit status, once it has ended; it is ended if need be."""
        self._process.join(PATIENCE_S if self.final else 0.0)
        if self._process.is_alive():
            self.stop()
        self._process.join()
        self.reports.close()
        return self._process.exitcode or 0


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
