"""A thousand random requests have the bits of one rank on two and on three, whatever each of them asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pawl.config import build_config
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from tests.gpu.real import smollm2_source

REQUESTS = 1000
SETTINGS: dict[str, Any] = {
    "model": "smollm2",
    "backend": "native",
    "dtype": "bf16",
    "deterministic": True,
    "kv_tokens": 16_384,
    "max_running": 48,
    "prefill_chunk": 256,
    "request_timeout_s": 36_000.0,
    "log_level": "error",
}


def workload() -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts of which some begin alike, greedy and sampled, with penalties, log-probabilities and runs of drafts."""
    random = np.random.default_rng(11)
    shared = random.integers(0, 49_152, 60).tolist()
    prompts, settings = [], []
    for number in range(REQUESTS):
        own = random.integers(0, 49_152, int(random.integers(1, 60))).tolist()
        prompts.append(shared[: int(random.integers(0, 60))] + own if random.random() < 0.4 else own)
        sampled = random.random() < 0.5
        settings.append(
            {
                "max_new_tokens": int(random.integers(1, 13)),
                "ignore_eos": True,
                "temperature": float(random.uniform(0.2, 1.5)) if sampled else 0.0,
                "top_p": float(random.uniform(0.5, 1.0)),
                "top_k": int(random.choice([0, 20])),
                "frequency_penalty": float(random.choice([0.0, 0.5])),
                "seed": number,
                "top_logprobs": [None, 0, 3][random.integers(3)],
                "prompt_logprobs": bool(random.random() < 0.05),
            }
        )
    return prompts, settings


def said(trace: Path, **more: Any) -> list[Any]:
    """What each request was told, with its scores."""
    prompts, settings = workload()
    with Engine(build_config(SETTINGS | {"trace_dir": str(trace)} | more)) as engine:
        found = [(each.tokens, each.logprobs, each.prompt_logprobs) for each in engine.generate(prompts, settings)]
    assert audit(trace).verdict is Verdict.PASS
    return found


@pytest.fixture(scope="module")
def on_one_rank(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    smollm2_source()
    return said(tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"tp": 2}, {"tp": 3}, {"tp": 3, "speculate": "ngram"}])
def test_a_thousand_random_requests_have_the_bits_of_one_rank(
    more: dict[str, Any], on_one_rank: list[Any], tmp_path: Path
) -> None:
    assert said(tmp_path, **more) == on_one_rank
