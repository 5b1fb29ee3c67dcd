"""The worker's part in moving pages: reads them for a Save, writes them for a Fetch, and keeps its word about a Fence.

Device pages are read and written among the steps, in the order of the worker's messages: a page is copied before a
later step can reuse it, and is written before any step that reads it is launched.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import structlog

from pawl.actors.messages.transfer import Blocks, Fence, Fenced, Fill, Filled, Save, Saved
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.gpu.step_runner import RunnerLost, StepRunner

log = structlog.get_logger("pawl.worker")


class PageCopier:
    """Serves one worker actor, in its thread."""

    def __init__(self, actor: Actor, runner: StepRunner[Any], names: Names) -> None:
        self._names = names
        self._actor = actor
        self._runner = runner
        self._saved = 0
        """Every Save up to this number is done with."""
        self._filled = 0
        """The newest Fill that was handled. Fills come in the order of their tickets; what does not is refused."""
        self._fenced: set[int] = set()
        """Fetches that must not write, and whose Fill has not come yet."""
        self._waiting: deque[Fill] = deque()
        """Fills that came before a Save that reads their pages."""

    def save(self, message: Save, lost: bool) -> None:
        """Read the pages and send them to the storage. `lost`: the device's content can no longer be trusted."""
        if message.number > self._saved:
            self._saved = message.number
            if lost or not self._send_blocks(message):
                self._tell(Saved(message.number))
        else:
            # From before a reset: its pages mean something else by now.
            self._tell(Saved(message.number))
        self._fill_waiting()

    def failed(self, message: Save | Fill | Fence) -> None:
        """Half of it may be done: answer that nothing came of it, as the scheduler counts on. To answer twice does no
        harm."""
        match message:
            case Save(number):
                self._saved = max(self._saved, number)
                self._tell(Saved(number))
                self._fill_waiting()
            case Fill(ticket):
                self._waiting = deque(waiting for waiting in self._waiting if waiting is not message)
                self._filled = max(self._filled, ticket)
                self._tell(Filled(ticket, 0))
            case Fence(ticket):
                self._fenced.add(ticket)
                self._tell(Fenced(ticket))

    def _send_blocks(self, message: Save) -> bool:
        try:
            data = self._runner.read_pages(message.pages)
        except RunnerLost as lost:  # with the steps in flight, whose answers say so to everybody
            log.warning("pages could not be read", pages=len(message.pages), reason=str(lost))
            return False
        return self._actor.context.send(self._names.storage, Blocks(message.number, message.keys, data))

    def fill(self, message: Fill) -> None:
        """Write what a Fetch brought, unless it was fenced."""
        if self._waiting or message.after > self._saved:
            self._waiting.append(message)
        else:
            self._fill(message)

    def _fill(self, message: Fill) -> None:
        ticket, count = message.ticket, len(message.data)
        if ticket <= self._filled or ticket in self._fenced:
            count = 0
        if count:
            try:
                self._runner.write_pages(message.pages[:count], message.data)
            except Exception:
                log.exception("pages could not be written", pages=count)
                count = 0
        self._filled = max(self._filled, ticket)
        self._fenced = {fenced for fenced in self._fenced if fenced > self._filled}
        self._tell(Filled(ticket, count))

    def fence(self, message: Fence) -> None:
        """Promise that the Fetch writes nothing from here on."""
        if message.ticket > self._filled:
            self._fenced.add(message.ticket)
        self._tell(Fenced(message.ticket))

    def reset(self, next_save: int) -> None:
        """The device's content is gone: Saves numbered below `next_save` have nothing to read any more."""
        self._saved = max(self._saved, next_save - 1)
        self._fill_waiting()

    def _fill_waiting(self) -> None:
        while self._waiting and self._waiting[0].after <= self._saved:
            self._fill(self._waiting[0])
            self._waiting.popleft()

    def _tell(self, message: Saved | Filled | Fenced) -> None:
        self._actor.context.send(self._names.scheduler, message, Lane.CONTROL)
