"""What the detokenizer is told: all that one handled message gave, in one message."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
import numpy as np

from pawl.actors.messages.generate import Admitted, Ended, StepTokens, Timing, Usage
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.step import Float32s, StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.loop import Loop
from pawl.loops.weights import Served
from pawl.memory.arrays import Indices, Int32s

_NONE: Int32s = np.empty(0, np.int32)


class StepReport:
    """Collects admissions, tokens and endings until they are taken as one message."""

    def __init__(self, replica: int = 0) -> None:
        self._replica = replica
        self._rows, self._tokens = _NONE, _NONE
        self._scheduled: ScheduledBatch | None = None
        self._result: StepResult | None = None
        self._ended: dict[int, Ended] = {}
        """By request. Whoever is told to end again, as the first time failed on the way, has one end."""
        self._admitted: list[Admitted] = []

    def launched(self, scheduled: ScheduledBatch, table: RequestTable, now: float) -> None:
        """Note when its requests were admitted for the first time, and what was cached. A first admission that is
        undone is followed by another one."""
        for row in scheduled.admitted:
            info = table.info(row)
            if not info.num_retractions:
                info.admitted = now if info.admitted is None else info.admitted
                self._admitted.append(Admitted(row, info.num_cached, Timing(info.submitted, info.admitted)))

    def output(self, rows: Indices, tokens: Int32s, scheduled: ScheduledBatch, result: StepResult) -> None:
        """The tokens of a committed step; `rows` are those that are still wanted."""
        self._rows, self._tokens = rows.astype(np.int32), tokens
        self._scheduled, self._result = scheduled, result

    def ended(self, ending: Ending, now: float) -> None:
        """A request had its terminal event."""
        info = ending.info
        drafts = ending.num_drafted, ending.num_accepted
        usage = Usage(ending.num_prompt, ending.num_output, info.num_cached, info.num_retractions, *drafts)
        timing = Timing(info.submitted, info.admitted, info.first_token, now)
        self._ended[info.request] = Ended(
            ending.row, info.request, ending.cause, usage, timing, ending.message, ending.matched
        )

    def withdraw(self, uncommitted: Collection[ScheduledBatch]) -> None:
        """None of these steps is committed after all."""
        if any(scheduled is self._scheduled for scheduled in uncommitted):
            self._rows, self._tokens, self._scheduled, self._result = _NONE, _NONE, None, None

    def send(self, loop: Loop, served: Served, send: Callable[[StepTokens], object]) -> None:
        """Send what has come together, if the detokenizer needs to know; `loop` has just committed it, with these
        weights. Admissions alone wait for the first token or ending. What could not be sent stays."""
        rows, tokens, scheduled, result = self._rows, self._tokens, self._scheduled, self._result
        if result is None and not self._ended:
            return
        if len(rows) or self._ended or (result is not None and result.prompt_logprobs):
            logprobs, prompt_logprobs, embeddings = None, tuple[Any, ...](), tuple[tuple[int, Float32s], ...]()
            if scheduled is not None and result is not None:
                logprobs, prompt_logprobs, embeddings = _told(loop, scheduled, result)
            ended, admitted = tuple(self._ended.values()), tuple(self._admitted)
            no_end: dict[int, Ended] = {}
            nobody: list[Admitted] = []
            more = ended, admitted, embeddings, served.version, served.fingerprint, self._replica
            send(StepTokens(rows, tokens, logprobs, prompt_logprobs, *more))
            # Nothing can fail between these.
            self._result = None
            self._ended = no_end
            self._admitted = nobody
        self._result = None
        self._rows, self._tokens, self._scheduled = _NONE, _NONE, None


def _told(
    loop: Loop, scheduled: ScheduledBatch, result: StepResult
) -> tuple[Any, tuple[Any, ...], tuple[tuple[int, Float32s], ...]]:
    """Log-probabilities of the tokens that are still wanted, and of prompts with the row of each; vectors likewise."""
    logprobs, fresh = result.logprobs, loop.fresh_at_commit
    if logprobs is not None and not (fresh.all() and result.counts is None):
        wanted = loop.wanted_tokens(scheduled)
        logprobs = type(logprobs)(*(array[wanted] for array in msgspec.structs.astuple(logprobs)))
    row_of_slot = scheduled.row_of_slot(fresh)
    prompt = tuple((row_of_slot[p.slot], p) for p in result.prompt_logprobs if p.slot in row_of_slot)
    embeddings = tuple((row_of_slot[e.slot], e.vector) for e in result.embeddings if e.slot in row_of_slot)
    return logprobs, prompt, embeddings
