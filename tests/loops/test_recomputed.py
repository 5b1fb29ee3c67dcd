"""With the model at hand, what is recorded of a run is found to be what its requests get; a forged word is named."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.gpu.ghost.recompute import ghost_again
from pawl.lifecycle.columns import float32s, int32s
from pawl.lifecycle.export.jsonl import as_dict, from_dict
from pawl.lifecycle.properties.base import Violation
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.recompute import Compute
from pawl.lifecycle.records import (
    DECODER,
    ENCODER,
    Checkpoint,
    Delivered,
    Record,
    StepCommitted,
    StepRolledBack,
    Submitted,
    Transition,
)
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause, Event
from pawl.loops.orders.requests import Abort, Finish
from pawl.loops.recomputed import Recomputed, Tally
from pawl.loops.replay import replay
from pawl.loops.snapshot import checkpoint
from tests.loops.driver import CELLS, Driver, first_record
from tests.loops.test_adapters import Server

WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "top_logprobs": 2},
    {"temperature": 1.0, "top_logprobs": 0},
    {"temperature": 0.8, "top_p": 0.9, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    {"temperature": 1.2, "top_k": 20, "logit_bias": {7: 2.0}, "top_logprobs": 5},
    {"temperature": 0.0, "prompt_logprobs": True, "top_logprobs": 1},
    {"temperature": 1.0, "stop_token_ids": tuple(range(8)), "min_new_tokens": 6},
    {"temperature": 0.0, "embed": True},
)


CONFIG: dict[str, object] = {"num_pages": 16, "max_context": 60, "max_running": 4, "lookahead": 0}


@lru_cache(maxsize=16)
def _recorded(seed: int, pacing: str, mixed: bool, checkpoint_at: int) -> bytes:
    """Requests of every way to draw in tight memory, with aborts, cut outputs and a lost step. With `checkpoint_at`,
    a checkpoint at the first moment without a step in flight after so many steps."""
    source = random.Random(seed)
    driver = Driver(pacing=pacing, mixed=mixed, seed=seed, **CONFIG)
    driver.ghost.fail_at = {source.randrange(5, 40)}
    driver.loop.journal._started = started = first_record(driver.config, seed)
    ways = [dict(way, seed=source.randrange(1 << 40)) for way in WAYS * 3]
    steps = 0
    while driver.step() or ways:
        steps += 1
        for way in ways[: source.randrange(3)]:
            prompt = [source.randrange(3) for _ in range(source.randrange(1, 30))]
            driver.submit(prompt, 0 if way.get("embed") else source.choice((0, 1, 9, 24)), **way)
            ways.remove(way)
        live = [request for request in driver.output_of if request not in driver.ending_of]
        if (said := [request for request in live if len(driver.output_of[request]) > 1]) and source.random() < 0.1:
            request = source.choice(said)
            order = Abort((request,)) if source.random() < 0.5 else Finish(request, len(driver.output_of[request]) // 2)
            driver.intake.deliver(order, driver.now)
        if checkpoint_at and steps >= checkpoint_at and not driver.loop.in_flight and live:
            checkpoint(driver.intake, driver.now)
            del driver.records[:-1]
            checkpoint_at = 0
    first = () if isinstance(driver.records[0], Checkpoint) else (started,)
    return ENCODER.encode([*first, *driver.records])


def run_of(seed: int, pacing: str = "overlap", mixed: bool = True, checkpoint_at: int = 0) -> list[Record]:
    return DECODER.decode(_recorded(seed, pacing, mixed, checkpoint_at))


def judged(records: Iterable[Record], compute: Compute | None = ghost_again) -> tuple[Sequence[Violation], Tally]:
    """By that property alone; `records` need not be a whole trace."""
    recomputed = Recomputed(compute)
    monitor = Monitor([recomputed])
    for record in records:
        monitor.observe(record)
    monitor.finish(whole=False)
    return monitor.violations, recomputed.tally


def with_output(records: Iterable[Record]) -> set[int]:
    history, found = History(), set[int]()
    for record in records:
        history.advance(record)
        if isinstance(record, StepCommitted):
            found |= set(history.step.requests[history.committed.drew].tolist())
    return found


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_every_word_of_a_run_is_what_its_request_gets_alone(pacing: str, mixed: bool) -> None:
    scores = 0
    for seed in range(4):
        records = run_of(seed, pacing, mixed)
        violations, tally = judged(records)
        assert violations == []
        assert tally.requests >= len(with_output(records))
        scores += tally.scores
    assert scores > 100


def test_all_vectors_of_one_step_are_computed_again() -> None:
    driver = Driver(pacing="lockstep", mixed=True, seed=1, **CONFIG)
    for word in range(3):
        driver.submit([word] * 4, 0, temperature=0.0, embed=True, seed=word)
    while driver.step():
        pass
    made = [record.embedded for record in driver.records if isinstance(record, StepCommitted) and record.embedded]
    assert [len(int32s(embedded.rows)) for embedded in made] == [3]
    violations, tally = judged([first_record(driver.config, 1), *DECODER.decode(ENCODER.encode(driver.records))])
    assert (violations, tally.vectors) == ([], 3)


def test_the_runs_of_these_tests_lose_steps_retract_and_find_prefixes() -> None:
    moves = [record for seed in range(4) for record in run_of(seed) if isinstance(record, Transition)]
    assert any(record.event == Event.RETRACT and record.cause == Cause.MEMORY for record in moves)
    assert any(record.num_cached for record in moves)
    assert any(isinstance(record, StepRolledBack) for seed in range(4) for record in run_of(seed))


def test_recorded_log_probabilities_leave_a_replay_as_it_is_and_survive_as_json() -> None:
    records = run_of(1)
    assert replay(records).number == len(records)
    scored = [record for record in records if isinstance(record, StepCommitted) and record.scores is not None]
    assert scored
    assert ENCODER.encode([from_dict(as_dict(record)) for record in scored]) == ENCODER.encode(scored)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_run_that_was_killed_is_computed_as_far_as_it_is_recorded(part: float) -> None:
    records = run_of(2)
    violations, tally = judged(records[: int(len(records) * part)])
    assert violations == []
    assert 0 < tally.tokens < judged(records)[1].tokens


@pytest.mark.parametrize("seed", range(4))
def test_from_a_checkpoint_those_who_lived_then_are_computed_as_well(seed: int) -> None:
    records = run_of(seed, "lockstep", checkpoint_at=6)
    assert isinstance(records[0], Checkpoint)
    violations, tally = judged(records)
    assert violations == []
    later = {record.request for record in records if isinstance(record, Submitted)}
    assert tally.requests > len(with_output(records) & later)


def test_a_run_that_promised_nothing_is_counted_and_not_computed() -> None:
    records = run_of(1)
    violations, tally = judged(records, None)
    assert violations == []
    assert (tally.requests, tally.not_recomputed) == (0, judged(records)[1].requests)


@pytest.mark.parametrize(
    "drawn_by", [{"num_older": 2}, {"namespace": "adapter=1.f"}], ids=["other weights", "an adapter"]
)
def test_output_that_a_lost_replica_has_given_is_computed_only_if_the_weights_at_hand_drew_it(
    drawn_by: dict[str, Any],
) -> None:
    driver = Driver(**CONFIG)
    sampling = SamplingParameters(temperature=0.0, max_new_tokens=6, top_logprobs=1, prompt_logprobs=True)
    info = RequestInfo(1, "r1", sampling, "", 0.0)
    info.num_retractions = info.num_resumed = 1
    output = np.array([5, 6], np.int32)
    driver.intake.submit(info, np.array([1, 2, 3], np.int32), 0, float("inf"), 0.0, output)
    driver.run()
    records: list[Any] = [first_record(driver.config, 0), *driver.records]
    violations, _ = judged(records)
    assert [each.request for each in violations] == [1]
    records = [
        msgspec.structs.replace(record, **drawn_by) if isinstance(record, Submitted) else record for record in records
    ]
    violations, tally = judged(records)
    assert violations == []
    assert (tally.requests, tally.of_other_weights) == (0, 4)


class WithAdapters(Server):
    """Two adapters under one name, one after the other; of the second it is said twice where it is."""

    def __init__(self) -> None:
        super().__init__(**CONFIG)
        self.loaded("a")
        self.requests = [self.ask("a"), self.ask("")]
        self.serve()
        self.unload("a")
        self.turn()
        self.load("a", "ghost:b")
        self.turn()
        self.load("a", "ghost:refused")
        self.answer_readings()
        self.requests += [self.ask("a"), self.ask("")]
        self.serve()

    def trace(self) -> list[Any]:
        return DECODER.decode(ENCODER.encode([first_record(self.config, 0), *self.records]))


def test_output_with_an_adapter_is_computed_with_the_content_that_it_had() -> None:
    server = WithAdapters()
    records = server.trace()
    violations, tally = judged(records)
    assert violations == []
    assert (tally.requests, tally.of_other_weights) == (4, 0)
    places = [at for at, record in enumerate(records) if isinstance(record, StepCommitted)]
    last = records[places[-1]]
    records[places[-1]] = msgspec.structs.replace(last, tokens=(int32s(last.tokens) ^ 1).tobytes())
    assert {each.request for each in judged(records)[0]} & set(server.requests[2:])


def test_what_an_adapter_has_drawn_that_is_not_there_any_more_is_counted() -> None:
    records = [
        msgspec.structs.replace(record, fields=record.fields | {"lora_path": "nowhere"})
        if isinstance(record, Delivered) and record.fields.get("lora_path") == "ghost:b"
        else record
        for record in WithAdapters().trace()
    ]
    violations, tally = judged(records)
    assert violations == []
    assert (tally.requests, tally.of_other_weights) == (3, 8)


# ---- forgeries ----


def forged(records: Sequence[Record], change: str, seed: int) -> tuple[list[Record], int, int]:
    """The records with one word changed, the request it belongs to, and the position it stands at."""
    places: list[tuple[int, int, int, int]] = []
    history = History()
    for at, record in enumerate(records):
        history.advance(record)
        if not isinstance(record, StepCommitted):
            continue
        if change == "a token":
            drew = history.committed.drew[history.step.samples]
            sampled = history.step.rows[history.step.samples]
            for index in np.flatnonzero(drew).tolist():
                row = int(sampled[index])
                position = int(history.num_prompt[row] + history.num_output[row]) - 1
                places.append((at, index, int(history.request[row]), position))
        elif record.scores is not None:
            rows, positions = int32s(record.scores.rows), int32s(record.scores.positions)
            widths = int32s(record.scores.num_top)
            for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
                if change == "a log-probability" or widths[index]:
                    places.append((at, index, int(history.request[row]), position))
    at, index, request, position = random.Random(seed).choice(places)
    record = records[at]
    assert isinstance(record, StepCommitted)
    return [*records[:at], _changed(record, change, index), *records[at + 1 :]], request, position


def _changed(record: StepCommitted, change: str, index: int) -> StepCommitted:
    if change == "a token":
        tokens = int32s(record.tokens).copy()
        tokens[index] ^= 1
        return msgspec.structs.replace(record, tokens=tokens.tobytes())
    scores = record.scores
    assert scores is not None
    first = int(int32s(scores.num_top)[:index].sum())
    match change:
        case "a log-probability":
            column = float32s(scores.chosen).copy()
            column[index] = np.nextafter(column[index], np.float32(-100))
            scores = scores._replace(chosen=column.tobytes())
        case "that of a likely token":
            column = float32s(scores.top).copy()
            column[first] = np.nextafter(column[first], np.float32(-100))
            scores = scores._replace(top=column.tobytes())
        case "a likely token":
            column = int32s(scores.top_tokens).copy()
            column[first] ^= 1
            scores = scores._replace(top_tokens=column.tobytes())
    return msgspec.structs.replace(record, scores=scores)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("change", ["a token", "a log-probability", "that of a likely token", "a likely token"])
def test_a_forged_word_is_named_with_its_request_and_position(change: str, seed: int) -> None:
    records, request, position = forged(run_of(seed), change, seed)
    violations, _ = judged(records)
    assert [(each.property, each.request) for each in violations] == [("recomputed", request)]
    assert re.search(rf"position {position}\b", violations[0].explanation)


def test_a_seed_that_was_changed_shows_as_other_words() -> None:
    records = list(run_of(0))
    at, submitted = next(
        (at, record)
        for at, record in enumerate(records)
        if isinstance(record, Submitted) and record.sampling.temperature and record.sampling.max_new_tokens > 20
    )
    sampling = msgspec.structs.replace(submitted.sampling, seed=submitted.sampling.seed + 1)
    records[at] = msgspec.structs.replace(submitted, sampling=sampling)
    assert [each.request for each in judged(records)[0]] == [submitted.request]


def _with(records: Sequence[Record], changed: Callable[[StepCommitted], StepCommitted | None]) -> list[Record]:
    """The records, of which the first step that can be is changed."""
    for at, record in enumerate(records):
        if isinstance(record, StepCommitted) and (other := changed(record)) is not None:
            return [*records[:at], other, *records[at + 1 :]]
    raise AssertionError("no step can be changed so")


@pytest.mark.parametrize("place", [-1, 0, 999])
def test_scores_of_positions_that_nobody_drew_are_left_to_those_who_judge_positions(place: int) -> None:
    def moved(record: StepCommitted) -> StepCommitted | None:
        if record.scores is None:
            return None
        positions = np.full(len(int32s(record.scores.positions)), place, np.int32)
        return msgspec.structs.replace(record, scores=record.scores._replace(positions=positions.tobytes()))

    assert judged(_with(run_of(1), moved))[0] == []


def test_fewer_likely_tokens_than_were_asked_for_are_left_to_those_who_count_them() -> None:
    def fewer(record: StepCommitted) -> StepCommitted | None:
        scores = record.scores
        if scores is None or not (widths := int32s(scores.num_top).copy())[:1].any():
            return None
        widths[0] -= 1
        rest = {"top_tokens": scores.top_tokens[4:], "top": scores.top[4:]}
        return msgspec.structs.replace(record, scores=scores._replace(num_top=widths.tobytes(), **rest))

    assert judged(_with(run_of(1), fewer))[0] == []


def test_a_vector_that_is_another_is_named_with_both_digests() -> None:
    def other(record: StepCommitted) -> StepCommitted | None:
        if record.embedded is None:
            return None
        digests = bytes([record.embedded.digests[0] ^ 1]) + record.embedded.digests[1:]
        return msgspec.structs.replace(record, embedded=record.embedded._replace(digests=digests))

    records = run_of(1)
    (violation,), _ = judged(_with(records, other))
    told = re.fullmatch(
        r"the digest of its vector is recorded as (\w+); computed again it is (\w+)", violation.explanation
    )
    assert told is not None
    assert int(told[1], 16) ^ int(told[2], 16) == 1 << (4 * len(told[1]) - 8)


def test_of_all_that_is_wrong_with_a_request_the_first_word_is_told() -> None:
    records = list(run_of(0))
    for at, record in enumerate(records):
        if isinstance(record, StepCommitted):
            records[at] = msgspec.structs.replace(record, tokens=(int32s(record.tokens) ^ 1).tobytes())
    violations, _ = judged(records)
    assert len({each.request for each in violations}) == len(violations) > 3
    assert all(each.explanation.startswith("output token 0, ") for each in violations)
