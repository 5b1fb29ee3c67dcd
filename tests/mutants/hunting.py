"""The hunt for one mutant: the user's command, with its default flags, in a program that has the defect."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pawl.commands import explore
from pawl.exploration.processes import Watcher, follow
from pawl.exploration.task import Task
from pawl.testing.exploring import Schedule, load_schedule
from tests.mutants.mutant import Mutant, planted


class Hunt(NamedTuple):
    """What came of it."""

    schedules: int
    """Run; when it was found, the failing one is the last."""
    seconds: float
    """Until then, without shrinking."""
    found: Schedule | None
    """The smallest one."""


def hunt(mutant: Mutant, strategy: str, seconds: float, *, seed: int = 0) -> Hunt:
    """`pawl explore --strategy STRATEGY --seconds SECONDS --seed SEED --workers 1`, with the defect planted. What is
    found is made smaller in seconds of its own."""
    began, told = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "schedule.json"
        task = task_with(["--strategy", strategy, "--seconds", str(seconds)], seed, began)
        watcher = Watcher(lambda: None, lambda text: told.append(time.monotonic() - began))
        with planted(mutant):
            totals, text = follow(task, output, watcher)
        found = load_schedule(output) if output.exists() else None
    took = told[0] if told else time.monotonic() - began
    return Hunt(totals.schedules, took, found if text else None)


def task_with(flags: Sequence[str], seed: int, began: float) -> Task:
    """What `pawl explore` does with these flags, and with its defaults for the others."""
    parser = argparse.ArgumentParser()
    explore.add_arguments(parser)
    return explore.task_of(parser.parse_args(flags), seed, began)
