"""One task in this process, or several in processes of their own, which report in JSON lines."""

from __future__ import annotations

import json
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pawl.commands.failures import CommandFailed
from pawl.exploration import Totals
from pawl.exploration.fixed import flag_of
from pawl.exploration.task import Report, Task, explore
from pawl.gpu.children import environment, python

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


def tell(task: Task, output: Path) -> None:
    """The body of a child: a JSON line for each report."""
    for report in _saved(explore(task), output):
        told = {"totals": report.totals._asdict(), "text": report.text, "final": report.final}
        print(json.dumps(told), flush=True)


def _saved(reports: Iterator[Report], output: Path) -> Iterator[Report]:
    """The reports; a counterexample is saved before it is told."""
    for report in reports:
        if report.found is not None:
            report.found.save(output)
        yield report


def gather(tasks: Sequence[Task], output: Path, watcher: Watcher) -> tuple[Totals, str]:
    """One child process for each task; the first that finds something is waited for, the others are ended."""
    with tempfile.TemporaryDirectory() as folder:
        children = [Child(task, Path(folder) / f"{number}.json") for number, task in enumerate(tasks)]
        try:
            finder = _watch(children, output, watcher)
        finally:
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
            selector.register(child.stdout, selectors.EVENT_READ, child)
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
        self._process = subprocess.Popen(
            [*python("pawl.cli"), "explore", "--report", *words_of(task), "--output", str(output)],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert self._process.stdout is not None
        self.stdout = self._process.stdout

    def read(self) -> bool:
        """Take one line of its report. False when there is no further one."""
        line = self.stdout.readline()
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
        if self._process.poll() is None:
            self._process.terminate()

    def end(self) -> int:
        """Its exit status, once it has ended; it is ended if need be."""
        try:
            self._process.wait(PATIENCE_S if self.final else 0.0)
        except subprocess.TimeoutExpired:
            self.stop()
        self.stdout.close()
        return self._process.wait()


def words_of(task: Task) -> list[str]:
    """The task as flags of `pawl explore`."""
    flags = {
        "--seed": task.seed,
        "--stride": task.stride,
        "--ends": task.ends,
        "--schedules": task.schedules,
        "--shrink-seconds": task.shrink_seconds,
        "--strategy": task.strategy,
        "--cell": task.cell,
        "--policy": task.policy,
        "--cache": task.cache,
        "--scheduler": task.scheduler,
        "--max-requests": task.max_requests,
        "--faults": task.faults,
    }
    flags |= {flag_of(name): value for name, value in (task.fixed | task.of_requests).items()}
    if task.workload is not None:
        flags["--workload"] = task.workload
    return [str(word) for flag in flags.items() for word in flag]


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
