"""Memory of a real model that is released is the system's before the reply, and comes back with the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pawl.config import build_config
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from tests.gpu.real import smollm2_source

KV, WEIGHTS = 1 << 30, 134_515_008 * 2
"""Bytes of the pages, and of SmolLM2's weights in bfloat16."""
ASKED: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0}


def resident() -> int:
    """Bytes of this process that are in memory."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the system does not say")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not say what is resident")
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_what_is_released_is_not_resident_and_what_is_resumed_says_the_same(tmp_path: Path, backend: str) -> None:
    smollm2_source()
    settings = {"model": "smollm2", "backend": backend, "weights": "bf16", "kv_memory_gb": KV / (1 << 30)}
    settings["trace_dir"] = str(tmp_path)
    with Engine(build_config(settings)) as engine:
        before = engine.generate("The capital of France is", ASKED)[0]
        engine.parts.runner.kv.data.fill_(1.0)  # type: ignore[attr-defined]
        full = resident()
        engine.release_memory(tags=["kv_cache"])
        without_pages = resident()
        assert full - without_pages > KV / 2
        engine.release_memory(tags=["weights"])
        without_weights = resident()
        assert without_pages - without_weights > WEIGHTS / 2
        engine.resume_memory(tags=["weights"])
        assert resident() - without_weights > WEIGHTS / 2
        engine.resume_memory()
        assert resident() < full - KV / 2, "pages come as they are written"
        after = engine.generate("The capital of France is", ASKED)[0]
        assert (after.tokens, after.text) == (before.tokens, before.text)
    assert audit(tmp_path).verdict is Verdict.PASS
