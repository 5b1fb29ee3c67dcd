"""A process that explores what may hang or end it, and the one that watches it: neither is lost with the other."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import selectors
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from pawl.commands.failures import exit_status, told
from pawl.testing.subject.watchdog import DEAF, WHERE, Pulse, be_watched

Tell: TypeAlias = Callable[[dict[str, Any]], None]
"""Tells whoever watches something, as JSON."""
PATIENCE_S = 5.5
"""After which a call that stands still is ended with its process: those that an exception can end have been by then."""
LOOK_S = 0.5
"""From one look at a process to the next, at the most."""
CLOSED = "closed files that are not its own"
GRACE_S = 1.0
"""For a process to end that is asked to."""
LEAVING_S = 60.0
"""For one to end that has come to its end, on a machine that has much else to do."""


class _Gone(Exception):
    """Nobody is there to be told."""


def report(body: Callable[[Tell], None], reports: int, parent: int) -> None:
    """What `body` tells, as lines of JSON into this descriptor, for as long as the process `parent` lives."""
    with contextlib.suppress(_Gone), open(reports, "w", encoding="utf-8") as lines:

        def tell(facts: dict[str, Any]) -> None:
            if os.getppid() != parent:
                raise _Gone
            print(json.dumps(facts), file=lines, flush=True)

        try:
            body(tell)
        except Exception as error:
            status = exit_status(error)
            if status is None:
                raise
            print(f"pawl: {told(error)}", file=sys.stderr)
            sys.exit(status)


class Watched:
    """A process, forked. To be made before there are other threads, which might hold locks that it would wait for."""

    def __init__(self, body: Callable[[Tell], None]) -> None:
        """`body` runs there, and tells what there is to tell."""
        self._pulse = Pulse()
        self._number, self._still_s, self._looked = 0, 0.0, time.monotonic()
        self.lost = ""
        """The call that did not return, or ended the process, in words; empty: none did."""
        self.hung = False
        """Whether it did not return."""
        ours, theirs = os.pipe()
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(body, theirs))
        self._process.start()
        os.close(theirs)
        self.reports = open(ours, "rb")  # noqa: SIM115 - closed by `end`

    def _run(self, body: Callable[[Tell], None], reports: int) -> None:
        be_watched(self._pulse)
        self._pulse.tells_by(reports)
        os.dup2(2, 1)  # what is explored may print, and is not the report
        try:
            report(body, reports, os.getppid())
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stderr.flush()
        os._exit(status)  # threads of what was explored may never end

    def read(self) -> dict[str, Any] | None:
        """What it tells next, which must be there; None: it tells no more."""
        line = self.reports.readline()
        try:
            facts: dict[str, Any] | None = json.loads(line)
        except ValueError:  # the end, or what was told no further
            return None
        return facts

    @property
    def noted(self) -> str:
        """What is known of the run that it was in."""
        return self._pulse.noted

    def look(self) -> bool:
        """Whether a call has stood still for too long; then the process is ended. Only time counts in which somebody
        looks: both may have been stopped."""
        now, number = time.monotonic(), self._pulse.number
        self._still_s += min(now - self._looked, 2 * LOOK_S)
        self._looked = now
        call = self._pulse.call
        if number != self._number or not call:
            self._number, self._still_s = number, 0.0
        if self._still_s < PATIENCE_S:
            return False
        self._signal(WHERE)
        self._process.join(LOOK_S)  # it has so long to say where it is
        self.lost, self.hung = "\n".join((f"{call} does not return", *self._pulse.where())), True
        self._process.kill()
        return True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.pid is not None:
                os.kill(self._process.pid, number)

    def said_no_more(self) -> None:
        """It has told its last, before all was told."""
        # Outside of calls nothing runs that closes what is not its own: it is ending, however long that takes.
        self._process.join(GRACE_S if self._pulse.call else LEAVING_S)
        status, call = self._process.exitcode, self._pulse.call
        if self.lost:
            return
        if status is None:
            self.lost = f"{call or 'a call'} {CLOSED}"
        elif call:  # what is raised ends a call
            self.lost = f"{call} {_ended(status)}"

    def stop(self) -> None:
        """It is not needed any more."""
        self._process.terminate()

    def end(self, patience_s: float = 0.0) -> int:
        """Its exit status, once it has ended; it is ended if need be."""
        self._process.join(patience_s)
        if self._process.is_alive():
            self.stop()
            self._process.join(GRACE_S)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self.reports.close()
        return self._process.exitcode or 0


def _ended(status: int) -> str:
    if status == DEAF:
        return CLOSED
    if status < 0:
        return f"ended the process, by signal {-status}" + (" (as where memory runs out)" if status == -9 else "")
    return f"ended the process, with status {status}"


def follow(process: Watched, tick: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """What it tells, until it tells no more or is lost."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.reports, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=LOOK_S):
                facts = process.read()
                if facts is None:
                    process.said_no_more()
                    return
                yield facts
            tick()
            if process.look():
                return
