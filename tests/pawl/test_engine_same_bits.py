"""A deterministic engine as its clients see it: tokens and log-probabilities to the bit, through every actor."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pawl.config import ConfigError, build_config
from pawl.engine import Completion, Engine
from tests.conftest import give_memory_back
from tests.gpu.gemma import gemma_path
from tests.gpu.real import smollm2_source
from tests.pawl.asking import state_of

WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "top_logprobs": 3},
    {"temperature": 1.0, "top_logprobs": 1, "seed": 11},
    {"temperature": 0.8, "top_p": 0.9, "top_logprobs": 1, "seed": 12},
)
"""Greedy and seeded."""
PROMPT_TOKENS = 100


def prompts(lengths: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For each (shared, own): so many tokens that all begin with, and so many of its own."""
    source = random.Random(5)
    common = [source.randrange(1000, 40_000) for _ in range(max(shared for shared, _ in lengths))]
    return [common[:shared] + [source.randrange(1000, 40_000) for _ in range(own)] for shared, own in lengths]


def samplings(count: int) -> list[dict[str, Any]]:
    return [{"max_new_tokens": 6} | WAYS[index % len(WAYS)] for index in range(count)]


def bits(completion: Completion) -> Any:
    """All that must not differ, floats as they are: nothing was rounded on the way."""
    assert len(completion.logprobs) == len(completion.tokens)
    return completion.tokens, completion.logprobs


def engine(folder: Path, model: str, **settings: Any) -> Engine:
    fixed = {"model": model, "deterministic": True, "max_running": 4, "trace_dir": str(folder / "traces")}
    give_memory_back()
    return Engine(build_config(fixed | settings))


def together(running: Engine, asked: list[list[int]]) -> list[Any]:
    return [bits(completion) for completion in running.generate(asked, samplings(len(asked)))]


def one_after_the_other(running: Engine, asked: list[list[int]]) -> list[tuple[Any, int]]:
    """Bits and cached tokens of each; the next is asked when what the last one left has been kept."""
    found = []
    for prompt, sampling in zip(asked, samplings(len(asked)), strict=True):
        (completion,) = running.generate([prompt], [sampling])
        found.append((bits(completion), completion.done.usage.cached_tokens))
        until(running, lambda tiers: not tiers.get("saving_pages"))
    return found


def until(running: Engine, holds: Callable[[dict[str, int]], bool]) -> None:
    """Ask for the state of the tiers below the device until it holds."""

    def tiers() -> dict[str, int]:
        found: dict[str, int] = state_of(running).get("tiers", {})
        return found

    assert any(holds(tiers()) for _ in range(100_000))


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_pages_from_host_memory_and_files_give_the_bits_of_computing_them(tmp_path: Path, dtype: str) -> None:
    smollm2_source()
    asked = prompts([(0, PROMPT_TOKENS)] * 3)
    small = {"dtype": dtype, "kv_tokens": 160, "context_length": 128}
    with engine(tmp_path, "smollm2", cache="none", **small) as plain:
        computed = [answer for answer, _ in one_after_the_other(plain, asked)]
    settings = small | {"host_cache_gb": 0.05, "storage_dir": str(tmp_path / "pages"), "write_policy": "write-through"}
    with engine(tmp_path, "smollm2", **settings) as first:
        cold, warm = one_after_the_other(first, asked), one_after_the_other(first, asked)
    assert cold == [(answer, 0) for answer in computed]
    assert warm == [(answer, 96) for answer in computed], "from host memory"
    with engine(tmp_path, "smollm2", **settings) as second:
        until(second, lambda tiers: tiers["known_pages"] >= 18)
        assert one_after_the_other(second, asked) == [(answer, 96) for answer in computed], "from files"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_gemma_gives_the_same_bits_with_one_pool_and_two_however_it_is_batched(tmp_path: Path, dtype: str) -> None:
    asked = prompts([(620, 40), (620, 90), (100, 30), (560, 60)])
    base = {"dtype": dtype, "context_length": 1024, "kv_tokens": 4096}
    path = str(gemma_path())
    with engine(tmp_path, path, cache="none", hybrid_pools="off", **base) as plain:
        expected = [answer for answer, _ in one_after_the_other(plain, asked)]
    variants: tuple[dict[str, Any], ...] = (
        {"hybrid_pools": "off", "prefill_chunk": 64},
        {"prefill_chunk": 512, "threads": 1},
        {"prefill_chunk": 128, "page_size": 64, "pacing": "lockstep"},
        {"prefill_chunk": 48, "kv_tokens": 1024},
    )
    for variant in variants:
        with engine(tmp_path, path, **base | variant) as running:
            assert together(running, asked) == expected, variant
            assert together(running, asked) == expected, ("from the cache", variant)


def test_deterministic_with_torch_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deterministic: the sums of torch depend on the batch") as refused:
        engine(tmp_path, "nobody/no-such-model", backend="torch")
    assert refused.value.field == "backend"
