"""Each record of a run in turn cannot be made: no request waits for ever or gets a wrong token, one at the most ends
for it, and what is recorded before and after is a sound run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pawl.actors.messages.execution import Execute, Executed, ResetWorker
from pawl.actors.messages.generate import Refused
from pawl.actors.recorder import TraceSink
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.machines.serving import Serving
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import DECODER, ENCODER, Record, Transition
from pawl.lifecycle.states import Cause, Event
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort, Finish
from pawl.loops.orders.serving import Continue, Pause
from tests.actors.test_scheduler import Bench

PROMPTS = {1: [1, 2, 3, 4, 5], 2: [1, 2, 3, 4, 6, 7], 3: [9, 8, 7], 4: [4, 4], 5: [1, 2, 3, 4, 5], 6: [3, 3]}
MOST = {1: 5, 2: 4, 3: 6, 4: 8, 5: 2, 6: 1}


class Failing(Bench):
    """A scheduler that goes on as in its cell; its records are kept but the one of this number, which raises."""

    def __init__(self, number: int, pacing: str) -> None:
        self.records: list[Record] = []
        self.refused: list[int] = []
        self.number = number
        self.num_before_stop = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TraceSink, "emit", lambda sink, record: self.emit(record))
            super().__init__(num_pages=15, page_size=2, prefill_chunk=4, max_running=3, pacing=pacing)

    def emit(self, record: Record) -> None:
        self.number -= 1
        if self.number == 0:
            raise OSError("no space")
        self.records.append(record)

    def tell(self, *messages: Any) -> None:
        for message in messages:
            self._as_a_cell(message, lambda message=message: self.scheduler.receive(message))
        while not self._as_a_cell(None, self.scheduler.settled):
            pass
        self._listen()
        self.refused += [each.request for each in self.context.take("gateway") if isinstance(each, Refused)]

    def _as_a_cell(self, message: Any, do: Callable[[], object]) -> bool:
        """Whether it could be done."""
        try:
            do()
        except OSError as error:
            if not self.scheduler.spares(message, error):
                raise
            return False
        return True

    def work(self) -> bool:
        for index, sent in enumerate(self.context.sent):
            if isinstance(sent.message, ResetWorker):
                self.ghost.reset()
            if isinstance(sent.message, Execute):
                del self.context.sent[: index + 1]
                self.tell(Executed(self.ghost.launch(sent.message.batch)))
                return True
        return False


def run_of(number: int, pacing: str) -> Failing:
    bench = Failing(number, pacing)
    bench.tell(*(bench.submit(request, PROMPTS[request], MOST[request]) for request in (1, 2, 3)))
    for _ in range(3):
        bench.work()
    bench.tell(bench.submit(4, PROMPTS[4], MOST[4]), *([Finish(3, 1)] if bench.tokens.get(3) else []))
    bench.work()
    bench.tell(Pause(retract=True))
    bench.work()
    while bench.scheduler.loop.serving is Serving.PAUSED:  # whoever is told that it failed orders it again
        bench.tell(Continue())
    bench.tell(bench.submit(5, PROMPTS[5], MOST[5]), Abort((4,)))
    bench.rest()
    bench.tell(FlushCache(), bench.submit(6, PROMPTS[6], MOST[6]))
    bench.rest()
    bench.num_before_stop = len(bench.records)
    bench.scheduler.stopped("over")
    bench._listen()
    return bench


@pytest.mark.parametrize("pacing", ["lockstep", "overlap"])
def test_a_record_that_cannot_be_made_costs_one_request_at_the_most(pacing: str) -> None:
    whole = run_of(0, pacing)
    assert judged(whole.records) == []
    retractions = [each for each in whole.records if isinstance(each, Transition) and each.event == Event.RETRACT]
    assert len(retractions) >= 2
    for number in range(1, whole.num_before_stop + 1):
        bench = run_of(number, pacing)
        failed = [request for request, end in bench.ended.items() if end.cause == Cause.INTERNAL] + bench.refused
        assert len(failed) <= 1, f"record {number}: {whole.records[number - 1]}"
        assert bench.ended.keys() | bench.refused == PROMPTS.keys(), f"record {number}: {whole.records[number - 1]}"
        for request in PROMPTS.keys() - {3, 4, *failed}:
            assert bench.tokens[request] == expected(PROMPTS[request], MOST[request])
        assert bench.scheduler.num_contained == 1
        bench.scheduler.loop.check_all()
        assert judged(bench.records) == [], f"without record {number}: {whole.records[number - 1]}"


def judged(records: list[Record]) -> list[str]:
    monitor = Monitor()
    for record in DECODER.decode(ENCODER.encode(records)):
        monitor.observe(record)
    return [str(violation) for violation in monitor.violations]


@pytest.mark.parametrize("request_", [1, 2])
def test_who_cannot_be_taken_at_all_is_refused_also_the_very_first(
    request_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Failing(0, "lockstep")

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no memory")

    with monkeypatch.context() as failing:
        failing.setattr(bench.scheduler.intake, "submit", fails)
        bench.tell(bench.submit(request_, PROMPTS[1], 2))
    assert (bench.refused, bench.ended) == ([request_], {})
    bench.tell(bench.submit(3, PROMPTS[3], 2))
    bench.rest()
    assert bench.tokens[3] == expected(PROMPTS[3], 2)
