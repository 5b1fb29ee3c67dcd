"""`pawl explore`: the whole engine in a simulator, under as many schedules as the time allows, checked at every step;
with `--subject`, a scheduler that is not ours.

0: no property failed. 1: one did; the counterexample is printed, and saved for `pawl replay`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pawl.commands.failures import UsageError
from pawl.commands.numbers import finite
from pawl.exploration import ANY, CELLS, Totals
from pawl.exploration.fixed import add_flags, given
from pawl.exploration.subjects import SUBJECTS
from pawl.exploration.summary import as_json, lines

if TYPE_CHECKING:
    from pawl.exploration.task import Task

MOST_FAULTS = 3
MOST_WORKERS = 1024
MOST_DRAWN = 1000
"""Requests of a workload, and faults of a kind: more than a schedule would ever come to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, how, and what."""
    parser.add_argument(
        "--subject",
        metavar="NAME",
        help="in place of this engine a scheduler that is not ours: FILE.py:CLASS, MODULE:CLASS"
        + "".join(f", {name}" for name in SUBJECTS)
        + "; see docs/testing-your-scheduler.md",
    )
    parser.add_argument("--seconds", type=finite, default=60.0, metavar="X", help="time to explore (default: 60)")
    parser.add_argument(
        "--shrink-seconds",
        type=finite,
        default=20.0,
        metavar="X",
        help="of these, time to make a counterexample smaller; 0: leave it as it was found (default: 20)",
    )
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
        default=ANY,
        metavar="NAME",
        help="order of admission: a built-in one, or your own as FILE.py:CLASS or MODULE:CLASS (default: any)",
    )
    parser.add_argument("--cache", default=ANY, metavar="NAME", help="a built-in one, or your own (default: any)")
    parser.add_argument("--scheduler", default="", metavar="NAME", help="your own subclass of Scheduler")
    add_flags(parser)
    parser.add_argument(
        "--workload", type=Path, metavar="FILE", help="of `pawl trace export scenario`, in place of random ones"
    )
    parser.add_argument(
        "--max-requests", type=int, default=5, metavar="N", help="of one workload (default: 5); where many wait 6 to 9"
    )
    parser.add_argument(
        "--faults",
        type=int,
        metavar="N",
        help=f"of a kind in one run, at the most (default: {MOST_FAULTS})",
    )
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="of workloads and schedules")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: all cores; a subject is explored in one)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, with what was reached")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("schedule.json"), metavar="FILE", help="(default: %(default)s)"
    )
    parser.epilog = "exit status: 0 no property failed, 1 one did, 4 there was nothing to explore"


def run(arguments: argparse.Namespace) -> int:
    """Explore; print what was done and the counterexample, if one was found."""
    seed = int.from_bytes(os.urandom(3), "little") if arguments.seed is None else arguments.seed
    if min(arguments.seconds, arguments.max_requests) <= 0 or min(arguments.shrink_seconds, arguments.schedules) < 0:
        raise UsageError("--seconds and --max-requests must be above zero, --shrink-seconds and --schedules at least 0")
    if arguments.output.is_dir() or not os.access(arguments.output.parent, os.W_OK):
        raise UsageError(f"--output: nothing can be saved as {arguments.output}")
    if arguments.subject is not None:
        from pawl.commands.explore_subject import run as run_subject

        return run_subject(arguments, seed)
    if arguments.workers is None:
        arguments.workers = len(os.sched_getaffinity(0))
    if not 0 < arguments.workers <= MOST_WORKERS:
        raise UsageError(f"--workers must be above zero, and {MOST_WORKERS} at the most")
    if arguments.max_requests > MOST_DRAWN or not 0 <= (arguments.faults or 0) <= MOST_DRAWN:
        raise UsageError(f"--max-requests may be {MOST_DRAWN} at the most, and --faults from 0 to as many")
    began = time.monotonic()
    task = task_of(arguments, seed, began)
    _load_own(task)
    totals, text = _explore(task, arguments)
    seconds = time.monotonic() - began
    if arguments.json:
        print(json.dumps(as_json(totals, seconds, seed, text), indent=1))
    else:
        _print(totals, seconds, seed, text, arguments.output)
    return int(bool(text))


def task_of(arguments: argparse.Namespace, seed: int, began: float) -> Task:
    """What one process does."""
    from pawl.exploration.task import Task

    fixed, of_requests = given(arguments)
    return Task(
        seed=seed,
        stride=1,
        strategy=arguments.strategy,
        cell=arguments.cell,
        policy=arguments.policy,
        cache=arguments.cache,
        scheduler=arguments.scheduler,
        fixed=fixed,
        of_requests=of_requests,
        workload=arguments.workload,
        max_requests=arguments.max_requests,
        faults=MOST_FAULTS if arguments.faults is None else arguments.faults,
        shrink_seconds=arguments.shrink_seconds,
        schedules=arguments.schedules,
        ends=began + arguments.seconds,
    )


def _load_own(task: Task) -> None:
    """Load the parts of the engine that are the user's own, and see whether there is anything to explore with what was
    fixed. Raises UsageError, or CommandFailed for a file that holds no scenario."""
    from pawl.exploration.task import workload_of
    from pawl.testing.plugins import know_all
    from pawl.testing.shape import Shape

    try:
        know_all(Shape(**task.shape))
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    workload_of(task, task.seed)


def _explore(task: Task, arguments: argparse.Namespace) -> tuple[Totals, str]:
    """In as many processes as asked for; the first counterexample ends them all and is told as text."""
    from pawl.exploration.processes import UNSAVED, Clock, Watcher, follow, gather, started, with_fewer
    from pawl.logs import progress

    count, output = arguments.workers, arguments.output

    def found(text: str) -> None:
        saved = "" if text.endswith(UNSAVED) else f", and saved to {output}"
        print(f"found{saved}: {text.splitlines()[0]}", file=sys.stderr, flush=True)

    each = -(-task.schedules // count)
    tasks = [task._replace(seed=task.seed + number, stride=count, schedules=each) for number in range(count)]
    with (
        started(tasks if count > 1 or _own(task) else []) as children,
        progress("seconds", max(1, int(arguments.seconds))) as advance,
    ):
        watcher = Watcher(Clock(advance).tick, found)
        totals, text = gather(children, output, watcher) if children else follow(task, output, watcher)
    return totals, with_fewer(text, task, output) if text.endswith(UNSAVED) else text


def _own(task: Task) -> bool:
    """Whether a part is the user's own: it may hang, and end its process."""
    return any(":" in name for name in (task.policy, task.cache, task.scheduler))


def _print(totals: Totals, seconds: float, seed: int, text: str, output: Path) -> None:
    from pawl.exploration.processes import UNSAVED
    from pawl.exploration.task import UNSTEADY

    print(
        f"{totals.schedules:,} schedules of {totals.workloads:,} workloads, {totals.deliveries:,} messages delivered "
        f"in {seconds:.1f} s: {totals.deliveries / seconds:,.0f} deliveries/s; seed {seed}"
    )
    print(f"{totals.confirmed:,} schedules were run twice, and came out the same")
    if not text:
        for line in lines(totals):
            print(line)
    print(f"violations: {1 if text else 0}")
    if text:
        print(f"\n{text}")
        if not text.startswith(UNSTEADY) and not text.endswith(UNSAVED):
            print(f"\nsaved; to see it again: pawl replay {output}")
