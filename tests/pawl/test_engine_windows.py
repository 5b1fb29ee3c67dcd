"""Gemma 3 with a pool of its own for windowed layers answers as with one pool, and so does a small memory."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pawl.config import ConfigError, build_config
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from pawl.loops.decision_log import OneDecisionLog
from tests.conftest import give_memory_back
from tests.gpu.gemma import gemma_path

WINDOW = 512


def prompts() -> list[list[int]]:
    """Some longer than the window, with beginnings in common that are as well."""
    source = random.Random(5)
    words = [source.randrange(1000, 50_000) for _ in range(1000)]
    lengths = ((560, 20), (560, 50), (100, 30))
    return [words[:shared] + [source.randrange(1000, 50_000) for _ in range(own)] for shared, own in lengths]


def answers(trace_dir: Path, **settings: Any) -> tuple[list[list[int]], dict[str, Any]]:
    """Of all prompts, twice; and the scheduler's state. The trace passes the audit."""
    config = build_config(
        {"model": str(gemma_path()), "context_length": 1024, "max_running": 4, "trace_dir": str(trace_dir), **settings}
    )
    give_memory_back()
    engine = Engine(config)
    with engine:
        sampling = {"max_new_tokens": 6, "temperature": 0.0}
        tokens = [list(completion.tokens) for _ in range(2) for completion in engine.generate(prompts(), sampling)]
    report = audit(trace_dir, [OneDecisionLog()])
    assert report.verdict is Verdict.PASS, report.text()
    return tokens, engine.parts.summary


@pytest.mark.slow
def test_two_pools_answer_as_one_does_and_hold_fewer_window_tokens(tmp_path: Path) -> None:
    one, _ = answers(tmp_path / "one", hybrid_pools="off", kv_tokens=4096)
    two, summary = answers(tmp_path / "two", kv_tokens=4096, prefill_chunk=128)
    assert two == one
    assert one[: len(prompts())] == one[len(prompts()) :], "the second time from the cache"
    assert WINDOW < summary["window_tokens"] < summary["kv_tokens"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "smollm2"}, "layers with a window"),
        ({"model": "", "host_cache_gb": 0.1}, "no window pages"),
    ],
)
def test_two_pools_that_cannot_be_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    settings["model"] = settings["model"] or str(gemma_path())
    with pytest.raises(ConfigError, match=words):
        Engine(build_config({"hybrid_pools": "on", "trace_dir": str(tmp_path), **settings}))
