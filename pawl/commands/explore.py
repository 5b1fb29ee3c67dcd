"""`pawl explore`: the whole engine in a simulator, under as many schedules as the time allows, checked at every step.

0: no property failed. 1: one did; the counterexample is printed, and saved for `pawl replay`.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pawl.commands.failures import CommandFailed, UsageError
from pawl.exploration import CELLS, Totals
from pawl.logs import progress

if TYPE_CHECKING:
    from pawl.testing import Faults, Found, Workload
    from pawl.testing.scenario import Scenario

SCHEDULES_EACH = 20
"""Schedules of one workload before the next one is drawn."""
REPLAYED_EVERY = 8
"""Workloads of which one has its runs replayed as well."""
CONFIRMED_EVERY = 4
"""Workloads of which one has a schedule run twice: it must come out the same."""
EXPLORED = ("pct", "pos", "random", "coverage", "fair")
"""Strategies that take turns unless one is named."""
QUEUE_EVERY = 5
"""Workloads of which one is a queue for few places: the order of admission shows there."""
UNSTEADY = "one_decision_log: the same schedule came out differently"
REPORT_S = 0.5
PATIENCE_S = 10.0
"""For a worker to end after its last report."""


class Task(NamedTuple):
    """What one process explores."""

    seed: int
    stride: int
    """Workloads seed, seed + stride, seed + 2 stride, …"""
    strategy: str
    cell: str
    policy: str
    cache: str
    scheduler: str
    workload: Path | None
    max_requests: int
    faults: int
    shrink: bool
    schedules: int
    """At the most; 0: as many as the time allows."""
    ends: float
    """Of the process's clock."""


class Report(NamedTuple):
    """How far an exploration is."""

    totals: Totals = Totals()
    found: Found | None = None
    unsteady: str = ""
    """How a schedule that was run twice came out differently."""

    @property
    def text(self) -> str:
        """What was found, if something was."""
        return self.unsteady or str(self.found or "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, how, and what."""
    parser.add_argument("--seconds", type=float, default=60.0, metavar="X", help="time to explore (default: 60)")
    parser.add_argument("--schedules", type=int, default=0, metavar="N", help="end after so many schedules")
    parser.add_argument(
        "--strategy",
        choices=("all", "fair", "random", "pct", "pos", "exhaustive", "coverage"),
        default="all",
        help="who decides the schedule; all: they take turns (default: all)",
    )
    parser.add_argument("--cell", choices=("all", *CELLS), default="all", help="which loop (default: all)")
    parser.add_argument(
        "--policy",
        default="fcfs",
        metavar="NAME",
        help="order of admission: a built-in one, or your own as FILE.py:CLASS or MODULE:CLASS (default: fcfs)",
    )
    parser.add_argument(
        "--cache", default="any", metavar="NAME", help="radix, none, any of these, or your own (default: any)"
    )
    parser.add_argument("--scheduler", default="", metavar="NAME", help="your own subclass of Scheduler")
    parser.add_argument(
        "--workload", type=Path, metavar="FILE", help="of `pawl trace export scenario`, in place of random ones"
    )
    parser.add_argument("--no-shrink", action="store_true", help="leave a counterexample as large as it was found")
    parser.add_argument(
        "--max-requests", type=int, default=5, metavar="N", help="of one workload (default: 5); queues have 6 to 9"
    )
    parser.add_argument("--faults", type=int, default=1, metavar="N", help="of a kind in one run (default: 1)")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="of workloads and schedules")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("schedule.json"), metavar="FILE", help="(default: %(default)s)"
    )
    # For the processes that this command starts.
    parser.add_argument("--stride", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help=argparse.SUPPRESS)
    parser.epilog = "exit status: 0 no property failed, 1 one did"


