"""Deterministic mode: every bit of an answer is a function of its request, whatever it is scheduled with.

The oracle is each request alone: its prompt in one chunk, no cache, one step at a time. Bits are compared, of tokens
and of log-probabilities, greedy and sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pawl.gpu import select
from pawl.gpu.backend import BackendUnavailable, ForwardInputs
from pawl.gpu.kv import KvStore
from pawl.gpu.models.small import random_weights
from pawl.gpu.weights.source import load_weights
from pawl.loops.requests import Counters
from tests.gpu.native_models import EXPERTS, ODD, SWITCHED
from tests.gpu.real import smollm2_source
from tests.gpu.serving import Answered, Asked, Serving, Worker
from tests.loops.driver import CELLS

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TINY = {"dense": ODD, "switched": SWITCHED, "experts": EXPERTS}
PAGE_SIZES = (1, 16, 64)
CONTEXT = 192
SLOTS = 6


@cache
def tiny(name: str, dtype: str, page_size: int, threads: int = 1) -> Worker:
    weights = random_weights(TINY[name], DTYPES[dtype])
    return worker_of(TINY[name], weights, dtype, page_size, threads)


def worker_of(
    config: Any, weights: dict[str, torch.Tensor], dtype: str, page_size: int, threads: int, **changes: Any
) -> Worker:
    pages = -(-CONTEXT // page_size) * (SLOTS + 4)
    return Worker(
        config,
        weights,
        DTYPES[dtype],
        num_pages=pages,
        page_size=page_size,
        num_slots=SLOTS,
        max_context=CONTEXT,
        threads=threads,
        **{"deterministic": True} | changes,
    )


def alone(worker: Worker, asked: Asked) -> Answered:
    """The oracle."""
    chunk = max(CONTEXT, worker.runner.kv.page_size)
    serving = Serving(worker, pacing="lockstep", mixed=False, cache="none", prefill_chunk=chunk)
    return serving.answers(asked)[0]


def workload(vocabulary: int, seed: int, count: int, longest: int, num_output: int = 6) -> list[Asked]:
    """Requests of every way to sample, some with beginnings in common, of very different length."""
    random = np.random.default_rng(seed)
    common = random.integers(0, vocabulary, longest).tolist()
    ways: Sequence[dict[str, Any]] = (
        {},
        {"num_top": None},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9, "num_top": 3, "named": (7, 1, 7)},
        {"temperature": 1.2, "top_k": 20},
        {"temperature": 0.7, "penalty": 0.5},
    )
    everyone = []
    for index in range(count):
        shared = int(random.integers(0, longest))
        own = random.integers(0, vocabulary, int(random.integers(1, longest - shared + 1))).tolist()
        way = ways[index % len(ways)]
        everyone.append(Asked((*common[:shared], *own), num_output=num_output, seed=seed + index, **way))
    return everyone


# ---- any workload in any cell: tiny models, many examples ----

CELL = st.fixed_dictionaries(
    {
        "cell": st.sampled_from(CELLS),
        "chunk": st.sampled_from((1, 16, 64, 512)),
        "cache": st.sampled_from(("lru", "fifo", "mru", "lfu", "none")),
        "policy": st.sampled_from(("fcfs", "lpm", "lof", "random")),
        "memory": st.sampled_from(("plenty", "tight")),
        "at_once": st.sampled_from((1, 3, None)),
    }
)


def run_in(worker: Worker, cell: dict[str, Any], everyone: Sequence[Asked]) -> tuple[Serving, list[Answered]]:
    """All of `everyone` in one cell; `tight` memory holds little more than the longest of them."""
    size = worker.runner.kv.page_size
    longest = max(len(one.prompt) + one.num_output for one in everyone)
    pages = worker.runner.kv.num_pages if cell["memory"] == "plenty" else -(-longest // size) + 2
    pacing, mixed = cell["cell"]
    serving = Serving(
        worker,
        pacing=pacing,
        mixed=mixed,
        # A chunk ends where a page does.
        prefill_chunk=max(cell["chunk"], size),
        cache="none" if cell["cache"] == "none" else "radix",
        eviction="lru" if cell["cache"] == "none" else cell["cache"],
        policy=cell["policy"],
        num_pages=pages,
        lookahead=1 if cell["memory"] == "tight" else 64,
    )
    return serving, serving.answers(*everyone, at_once=cell["at_once"])


@settings(max_examples=settings().max_examples // 3, suppress_health_check=[*HealthCheck])
@given(
    model=st.sampled_from(sorted(TINY)),
    dtype=st.sampled_from(sorted(DTYPES)),
    page_size=st.sampled_from(PAGE_SIZES),
    threads=st.sampled_from((1, 3)),
    cell=CELL,
    seed=st.integers(0, 1 << 16),
    count=st.integers(1, 7),
)
def test_in_every_cell_each_request_gets_the_bits_it_gets_alone(
    model: str, dtype: str, page_size: int, threads: int, cell: dict[str, Any], seed: int, count: int
) -> None:
    everyone = workload(ODD.vocab_size, seed, count, longest=100)
    _, found = run_in(tiny(model, dtype, page_size, threads), cell, everyone)
    oracle = tiny(model, dtype, 16)
    for one, answer in zip(everyone, found, strict=True):
        assert answer == alone(oracle, one), one


# ---- the real model: named examples ----

ORDINARY: dict[str, Any] = {
    "cell": ("overlap", True),
    "chunk": 64,
    "cache": "lru",
    "policy": "fcfs",
    "memory": "plenty",
    "at_once": None,
}


class Variant(NamedTuple):
    """One way to run the real model that must give each request the bits it gets alone."""

    changes: dict[str, Any]
    """To `ORDINARY`."""
    page_size: int = 16
    threads: int = 2
    happened: Callable[[Counters], bool] = lambda counters: counters.steps > 0
    """Whether the run was one of the kind that its name says."""


VARIANTS = {
    "all together, beginnings shared": Variant({}, happened=lambda counters: counters.cached_tokens > 0),
    "one after the other": Variant({"at_once": 1}, happened=lambda counters: counters.steps >= 30),
    "three at a time": Variant({"at_once": 3}),
    "nothing shared": Variant({"cache": "none"}, happened=lambda counters: counters.cached_tokens == 0),
    "chunks of 16": Variant({"chunk": 16}),
    "chunks of 512": Variant({"chunk": 512}),
    "lockstep, mixed": Variant({"cell": ("lockstep", True)}),
    "lockstep, prompts first": Variant({"cell": ("lockstep", False)}),
    "overlap, prompts first": Variant({"cell": ("overlap", False)}),
    "pages evicted": Variant({"memory": "tight"}, happened=lambda counters: counters.cached_tokens > 0),
    "pages of 64": Variant({}, page_size=64),
    "chunks and pages of 1": Variant({"chunk": 1}, page_size=1, happened=lambda counters: counters.steps > 60),
    "pages of 1, one thread": Variant({}, page_size=1, threads=1),
    "three threads": Variant({"chunk": 16}, threads=3),
}
QUICK = tuple(VARIANTS)[:12]
"""What the default tier runs, in bfloat16; all the others are slow."""


@lru_cache(maxsize=1)  # a model is hundreds of megabytes
def smollm2(dtype: str, page_size: int = 16, threads: int = 2) -> Worker:
    source = smollm2_source()
    return worker_of(source.config, load_weights(source, DTYPES[dtype]), dtype, page_size, threads)


REAL_WORKLOAD = tuple(workload(49_152, seed=3, count=6, longest=70, num_output=5))
SHORT_PROMPTS = tuple(workload(49_152, seed=4, count=5, longest=12, num_output=12))


@cache
def real_oracle(dtype: str, everyone: tuple[Asked, ...]) -> tuple[Answered, ...]:
    worker = smollm2(dtype)
    return tuple(alone(worker, one) for one in everyone)


def real_cases() -> Iterator[Any]:
    for dtype in DTYPES:
        for name in VARIANTS:
            marks = () if dtype == "bf16" and name in QUICK else (pytest.mark.slow,)
            yield pytest.param(dtype, name, marks=marks, id=f"{dtype}-{name}")


@pytest.mark.parametrize(("dtype", "name"), list(real_cases()))
def test_smollm2_gives_each_request_the_bits_it_gets_alone(dtype: str, name: str) -> None:
    expected = real_oracle(dtype, REAL_WORKLOAD)
    variant = VARIANTS[name]
    worker = smollm2(dtype, variant.page_size, variant.threads)
    serving, found = run_in(worker, ORDINARY | variant.changes, REAL_WORKLOAD)
    assert variant.happened(serving.loop.counters)
    assert found == list(expected)


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_smollm2_gives_a_retracted_request_the_bits_it_gets_alone(dtype: str) -> None:
    expected = real_oracle(dtype, SHORT_PROMPTS)
    serving = Serving(smollm2(dtype), num_pages=4, lookahead=1, prefill_chunk=16, pacing="overlap", mixed=True)
    found = serving.answers(*SHORT_PROMPTS)
    assert serving.loop.counters.retractions > 0
    assert found == list(expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=settings().max_examples // 5, suppress_health_check=[*HealthCheck])
@given(cell=CELL, seed=st.integers(0, 1 << 16), count=st.integers(1, 6))
def test_smollm2_gives_any_workload_the_same_bits_in_every_cell(
    dtype: str, cell: dict[str, Any], seed: int, count: int
) -> None:
    worker = smollm2(dtype)
    everyone = workload(49_152, seed, count, longest=100)
    _, found = run_in(worker, cell, everyone)
    assert found == [alone(worker, one) for one in everyone]


# ---- what could go wrong is seen, and what cannot be promised is refused ----


def test_the_comparison_sees_a_backend_whose_scores_follow_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(ODD, random_weights(ODD, torch.float32), "fp32", 16, 2)
    plain = worker.runner.backend.forward

    def following(inputs: ForwardInputs) -> torch.Tensor:
        """A BLAS may add in another order where more rows are computed together; here the difference is sure."""
        return plain(inputs) * (1 + 1e-5 * (len(inputs.slots) > 1))

    monkeypatch.setattr(worker.runner.backend, "forward", following)
    everyone = workload(ODD.vocab_size, seed=1, count=4, longest=100)
    _, found = run_in(worker, ORDINARY, everyone)
    expected = [alone(worker, one) for one in everyone]
    assert found != expected
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]


def test_deterministic_refuses_torch_and_takes_nothing_in_place_of_the_compiled_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kv = KvStore(ODD, num_pages=1, page_size=4, dtype=torch.float32, device="cpu")

    def choose(requested: Any) -> Any:
        weights = random_weights(ODD, torch.float32)
        return select.select_backend(requested, ODD, weights, kv, threads=1, deterministic=True)

    assert choose("auto").name == choose("native").name == "native"
    with pytest.raises(BackendUnavailable, match="depends on the batch"):
        choose("torch")

    def unbuildable(*_: Any, **__: Any) -> None:
        raise BackendUnavailable("native", "there is no compiler")

    monkeypatch.setattr(select, "native_backend", lambda: unbuildable)
    with pytest.raises(BackendUnavailable, match="no compiler"):
        choose("auto")
