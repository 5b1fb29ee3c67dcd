"""Scores that are no numbers end the request they are for, and nobody else's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pawl.gpu.models.small import random_weights
from pawl.gpu.sampling import in_torch, on_host
from pawl.lifecycle.records import DECODER, ENCODER, Started
from pawl.lifecycle.states import Cause
from pawl.loops.replay import replay
from pawl.loops.requests import NOT_NUMBERS
from tests.gpu.native_models import ODD
from tests.gpu.serving import Answered, Asked, Serving, Worker

POISON = 13
"""A token whose embedding holds something that is no finite number; the head is a matrix of its own."""
GOOD = Asked((1, 2, 3, 4, 5, 6, 7), num_output=9)
BAD = Asked((1, 2, 3, 4, POISON, 6), num_output=9)
INFINITE = float("inf")
NAN = float("nan")


def worker(
    backend: str, value: float, *, everywhere: bool = False, change: Mapping[str, float] = MappingProxyType({})
) -> Worker:
    """`value` is put into the poison's embedding, or its row of the head; `change` says what to fill weights with."""
    weights = random_weights(ODD, torch.float32)
    weights["lm_head.weight" if everywhere else "model.embed_tokens.weight"][POISON, 3] = value
    for name, filling in change.items():
        weights[name].fill_(filling)
    return Worker(
        ODD,
        weights,
        torch.float32,
        backend=backend,
        threads=1,
        num_pages=64,
        page_size=4,
        num_slots=8,
        max_context=64,
    )


def record(serving: Serving) -> list[Any]:
    """What the trace of the run so far would hold."""
    started = Started(
        version="test",
        model="odd",
        config={"loop": msgspec.to_builtins(serving.config)},
        num_pages=serving.config.num_pages,
        page_size=serving.config.page_size,
        num_slots=serving.config.max_running,
        seed=0,
        time=0.0,
        wall=0.0,
    )
    records: list[Any] = [started, *serving.records]
    made: list[Any] = DECODER.decode(ENCODER.encode(records))
    return made


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"num_top": None},
    "greedy with scores": {},
    "sampled": {"temperature": 1.0},
    "sampled from a nucleus": {"temperature": 0.7, "top_p": 0.9},
    "sampled from a few": {"temperature": 0.7, "top_k": 5},
    "sampled with a penalty": {"temperature": 0.7, "penalty": 0.5},
    "with the prompt's scores": {"prompt_scores": True},
}


@pytest.mark.parametrize("value", [NAN, INFINITE])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_request_whose_scores_are_no_numbers_ends_and_the_others_go_on(backend: str, way: str, value: float) -> None:
    good, bad = replace(GOOD, **WAYS[way]), replace(BAD, **WAYS[way])
    serving = Serving(worker(backend, value))
    requests = [serving.ask(one) for one in (good, bad, good)]
    serving.run()
    assert [serving.cause(request) for request in requests] == [Cause.LENGTH, Cause.INTERNAL, Cause.LENGTH]
    assert serving.ending_of[requests[1]].message == NOT_NUMBERS
    assert serving.answer_of[requests[1]] == Answered(), "no token of it left"
    first, _, second = (serving.answer_of[request] for request in requests)
    assert first.tokens == second.tokens
    assert len(first.tokens) == good.num_output
    # And what it computed is offered to nobody: the same beginning is computed again, and well.
    healthy = replace(good, prompt=(1, 2, 3, 4, 5))
    assert Serving(worker(backend, 0.5)).answers(healthy)[0].tokens == serving.answers(healthy)[0].tokens


@pytest.mark.parametrize("way", [{"num_top": None}, {"temperature": 9.0}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pacing", ["lockstep", "overlap"])
def test_a_request_that_draws_the_poison_keeps_the_tokens_before_it(pacing: str, way: dict[str, Any]) -> None:
    serving = Serving(worker("native", NAN), pacing=pacing, prefill_chunk=4)
    prompts = np.arange(60).reshape(6, 10).tolist()
    asked = [replace(GOOD, prompt=tuple(p), num_output=40, seed=index, **way) for index, p in enumerate(prompts)]
    asked = [one for one in asked if POISON not in one.prompt]
    requests = [serving.ask(one) for one in asked]
    serving.run()
    ends = [serving.cause(request) for request in requests]
    for request, cause in zip(requests, ends, strict=True):
        tokens = serving.answer_of[request].tokens
        assert (cause is Cause.INTERNAL) == (POISON in tokens)
        assert POISON not in tokens[:-1], "the first one is the last token that means something"
        assert serving.ending_of[request].num_output == len(tokens)
    assert Cause.INTERNAL in ends


# Both layers, each kind of weight that a token passes through; and the head, all rows of it.
BROKEN = (
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.1.post_attention_layernorm.weight",
    "lm_head.weight",
)


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *((backend, name) for backend in ("native", "torch") for name in BROKEN),
        # Not of torch: its attention on a CPU answers queries that are no numbers with zeros: not to be seen.
        ("native", "model.layers.0.self_attn.q_proj.weight"),
        ("native", "model.layers.1.self_attn.k_proj.weight"),
    ],
)
def test_a_broken_weight_ends_every_request_and_the_engine_stays_up(backend: str, name: str, value: float) -> None:
    broken = worker(backend, 0.5, change={name: value})
    for way in WAYS.values():
        serving = Serving(broken)
        requests = [serving.ask(replace(GOOD, **way)) for _ in range(3)]
        serving.run()
        assert {serving.cause(request) for request in requests} == {Cause.INTERNAL}, way
        assert serving.loop.counters.generated_tokens == 0


def test_a_model_that_gives_no_numbers_ends_every_request_and_stays_up() -> None:
    serving = Serving(worker("native", NAN, everywhere=True))
    requests = [serving.ask(GOOD) for _ in range(12)]
    serving.run()
    assert {serving.cause(request) for request in requests} == {Cause.INTERNAL}
    assert serving.loop.counters.by_cause == {Cause.INTERNAL: 12}
    assert serving.loop.counters.generated_tokens == 0


@pytest.mark.parametrize("pacing", ["lockstep", "overlap"])
def test_the_trace_of_such_a_run_replays(pacing: str) -> None:
    serving = Serving(worker("native", NAN), pacing=pacing)
    for one in (GOOD, BAD, GOOD, BAD):
        serving.ask(one)
    serving.run()
    again = replay(record(serving))
    assert not again.violations
    assert again.loop.counters == serving.loop.counters


def test_a_row_is_finite_if_all_of_its_numbers_are() -> None:
    rows = torch.zeros(5, 300)
    rows[1, 7], rows[2, 299], rows[3, 0] = NAN, INFINITE, -INFINITE
    rows[4, :] = torch.finfo(torch.float32).max
    for found in (in_torch.finite_rows(rows), on_host.finite_rows(rows.numpy())):
        assert found.tolist() == [True, False, False, False, True]
    for found in (in_torch.finite_rows(rows[:0]), on_host.finite_rows(rows[:0].numpy())):
        assert found.tolist() == []
