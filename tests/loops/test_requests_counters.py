"""Every counter of a loop is what is counted from its trace."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pawl.lifecycle.columns import int32s
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    DECODER,
    ENCODER,
    Record,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
)
from pawl.lifecycle.states import Event
from pawl.loops.orders.requests import Abort, Finish
from pawl.loops.pacing import PACINGS
from pawl.loops.requests import Counters
from tests.loops.driver import Driver, first_record
from tests.loops.test_recomputed import CONFIG


def counted(records: list[Record]) -> Counters:
    """From a run without drafts in which no request had output before."""
    counters, causes, history = Counters(), Counter[str](), History()
    prompts: dict[int, int] = {}
    cached: dict[int, int] = {}
    retracted: set[int] = set()
    drawn = 0
    for record in records:
        history.advance(record)
        match record:
            case Submitted():
                counters.received += 1
                prompts[record.request] = len(int32s(record.tokens))
            case Transition(event=Event.SUBMIT):
                counters.prompt_tokens += prompts[record.request]
            case Transition(event=Event.ADMIT) if record.request not in retracted:
                cached[record.request] = record.num_cached or 0
            case Transition(event=Event.RETRACT):
                counters.retractions += 1
                retracted.add(record.request)
            case Transition(event=Event.FINISH | Event.ABORT):
                counters.finished += record.event == Event.FINISH
                counters.aborted += record.event == Event.ABORT
                counters.generated_tokens += record.num_output or 0
                causes[record.cause] += 1
            case StepPlanned():
                counters.steps += 1
            case StepCommitted():
                drawn += len(int32s(record.tokens))
            case StepRolledBack():
                counters.steps_lost += 1
                for admission in history.restored:
                    if admission.request not in retracted:
                        del cached[admission.request]
    counters.cached_tokens = sum(cached.values())
    counters.dropped_tokens = drawn - counters.generated_tokens
    counters.by_cause = dict(causes)
    return counters


@pytest.mark.parametrize("pacing", PACINGS)
def test_each_counter_is_what_the_trace_shows(pacing: str) -> None:
    seen = Counters()
    for seed in range(3):
        source = random.Random(seed)
        driver = Driver(pacing=pacing, mixed=bool(seed % 2), seed=seed, **CONFIG)
        driver.ghost.fail_at = {source.randrange(3, 20), source.randrange(20, 60)}
        driver.loop.journal._started = started = first_record(driver.config, seed)
        wanted = 14
        while driver.step() or wanted:
            for _ in range(min(wanted, source.randrange(3))):
                prompt = [0] * source.choice((0, 8)) + [source.randrange(2) for _ in range(source.randrange(1, 20))]
                driver.submit(prompt, source.choice((1, 9, 24, 99)))
                wanted -= 1
            live = [request for request in driver.output_of if request not in driver.ending_of]
            if live and source.random() < 0.15:
                request = source.choice(live)
                had = len(driver.output_of[request])
                driver.intake.deliver(Finish(request, had - 1) if had > 1 else Abort((request,)), driver.now)
        counters = driver.loop.counters
        assert counted(DECODER.decode(ENCODER.encode([started, *driver.records]))) == counters
        for name in Counters.__struct_fields__[:-1]:
            setattr(seen, name, getattr(seen, name) + getattr(counters, name))
    unseen = {name for name in Counters.__struct_fields__[:-1] if not getattr(seen, name)}
    assert unseen == {"drafts", "draft_tokens", "accepted_tokens"}