def run(arguments: argparse.Namespace) -> int:
    """Explore; print what was done and the counterexample, if one was found."""
    if min(arguments.seconds, arguments.workers, arguments.max_requests) <= 0 or arguments.faults < 0:
        raise UsageError("--seconds, --workers and --max-requests must be above zero, --faults at least 0")
    _load_own(arguments)
    seed = int.from_bytes(os.urandom(3), "little") if arguments.seed is None else arguments.seed
    began = time.monotonic()
    if arguments.report:
        return _report(arguments, seed)
    totals, text = _explore_all(arguments, seed)
    seconds = time.monotonic() - began
    print(
        f"{totals.schedules:,} schedules of {totals.workloads:,} workloads, {totals.deliveries:,} messages delivered "
        f"in {seconds:.1f} s: {totals.deliveries / seconds:,.0f} deliveries/s; seed {seed}"
    )
    print(f"{totals.confirmed:,} schedules were run twice, and came out the same")
    if not text:
        print("violations: 0")
        return 0
    print(f"violations: 1\n\n{text}")
    if not text.startswith(UNSTEADY):
        print(f"\nsaved; to see it again: pawl replay {arguments.output}")
    return 1


def _load_own(arguments: argparse.Namespace) -> None:
    """Load the parts of the engine that are the user's own. Raises UsageError."""
    from pawl.testing.plugins import know_all
    from pawl.testing.workload import Shape

    try:
        know_all(Shape(**_fixed(_task(arguments, 0))))
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


# ---- processes ----


def _explore_all(arguments: argparse.Namespace, seed: int) -> tuple[Totals, str]:
    """Explore in as many processes as asked for; the first counterexample ends them all and is told as text."""
    with progress("seconds", max(1, int(arguments.seconds))) as advance:
        if arguments.workers == 1:
            return _follow(_explore(_task(arguments, seed)), arguments.output, advance)
        return _gather(arguments, seed, advance)


def _task(arguments: argparse.Namespace, seed: int) -> Task:
    return Task(
        seed=seed,
        stride=arguments.stride,
        strategy=arguments.strategy,
        cell=arguments.cell,
        policy=arguments.policy,
        cache=arguments.cache,
        scheduler=arguments.scheduler,
        workload=arguments.workload,
        max_requests=arguments.max_requests,
        faults=arguments.faults,
        shrink=not arguments.no_shrink,
        schedules=arguments.schedules,
        ends=time.monotonic() + arguments.seconds,
    )


def _follow(reports: Iterator[Report], output: Path, advance: Callable[[int], None]) -> tuple[Totals, str]:
    """The last of the reports; a counterexample is saved."""
    last = Report()
    clock = _Clock(advance)
    for report in reports:
        last = report
        clock.tick()
    if last.found is not None:
        last.found.save(output)
    return last.totals, last.text


