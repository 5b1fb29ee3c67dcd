"""What notices an edit: exploration, and the tests that reach it. Each is asked in a process of its own.

The process is forked from one that has everything imported and collected, so that an edit costs what it takes to notice
it. Its processor time and its memory are limited: an edit that makes a loop endless is noticed by that.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from _pytest.runner import runtestprotocol

from tests.mutants import mutant
from tests.mutation.edits import Edit
from tests.mutation.planting import EditFails, Planter

SPARE_S = 20.0
"""Processor time that a test may take beyond what it took when it was measured, many times over."""
SLOWER = 10.0
PATIENCE_S = 240.0
"""Time without any sign of life after which it waits for ever. Other programs run as well, so it is long."""
PATIENCE_OF_A_TEST_S = 60.0
"""As much for a test, beyond what it took when it was measured, many times over."""
SPARE_BYTES = 4 << 30

KILLED = "killed"
SURVIVED = "survived"
ENDLESS = "endless"
STUCK = "stuck"
NO_PROGRAM = "no program"


class Verdict(msgspec.Struct, frozen=True):
    """What one of the two said."""

    outcome: str
    what: str = ""
    """The test that failed, or what the exploration told."""
    count: int = 0
    """Tests or schedules until then."""
    seconds: float = 0.0

    @property
    def noticed(self) -> bool:
        """Whether the edit shows."""
        return self.outcome in (KILLED, ENDLESS, STUCK)


class Explored(NamedTuple):
    """How far an exploration is."""

    schedules: int
    text: str
    """What was found."""


class Judge:
    """Plants edits in forks of this process. Make it when everything is imported."""

    def __init__(self, root: Path) -> None:
        gc.unfreeze()  # frozen objects are not found
        self._planter = Planter(root)
        gc.collect()
        gc.freeze()  # a fork need not look at what was there before it

    def explore(self, edit: Edit, exploration: Callable[[], Iterator[Explored]], limit_s: float) -> Verdict:
        """Explore with the edit in place until something is found."""

        def body(tell: Callable[..., None]) -> None:
            _limit(limit_s)
            schedules = 0
            for schedules, text in exploration():
                tell(count=schedules)
                if text:
                    tell(outcome=KILLED, what=" ".join(text.splitlines()[:1])[:200], count=schedules)
                    return
            tell(outcome=SURVIVED, count=schedules)

        return self._ask(edit, body)

    def test(self, edit: Edit | None, items: Sequence[pytest.Item], seconds: dict[str, float]) -> Verdict:
        """Run these tests with the edit in place, or with none, until one fails."""

        def body(tell: Callable[..., None]) -> None:
            for count, (item, following) in enumerate(zip(items, [*items[1:], None], strict=True), 1):
                known_s = SLOWER * seconds.get(item.nodeid, 0.0)
                _limit(SPARE_S + known_s)
                tell(what=item.nodeid, count=count, patience_s=PATIENCE_OF_A_TEST_S + known_s)
                reports = runtestprotocol(item, log=False, nextitem=following)
                if any(report.failed and not _is_of_the_text(report) for report in reports):
                    tell(outcome=KILLED, what=item.nodeid, count=count)
                    return
            tell(outcome=SURVIVED, what="", count=len(items))

        return self._ask(edit, body)

    def _ask(self, edit: Edit | None, body: Callable[[Callable[..., None]], None]) -> Verdict:
        began = time.monotonic()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _live(lambda: self._planter.plant(edit) if edit is not None else None, body, writer)
        os.close(writer)
        told, ended_by = _listen(reader, child)
        os.close(reader)
        if "outcome" not in told:
            told["outcome"] = {signal.SIGXCPU: ENDLESS, signal.SIGKILL: STUCK}.get(ended_by, KILLED)
        told["seconds"] = round(time.monotonic() - began, 2)
        return msgspec.convert(told, Verdict)


def _is_of_the_text(report: pytest.TestReport) -> bool:
    """Whether a test has failed only because a mutant of its own names the text that the edit changes."""
    return mutant.EditFails.__qualname__ in report.longreprtext


def _live(plant: Callable[[], None], body: Callable[[Callable[..., None]], None], writer: int) -> None:
    """The whole life of a child."""

    def tell(**facts: Any) -> None:
        os.write(writer, (json.dumps(facts) + "\n").encode())

    try:
        os.setpgid(0, 0)  # what it starts ends with it
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            plant()
        except EditFails as error:
            tell(outcome=NO_PROGRAM, what=str(error))
        else:
            body(tell)
    except BaseException as error:
        tell(outcome=KILLED, what=f"raised: {type(error).__name__}: {error}"[:200])
    finally:
        os._exit(0)


def _limit(seconds: float) -> None:
    """The process may use so much more processor time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _listen(reader: int, child: int) -> tuple[dict[str, Any], int]:
    """What the child told until its end, and the signal that ended it."""
    told: dict[str, Any] = {}
    buffer = b""
    while "outcome" not in told and select.select([reader], [], [], told.get("patience_s", PATIENCE_S))[0]:
        data = os.read(reader, 1 << 16)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            told |= json.loads(line)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return told, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
