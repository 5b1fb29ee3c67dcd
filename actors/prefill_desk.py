"""The desk of a prefill replica: what decode replicas ask of it becomes requests of its scheduler.

    decode scheduler ── Prefill ──► desk ── SendPages ──► storage
                                     └───── Generate ───► scheduler ── Opened, StepTokens ──► desk

To its scheduler it is what tokenizer and detokenizer are to others. The pages go their own way, from storage to
storage; here is only known which prefills somebody may still cancel.
"""

from __future__ import annotations

from typing import Any

from pawl.actors.messages.control import TraceLoss
from pawl.actors.messages.generate import Generate, Opened, Refused, StepTokens, TextOptions
from pawl.actors.messages.hand_over import (
    CancelPrefill,
    DecoderDown,
    DecoderUp,
    ForgetReceiver,
    Prefill,
    Received,
    SendPages,
    TicketOver,
    ToDesk,
)
from pawl.actors.messages.replicas import FromReplica
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort

NO_OUTPUT = SamplingParameters(temperature=0.0, max_new_tokens=0)


class PrefillDesk(Actor):
    """Numbers of its requests rise, whoever asks."""

    accepts: Any = ToDesk | Opened | StepTokens | Refused | FromReplica

    def __init__(self, names: Names) -> None:
        """`names` are those of this replica."""
        self._names = names
        self._storages: dict[str, str] = {}
        """Of decode replicas that may ask, by their schedulers' names."""
        self._numbers = 0
        self._jobs: dict[tuple[str, int], int] = {}
        """(who asked, its ticket) -> request."""

    @property
    def num_open(self) -> int:
        """Prefills that have not ended."""
        return len(self._jobs)

    def receive(self, message: Any) -> None:
        match message:
            case Prefill():
                self._begin(message)
            case CancelPrefill(ticket, scheduler) if scheduler in self._storages:
                self._cancel([(scheduler, ticket)])
                # Its last pages may be under way, or lost.
                over = TicketOver(self._storages[scheduler], ticket)
                self.context.send(self._names.storage, over, Lane.CONTROL)
            case DecoderUp(scheduler, storage):
                self._storages[scheduler] = storage
            case DecoderDown(scheduler) if scheduler in self._storages:
                self._forget(scheduler)
            case StepTokens():
                self._ended({end.request for end in message.ended})
            case Refused():
                self._ended({message.request})
            case TraceLoss():
                self.context.send(NAMES.gateway, message, Lane.CONTROL)

    def spares(self, message: Any, error: Exception) -> bool:
        """A prefill that cannot be begun is refused: who asked computes it. Twice is as good as once for all else."""
        if isinstance(message, Prefill):
            self.told_of(error, ticket=message.ticket)
            self._cancel([(message.scheduler, message.ticket)])
            if message.scheduler in self._storages:
                over = TicketOver(self._storages[message.scheduler], message.ticket)
                self.context.send(self._names.storage, over, Lane.CONTROL)
            self._refuse(message)
        else:
            self.told_of(error, message=type(message).__name__)
            self.receive(message)
        return True

    def _ended(self, requests: set[int]) -> None:
        self._jobs = {asked: number for asked, number in self._jobs.items() if number not in requests}

    def _begin(self, message: Prefill) -> None:
        storage = self._storages.get(message.scheduler)
        if storage is None:
            self._refuse(message)
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
            del self._jobs[message.scheduler, message.ticket]
            self.context.send(self._names.storage, TicketOver(storage, message.ticket), Lane.CONTROL)
            self._refuse(message)

    def _refuse(self, message: Prefill) -> None:
        self.context.send(message.scheduler, Received(message.ticket, 0), Lane.CONTROL)

    def _cancel(self, asked: list[tuple[str, int]]) -> None:
        numbers = tuple(self._jobs[each] for each in asked if each in self._jobs)
        if numbers:
            self.context.send(self._names.scheduler, Abort(numbers, Cause.CLIENT), Lane.CONTROL)
        self._ended({*numbers})

    def _forget(self, scheduler: str) -> None:
        """Nobody waits for what was asked in its name."""
        self._cancel([asked for asked in self._jobs if asked[0] == scheduler])
        self.context.send(self._names.storage, ForgetReceiver(self._storages[scheduler]), Lane.CONTROL)
        del self._storages[scheduler]