class _Clock:
    """Advances a progress bar of seconds."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._began = time.monotonic()
        self._told = 0

    def tick(self) -> None:
        now = int(time.monotonic() - self._began)
        self._advance(now - self._told)
        self._told = now


def _gather(arguments: argparse.Namespace, seed: int, advance: Callable[[int], None]) -> tuple[Totals, str]:
    """One child process for each worker. They are commands of their own and report in JSON lines."""
    count = arguments.workers
    with tempfile.TemporaryDirectory() as folder:
        children = [_Child(arguments, seed + index, Path(folder) / f"{index}.json") for index in range(count)]
        try:
            clock = _Clock(advance)
            with selectors.DefaultSelector() as selector:
                for child in children:
                    selector.register(child.stdout, selectors.EVENT_READ, child)
                while selector.get_map() and not any(child.text for child in children):
                    for key, _ in selector.select(timeout=1.0):
                        if not key.data.read():
                            selector.unregister(key.fileobj)
                    clock.tick()
        finally:
            statuses = [child.end() for child in children]
        totals = Totals()
        for child in children:
            totals = totals.plus(child.totals)
        for child in children:
            if child.text:
                if child.output.exists():
                    shutil.copyfile(child.output, arguments.output)
                return totals, child.text
        if any(statuses):
            raise CommandFailed("a process of the exploration failed; what it said is above")
        return totals, ""


class _Child:
    """One worker."""

    def __init__(self, arguments: argparse.Namespace, seed: int, output: Path) -> None:
        self.output = output
        self.totals = Totals()
        self.text = ""
        flags = {
            "--workers": 1,
            "--seed": seed,
            "--stride": arguments.workers,
            "--seconds": arguments.seconds,
            "--schedules": -(-arguments.schedules // arguments.workers),
            "--strategy": arguments.strategy,
            "--cell": arguments.cell,
            "--policy": arguments.policy,
            "--cache": arguments.cache,
            "--scheduler": arguments.scheduler,
            "--max-requests": arguments.max_requests,
            "--faults": arguments.faults,
            "--output": output,
        }
        if arguments.workload is not None:
            flags["--workload"] = arguments.workload
        words = [str(word) for flag in flags.items() for word in flag]
        if arguments.no_shrink:
            words.append("--no-shrink")
        command = [sys.executable, "-m", "pawl.cli", "explore", "--report", *words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.stdout = self._process.stdout

    def read(self) -> bool:
        """Take one line of its report. False when there is no further one."""
        line = self.stdout.readline()
        if line:
            told = json.loads(line)
            self.totals, self.text = Totals(*told["totals"]), told["text"]
        return bool(line)

    def end(self) -> int:
        """Its exit status, once it has ended; it is ended if need be."""
        if self._process.poll() is None:
            try:
                self._process.wait(0.0 if self.text == "" else PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.terminate()
        self.stdout.close()
        return self._process.wait()


def _report(arguments: argparse.Namespace, seed: int) -> int:
    """The body of a child: a JSON line now and then, and the last one at the end."""
    for report in _explore(_task(arguments, seed)):
        if report.found is not None:
            report.found.save(arguments.output)
        print(json.dumps({"totals": report.totals, "text": report.text}), flush=True)
    return 0


def _explore(task: Task) -> Iterator[Report]:
    """Explore until the time is over or something is found; tells how far it is now and then, and at the end."""
    from pawl.actors.simulation.strategies.exhaustive import NotDeterministic
    from pawl.testing import explore_workload

    totals, told, number = Totals(), time.monotonic(), 0
    strategies = EXPLORED if task.strategy == "all" else (task.strategy,)
    while time.monotonic() < task.ends and not 0 < task.schedules <= totals.schedules:
        seed = task.seed + number * task.stride
        workload = _workload(task, seed)
        strategy = strategies[number % len(strategies)]
        try:
            outcome = explore_workload(
                workload,
                strategy,
                SCHEDULES_EACH,
                seed=seed,
                faults=_faults(task, seed),
                confirm_every=SCHEDULES_EACH // 2 if number % CONFIRMED_EVERY == 0 else 0,
                replayed=number % REPLAYED_EVERY == 0,
                shrink=task.shrink,
            )
        except NotDeterministic as error:
            yield Report(totals, unsteady=f"{UNSTEADY}: {error}\n  workload: {workload.encode()}")
            return
        totals = totals.plus(Totals.of(outcome.result))
        number += 1
        if outcome.found is not None:
            yield Report(totals, outcome.found)
            return
        if time.monotonic() - told > REPORT_S:
            told = time.monotonic()
            yield Report(totals)
    yield Report(totals)


def _faults(task: Task, seed: int) -> Faults:
    """In one workload of four steps are lost, in another one clocks err."""
    from pawl.testing import NO_FAULTS, Faults

    if seed % 4 == 0:
        return Faults(strike=task.faults)
    if seed % 4 == 2:
        return Faults(rush=task.faults, late=task.faults, jump=task.faults)
    return NO_FAULTS


def _workload(task: Task, seed: int) -> Workload:
    from pawl.testing import Workload, contention

    if task.workload is not None:
        return load_scenario(task.workload).workload
    fixed = _fixed(task)
    if seed % QUEUE_EVERY == 0:
        return contention(seed, **fixed)
    return Workload.random(seed, max_requests=task.max_requests, **fixed)


def _fixed(task: Task) -> dict[str, Any]:
    """Fields of every workload's shape."""
    fixed: dict[str, Any] = {"policy": task.policy, "scheduler": task.scheduler}
    if task.cell != "all":
        fixed["pacing"], fixed["mixed"] = CELLS[task.cell]
    if task.cache != "any":
        fixed["cache"] = task.cache
    return fixed


def load_scenario(path: Path) -> Scenario:
    """What `pawl trace export scenario` wrote. Raises CommandFailed."""
    from pawl.testing.scenario import Scenario

    try:
        return Scenario.load(path)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{path} holds no scenario: {error}") from error
