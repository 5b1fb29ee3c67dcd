"""`--speculate ngram` as users meet it: the same answers, a trace that passes, with drafts in usage and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pawl.build.ghost import load_ghost
from pawl.cli import main
from pawl.config import build_config
from pawl.engine import Engine
from tests.conftest import give_memory_back
from tests.gpu.real import smollm2_source
from tests.pawl.asking import state_of
from tests.pawl.ghost_server import ghost_server

COPIED = np.random.default_rng(7).integers(1000, 40_000, 12).tolist() * 3
WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.5, "seed": 3, "top_logprobs": 2},
    {"temperature": 0.0, "frequency_penalty": 0.1, "min_new_tokens": 8, "top_logprobs": 0},
)


def test_a_real_engine_says_the_same_bits_with_drafts_and_its_trace_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smollm2_source()
    said = []
    for settings in ({}, {"speculate": "ngram"}):
        give_memory_back()
        config = {"kv_tokens": 2048, "max_running": 4, "trace_dir": str(tmp_path / f"traces {len(said)}")}
        with Engine(build_config(config | settings)) as engine:
            answers = [engine.generate(COPIED, {"max_new_tokens": 24} | way)[0] for way in WAYS]
            steps = state_of(engine)["counters"]["steps"]
        said.append((steps, [(answer.tokens, answer.logprobs) for answer in answers]))
        usages = [answer.done.usage for answer in answers]
        assert any(usage.accepted_tokens for usage in usages) is bool(settings)
    assert said[0][1] == said[1][1]
    assert said[1][0] < said[0][0] - 4
    assert main(["audit", str(tmp_path / "traces 1"), "--recompute"]) == 0
    assert "PASS" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "traces 1")]) == 0


def test_usage_and_metrics_say_what_was_drafted_and_accepted(tmp_path: Path) -> None:
    body = {"model": "ghost", "prompt": [3, 1, 4], "max_tokens": 40, "temperature": 0, "logit_bias": {"65": 100}}
    settings = {"model": "ghost", "speculate": "ngram", "trace_dir": str(tmp_path)}
    server = ghost_server(load_ghost(build_config(settings)), **settings)
    with server as (host, port), httpx.Client(base_url=f"http://{host}:{port}") as client:
        answer = client.post("/v1/completions", json=body).json()
        assert answer["choices"][0]["text"] == "A" * 40
        accepted = answer["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
        assert 20 < accepted < 40
        native = {"input_ids": [3, 1, 4], "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        assert "spec_draft_token_num" not in client.post("/generate", json=native).json()["meta_info"]
        numbers = dict(line.split() for line in client.get("/metrics").text.splitlines() if "spec_decode" in line[:20])
        assert numbers["pawl_spec_decode_num_accepted_tokens_total"] == str(accepted)
        assert int(numbers["pawl_spec_decode_num_draft_tokens_total"]) >= accepted
        assert int(numbers["pawl_spec_decode_num_drafts_total"]) > 3
        info = client.get("/server_info").json()
        assert info["speculate"] == "ngram"
