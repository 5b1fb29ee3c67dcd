"""Drives a loop and a ghost worker by hand: no actors, no threads, a clock that counts steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from pawl.gpu.ghost.language import END_TOKEN
from pawl.gpu.ghost.runner import Ghost, PlannedFailure
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.records import Started
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import StepResult
from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.lifecycle.weight_source import Sent
from pawl.loops.adapter import AdapterEffects, Named
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.intake import Intake, Order, Outcome
from pawl.loops.pacing import PACINGS
from pawl.loops.select import LoopConfig, make_loop
from pawl.loops.tiers import PageFetch, PrefillOrder
from pawl.loops.weights import Served
from pawl.memory.arrays import Int32s
from pawl.memory.violation import MemoryViolation
from pawl.testing.expectations import simulated_grammars

STAGES = 3
"""Of the pipeline."""
CELLS = [(pacing, mixed) for pacing in PACINGS for mixed in (False, True)]


def first_record(config: LoopConfig, seed: int = 0) -> Started:
    """Of the trace of such a loop, with a ghost as its worker."""
    return Started(
        version="test",
        model="ghost",
        config={"loop": msgspec.to_builtins(config), "backend": "ghost"},
        num_pages=config.num_pages,
        page_size=config.page_size,
        num_slots=config.max_running,
        seed=seed,
        time=0.0,
        wall=0.0,
    )


class Driver:
    """A loop, its worker, and what clients would have seen."""

    token_s = 0.0
    """What each position of a step adds to its time."""

    def __init__(self, **overrides: object) -> None:
        settings: dict[str, object] = {
            "num_pages": 64,
            "page_size": 4,
            "max_context": 128,
            "max_running": 8,
            "max_queued": 64,
            "prefill_chunk": 16,
            "stages": STAGES,
        }
        settings |= overrides
        self.config = LoopConfig(**settings)  # type: ignore[arg-type]
        self.records: list[object] = []
        self.loop = make_loop(self.config, self, Journal(self.records.append), self)
        self.members = self
        self.intake = Intake(self.loop, self, self.config.served)
        self.ghost = Ghost.for_shape(self.config, grammars=simulated_grammars())
        self.launched: deque[ScheduledBatch] = deque()
        self.output_of: dict[int, list[int]] = {}
        self.ending_of: dict[int, Ending] = {}
        self.outcome_of: dict[int, Outcome] = {}
        self.request_of: dict[int, int] = {}
        self.readings: list[tuple[int, int, str]] = []
        """Of adapters that are to be read: ticket, slot, source."""
        self.adapters: dict[str, int] = {}
        self.resting: list[str] = []
        """That requests may name."""
        self.served: Served | None = None
        """What the gateway was told last."""
        self.prefills: list[PrefillOrder] = []
        """Under way at prefill replicas."""
        self.handed_over: list[tuple[int, int]] = []
        """Requests of a prefill replica that have ended."""
        self.now = 0.0
        self._next = 1

    # ---- effects ----

    def opened(self, row: int, ticket: RequestInfo, tokens: Int32s) -> None:
        self.request_of[row] = ticket.request
        self.output_of[ticket.request] = []

    def launch(self, scheduled: ScheduledBatch) -> None:
        self.launched.append(scheduled)

    def output(self, rows: Int32s, tokens: Int32s, scheduled: ScheduledBatch, result: StepResult) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            request = self.request_of[row]
            assert request not in self.ending_of, "a token after the terminal record"
            self.output_of[request].append(token)

    def ended(self, ending: Ending) -> None:
        assert ending.info.request not in self.ending_of, "two terminal records"
        self.ending_of[ending.info.request] = ending

    def violated(self, violation: MemoryViolation) -> None:
        raise violation

    def save(self, number: int, pages: Int32s, keys: tuple[bytes, ...]) -> None: ...

    def fetch(self, order: PageFetch) -> None: ...

    def fence(self, ticket: int) -> None: ...

    def empty_host(self, era: int) -> None: ...

    def prefill(self, order: PrefillOrder) -> None:
        """A test tells what has become of it."""
        self.prefills.append(order)

    def cancel(self, ticket: int, prefiller: int) -> None:
        self.prefills = [order for order in self.prefills if order.ticket != ticket]

    def end_of_pages(self, request: int, num_cached: int) -> None:
        self.handed_over.append((request, num_cached))

    # ---- caller of the intake ----

    def answered(self, number: int, outcome: Outcome) -> None:
        self.outcome_of[number] = outcome

    def remind(self, delay_s: float, order: Order) -> None:
        """The clock counts steps: a test gives the order itself."""

    def stage(self, ticket: int, source: Sent, last: bool) -> None:
        """A test tells what has become of it."""

    def exchanged(self, served: Served) -> None:
        self.served = served

    @property
    def adapter_effects(self) -> AdapterEffects:
        return self

    def read(self, ticket: int, slot: int, source: str) -> None:
        """A test tells what has become of it."""
        self.readings.append((ticket, slot, source))

    def empty(self, slot: int) -> None:
        self.ghost.unload_adapter(slot)

    def named(self, adapters: tuple[Named, ...], resting: tuple[Named, ...]) -> None:
        self.adapters = {adapter.name: adapter.number for adapter in adapters}
        self.resting = [adapter.name for adapter in resting]

    def join_group(self, number: int, place: Place) -> None:
        """A test tells what has become of it."""

    def receive_weights(self, number: int, ticket: int, specs: Sequence[TensorSpec], flat: bool) -> None:
        """A test tells what has become of it."""
        self.awaited = number, ticket, tuple(specs), flat

    def keep_groups(self, numbers: Sequence[int]) -> None:
        self.groups_kept = list(numbers)

    # ---- driving ----

    def submit(
        self,
        prompt: list[int],
        max_new_tokens: int = 8,
        *,
        namespace: str = "",
        priority: int = 0,
        deadline: float = float("inf"),
        output: Sequence[int] = (),
        rid: str = "",
        **drawn: Any,
    ) -> int:
        """`drawn`: how, as `SamplingParameters` has it; otherwise greedily. `output`: what it has had elsewhere."""
        request, self._next = self._next, self._next + 1
        if drawn.get("grammar") is not None:
            drawn |= {"stop_token_ids": (END_TOKEN,), "eos_token_ids": (END_TOKEN,)}
        sampling = SamplingParameters(**{"temperature": 0.0} | drawn, max_new_tokens=max_new_tokens)
        ticket = RequestInfo(request, rid or f"r{request}", sampling, namespace, self.now)
        ticket.num_retractions = ticket.num_resumed = int(len(output) > 0)
        had = np.array(output, np.int32)
        self.intake.submit(ticket, np.array(prompt, np.int32), priority, deadline, self.now, had)
        self.output_of[request] += output
        return request

    def step(self) -> bool:
        """Let the loop plan, then one launched step run and commit. False when there is nothing to do."""
        self.now += 1.0
        self.intake.turn(self.now)
        if not self.launched:
            return False
        scheduled = self.launched.popleft()
        self.now += self.token_s * int(scheduled.batch.lengths.sum())
        try:
            result = self.ghost.launch(scheduled.batch)
        except PlannedFailure as error:
            self.launched.clear()
            self.loop.failed(scheduled.step, str(error), self.now)
            self.ghost.reset()
        else:
            self.loop.executed(result, self.now)
        self.loop.check_all()
        return True

    def run(self, limit: int = 10_000) -> int:
        """Steps until rest; fails when there is no rest within `limit`."""
        for count in range(limit):
            if not self.step():
                assert self.loop.idle, "nothing to do, but requests are live"
                return count
        raise AssertionError(f"no rest within {limit} steps")

    def cause(self, request: int) -> Cause:
        return self.ending_of[request].cause
