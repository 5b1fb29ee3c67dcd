"""Property `start_agrees`: what the first record says of the engine, it says twice alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Answered, Started, Submitted

SAID_TWICE = {"num_pages": "num_pages", "page_size": "page_size", "num_slots": "max_running", "seed": "seed"}
"""Fields of the first record, and the settings of the loop that they repeat."""
GHOST = "ghost"
"""The model without a model, and its backend."""


class StartAgrees(Property):
    """A run starts once, and its first record agrees with itself: pages, slots and seed are those of the loop, and what
    computes is named: for the ghost it is the ghost, and for no other model. A scheduler that is not ours has none of
    this, and a prefill replica is asked for no output and has no clients."""

    name: ClassVar[str] = "start_agrees"

    def __init__(self) -> None:
        self._started = False

    @on(Started)
    def _starts(self, record: Started, history: History) -> Sequence[Violation]:
        return tuple(self._judged(record, history))

    def _judged(self, record: Started, history: History) -> Iterator[Violation]:
        if self._started:
            yield self.violation(history, "the engine starts a second time")
        self._started = True
        found, backend = record.config.get("loop"), record.config.get("backend")
        loop: dict[str, Any] = found if isinstance(found, dict) else {}
        for field, setting in SAID_TWICE.items():
            said, meant = getattr(record, field), loop.get(setting)
            if setting in loop and said != meant:
                yield self.violation(history, f"the engine has {field} = {said}, its loop {setting} = {meant}")
        if not isinstance(backend, str):
            yield self.violation(history, "the engine does not say what computes")
        elif (backend == GHOST) != (record.model == GHOST):
            yield self.violation(history, f"the model is {record.model}, and {backend} computes it")
        if "outside" in record.config:
            yield self.violation(history, "an engine calls itself a scheduler that is not ours")

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        if not record.sampling.max_new_tokens or not _prefills(history.started):
            return ()
        return (self.violation(history, "a prefill replica is asked for output", record.request),)

    @on(Answered)
    def _answered(self, record: Answered, history: History) -> Sequence[Violation]:
        if not _prefills(history.started):
            return ()
        return (self.violation(history, "a client of a prefill replica is told its end", record.request),)


def _prefills(started: Started | None) -> bool:
    loop = None if started is None else started.config.get("loop")
    return isinstance(loop, dict) and loop.get("role") == "prefill"
