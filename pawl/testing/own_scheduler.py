"""A user's own scheduler, whose calls are limited: one that does not return, or wants to end the process, is told as
that, before anything that follows from it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pawl.actors.scheduler import Scheduler
from pawl.testing.parts import OURS, PartFailed, method_at, raised
from pawl.testing.subject.watchdog import Hung, limited, pressed

CALL_S = 2.0
"""Seconds of the processor that a call may take: the whole engine plans within it, and is checked."""
FRAMES = 4
"""Of where it hangs, the innermost."""


class OwnScheduler(Scheduler):
    """Stands before a scheduler that is a user's own."""

    own_class: ClassVar[type[Scheduler]]
    own_name: ClassVar[str]
    on_fault: Callable[[BaseException], object]
    """Is told what the scheduler did wrong, when it does: an exception may be survived."""

    def receive(self, message: Any) -> None:
        with self._limiting("receive"):
            super().receive(message)

    def settled(self) -> None:
        with self._limiting("settled"):
            super().settled()

    def stopped(self, reason: str) -> None:
        with self._limiting("stopped"):
            super().stopped(reason)

    @contextmanager
    def _limiting(self, verb: str) -> Iterator[None]:
        part = f"{self.own_name} ({method_at(self.own_class, verb)})"
        try:
            with limited(CALL_S, of_processor=True, call=f"your scheduler {part}"):
                yield
        except Hung as error:
            frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(OURS)]
            where = traceback.format_list(frames[-FRAMES:])
            raise self._wrong_of(part, "\n".join(("does not return", *where)).rstrip()) from None
        except BaseException as error:
            ends = not isinstance(error, Exception) and not type(error).__module__.startswith("pawl.")
            if pressed(error) or not ends:
                raise
            raise self._wrong_of(part, raised(error)) from error

    def _wrong_of(self, part: str, what: str) -> PartFailed:
        failed = PartFailed("scheduler", part, what)
        self.on_fault(failed)
        return failed
