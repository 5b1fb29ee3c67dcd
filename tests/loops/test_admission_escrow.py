"""Escrow admission in pools of a few pages: nobody waits for ever, and the number of steps is bounded.

The bound that docs/architecture.md states, for a finite set of requests that each fit the pool alone:

    steps <= (depth + 2) * sum over requests of (chunks + outputs + 1) * (1 + others' chunks)

`chunks`: steps that computing all its tokens takes, `outputs`: tokens it generates. The last factor is 1 for loops that
mix prompts and decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.records import StepPlanned, Transition
from pawl.lifecycle.states import Cause, Event
from pawl.loops.admission import Admission
from pawl.loops.pacing import PACINGS
from pawl.loops.properties.state import name_of
from pawl.loops.queues import Queues
from pawl.memory.arrays import Int32s
from pawl.memory.escrow import Escrow
from pawl.memory.violation import MemoryViolation
from tests.loops.driver import CELLS, STAGES, Driver


@dataclass(frozen=True)
class Request:
    """`arrival`: step before which it comes."""

    prompt: tuple[int, ...]
    outputs: int
    arrival: int


@dataclass(frozen=True)
class Workload:
    """Requests that each fit a pool of `num_pages` pages alone, though not together."""

    num_pages: int
    page_size: int
    prefill_chunk: int
    lookahead: int
    max_running: int
    cache: str
    requests: tuple[Request, ...]

    def driver(self, pacing: str, mixed: bool) -> Driver:
        return Driver(
            num_pages=self.num_pages,
            page_size=self.page_size,
            max_context=self.num_pages * self.page_size,
            prefill_chunk=self.prefill_chunk,
            lookahead=self.lookahead,
            max_running=self.max_running,
            cache=self.cache,
            pacing=pacing,
            mixed=mixed,
        )

    def bound(self, pacing: str, mixed: bool) -> int:
        """Steps after the last arrival that are enough for everybody."""
        chunk = max(self.page_size, self.prefill_chunk - self.prefill_chunk % self.page_size)
        chunks = [-(-(len(request.prompt) + request.outputs) // chunk) for request in self.requests]
        depth = PACINGS[pacing](STAGES).depth
        return (depth + 2) * sum(
            (own + request.outputs + 1) * (1 if mixed else 1 + sum(chunks) - own)
            for own, request in zip(chunks, self.requests, strict=True)
        )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    page_size = draw(st.integers(1, 4))
    num_pages = draw(st.integers(2, 8))
    room = num_pages * page_size
    requests = []
    for _ in range(draw(st.integers(1, 7))):
        length = draw(st.integers(1, room - 1))
        # Few different tokens, so that prompts share beginnings.
        prompt = tuple(draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)))
        requests.append(Request(prompt, draw(st.integers(1, room - length)), draw(st.integers(0, 12))))
    return Workload(
        num_pages,
        page_size,
        prefill_chunk=draw(st.integers(page_size, 3 * page_size)),
        lookahead=draw(st.integers(0, 8)),
        max_running=draw(st.integers(1, 5)),
        cache=draw(st.sampled_from(("radix", "none"))),
        requests=tuple(requests),
    )


def run(workload: Workload, pacing: str, mixed: bool) -> Driver:
    """Serve all of it within the bound, every property checked after every step."""
    driver = workload.driver(pacing, mixed)
    arrivals = sorted(workload.requests, key=lambda request: request.arrival)
    last = arrivals[-1].arrival
    wanted = {}
    for step in range(last + workload.bound(pacing, mixed) + 1):
        while arrivals and arrivals[0].arrival <= step:
            request = arrivals.pop(0)
            wanted[driver.submit(list(request.prompt), request.outputs)] = request
        if not driver.step() and not arrivals:
            break
        check_oldest_kept(driver)
    for number, request in wanted.items():
        assert number in driver.ending_of, "a request did not end within the bound"
        assert driver.cause(number) == Cause.LENGTH
        assert driver.output_of[number] == expected(list(request.prompt), request.outputs)
    return driver


def check_oldest_kept(driver: Driver) -> None:
    """What gave way to a step is younger than some request of that step."""
    order, retracted = driver.loop.table.order, []
    for record in driver.records:
        if isinstance(record, Transition) and record.event == Event.RETRACT and record.cause == Cause.MEMORY:
            retracted.append(record.row)
        elif isinstance(record, StepPlanned):
            assert all(order[row] > order[record.rows].min() for row in retracted), "the oldest request was retracted"
            retracted.clear()
    driver.records.clear()


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
@given(workloads())
def test_every_request_that_fits_ends_within_the_stated_number_of_steps(
    pacing: str, mixed: bool, workload: Workload
) -> None:
    run(workload, pacing, mixed)


def tight() -> Workload:
    """A short request first; when it ends, the two others together need more than the pool, so that one gives way."""
    short, long = Request((0,), 2, 0), [Request(prompt, 5, 0) for prompt in ((0, 1, 0), (1, 0, 1))]
    return Workload(6, 2, 8, 0, 4, "none", (short, *long))


def test_memory_for_one_of_two_retracts_the_younger() -> None:
    driver = run(tight(), "overlap", True)
    assert driver.loop.counters.retractions > 0
    assert [driver.ending_of[request].info.num_retractions for request in (1, 2)] == [0, 0]


def test_a_retraction_of_the_oldest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queues, "oldest_first", lambda self: _youngest_first(self))
    with pytest.raises(AssertionError):
        run(tight(), "lockstep", True)


def _youngest_first(queues: Queues) -> Int32s:
    rows = queues.running()
    return rows[(-queues.table.order[rows]).argsort(kind="stable")]


def test_a_promise_given_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    promise = Escrow.promise
    monkeypatch.setattr(Escrow, "promise", lambda self, slot, count: promise(self, slot, count + 9))
    with pytest.raises(MemoryViolation, match="promises <= free"):
        run(tight(), "lockstep", True)


def test_admission_without_promises_retracts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the escrow is for: the same work with newcomers let in as long as their prompt fits."""
    workload = Workload(8, 2, 8, 64, 5, "none", tuple(Request((token, 1, 0, 1), 10, 0) for token in (0, 1, 1, 0, 1)))
    careful = run(workload, "overlap", True).loop.counters.retractions
    monkeypatch.setattr(Admission, "_renew_promises", lambda self: None)
    told: list[MemoryViolation] = []
    monkeypatch.setattr(Driver, "violated", lambda self, violation: told.append(violation))
    greedy = workload.driver("overlap", True)
    greedy.loop.planner.admission.lookahead = 0  # type: ignore[attr-defined]
    for request in workload.requests:
        greedy.submit(list(request.prompt), request.outputs)
    greedy.run()
    assert careful < greedy.loop.counters.retractions
    assert {name_of(violation) for violation in told} == {"allocation_is_a_transaction"}
