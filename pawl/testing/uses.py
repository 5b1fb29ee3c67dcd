"""Who uses cached pages in a simulated engine, beside what is told to the cache: policies go by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from pawl.loops.loop import Loop
from pawl.memory.memory import Granted
from pawl.memory.prefix.base import Hold
from pawl.memory.undo import Undo

Report: TypeAlias = Callable[[str, str], None]
"""(property, what is wrong)"""


class Uses:
    """A request uses what it was admitted with, and what it computes beyond that, unless its admission is undone. Who
    looks, and who waits for pages behind those that are there, uses nothing."""

    def __init__(self) -> None:
        self.admitting = self.undoing = False
        """An admission is tried, or undone."""
        self._of_requests: dict[int, Hold] = {}
        """By identity: what requests were admitted with, or have cached since."""

    def matched(self, hold: Hold) -> None:
        """Somebody has found this."""
        if self.admitting:
            self._of_requests[id(hold)] = hold

    def inserted(self, hold: Hold, before: Hold | None) -> None:
        """This is held in place of what was `before`."""
        if before is not None and self._of_requests.pop(id(before), None) is not None:
            self._of_requests[id(hold)] = hold

    def released(self, hold: Hold, pages: list[int], *, used: bool) -> str:
        """Somebody lets go of this, which are these pages, and has `used` it or not. What is wrong with that; empty:
        nothing."""
        used_by_request = self._of_requests.pop(id(hold), None) is not None
        if used == (used_by_request and not self.undoing):
            return ""
        if not used:
            return f"a request goes that was admitted with pages {pages}, and does not count as one that used them"
        who = "an admission that is undone" if used_by_request else "somebody who was not admitted with them"
        return f"{who} counts as a use of pages {pages}"


def watch_uses(loop: Loop, report: Report) -> Uses:
    """From here on `Uses` knows what admissions of this loop find, and what priority is told to its cache is that of
    the request."""
    uses, memory = Uses(), loop.memory
    admit, share_prefix, undo = memory.admit, memory.share_prefix, memory._undo

    def admitted(*arguments: Any, **options: Any) -> Granted | None:
        uses.admitting = True
        try:
            return admit(*arguments, **options)
        finally:
            uses.admitting = False

    def shared(slot: int, tokens: Any, namespace: str, priority: int = 0) -> None:
        table = loop.table
        for row in loop.queues.running().tolist():
            if table.slot[row] == slot and table.priority[row] != priority:
                text = f"a request of priority {table.priority[row]} caches pages as one of priority {priority}"
                report("cache_as_stated", text)
        share_prefix(slot, tokens, namespace, priority)

    class Undoing(Undo):
        __slots__ = ()

        def admit(self, slot: int) -> None:
            uses.undoing = True
            try:
                super().admit(slot)
            finally:
                uses.undoing = False

    undo.__class__ = Undoing
    memory.admit, memory.share_prefix = admitted, shared  # type: ignore[method-assign]
    return uses
