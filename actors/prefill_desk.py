"""The desk of a prefill replica: what decode replicas ask of it becomes requests of its scheduler.

    decode scheduler ── Prefill ──► desk ── SendPages ──► storage
                                     └───── Generate ───► scheduler ── Opened, StepTokens ──► desk

To its scheduler it is what tokenizer and detokenizer are to others. The pages go their own way, from storage to
storage; here is only known which prefills somebody may still cancel.
"""

from __future__ import annotations

from typing import Any

from pawl.actors.messages.generate import Generate, Opened, StepTokens, TextOptions
from pawl.actors.messages.hand_over import (
    CancelPrefill,
    DecoderUp,
    EndOfPages,
    ForgetReceiver,
    Prefill,
    PrefillerUp,
    SendPages,
    TicketOver,
)
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort

NO_OUTPUT = SamplingParameters(temperature=0.0, max_new_tokens=0)


class PrefillDesk(Actor):
    """Numbers of its requests rise, whoever asks."""

    accepts = Prefill | CancelPrefill | DecoderUp | Opened | StepTokens | Down

    def __init__(self, names: Names, decoders: tuple[Names, ...]) -> None:
        """`names` are those of this replica, `decoders` those of the replicas that may ask."""
        self._names = names
        self._storages = {decoder.scheduler: decoder.storage for decoder in decoders}
        self._numbers = 0
        self._jobs: dict[tuple[str, int], int] = {}
        """(who asked, its ticket) -> request."""

    @property
    def num_open(self) -> int:
        """Prefills that have not ended."""
        return len(self._jobs)

    def started(self) -> None:
        for scheduler in self._storages:
            self._up(scheduler)

    def receive(self, message: Any) -> None:
        match message:
            case Prefill():
                self._begin(message)
            case CancelPrefill(ticket, scheduler) if scheduler in self._storages:
                self._cancel([(scheduler, ticket)])
                # Its last pages may be under way, or lost.
                over = TicketOver(self._storages[scheduler], ticket)
                self.context.send(self._names.storage, over, Lane.CONTROL)
            case DecoderUp(scheduler):
                self._forget(scheduler)
                self._up(scheduler)
            case Down(scheduler):
                self._forget(scheduler)
            case StepTokens():
                ended = {end.request for end in message.ended}
                self._jobs = {asked: number for asked, number in self._jobs.items() if number not in ended}

    def _up(self, scheduler: str) -> None:
        if scheduler in self._storages:
            self.context.send(scheduler, PrefillerUp(self._names.detokenizer), Lane.CONTROL)

    def _begin(self, message: Prefill) -> None:
        storage = self._storages.get(message.scheduler)
        if storage is None or (message.scheduler, message.ticket) in self._jobs:
            return
        self._numbers += 1
        number = self._jobs[message.scheduler, message.ticket] = self._numbers
        self.context.send(self._names.storage, SendPages(number, message.ticket, storage, message.keys), Lane.CONTROL)
        generate = Generate(
            request=number,
            rid=f"{message.scheduler}/{message.ticket}",
            tokens=message.tokens,
            sampling=NO_OUTPUT,
            text_options=TextOptions(),
            namespace=message.salt,
        )
        if not self.context.send(self._names.scheduler, generate):
            # The one who waits is told by the end of nothing.
            del self._jobs[message.scheduler, message.ticket]
            self.context.send(self._names.storage, EndOfPages(number), Lane.CONTROL)

    def _cancel(self, asked: list[tuple[str, int]]) -> None:
        numbers = tuple(self._jobs.pop(each) for each in asked if each in self._jobs)
        if numbers:
            self.context.send(self._names.scheduler, Abort(numbers, Cause.CLIENT), Lane.CONTROL)

    def _forget(self, scheduler: str) -> None:
        """A decode replica is gone, or new: nobody waits for what was asked in its name."""
        self._cancel([asked for asked in self._jobs if asked[0] == scheduler])
        if scheduler in self._storages:
            self.context.send(self._names.storage, ForgetReceiver(self._storages[scheduler]), Lane.CONTROL)
