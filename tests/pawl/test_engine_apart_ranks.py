"""Prefill and decode apart with other numbers of ranks: pages change hands whole, and the tokens are those of one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.actors.names import PREFILL
from pawl.build import loading
from pawl.build.replicas import share_of
from pawl.config import ConfigError, ServerConfig, build_config
from pawl.engine import Engine
from pawl.gpu.parallel.group import RankGroup
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.records import TierTold
from pawl.lifecycle.trace.reader import TraceReader
from tests.actors.linked_systems import wait_for
from tests.actors.vocabularies import byte_level
from tests.gpu.real import smollm2_source
from tests.gpu.tiny import save_tiny
from tests.pawl.test_engine_apart import random_requests
from tests.pawl.test_engine_apart_processes import linked

PAGE = 4
SETTINGS: dict[str, Any] = {
    "dtype": "bf16",
    "backend": "native",
    "kv_tokens": 4096,
    "max_running": 16,
    "page_size": PAGE,
    "grammar_backend": "plain",
    "log_level": "error",
}
GREEDY = {"temperature": 0.0, "max_new_tokens": 24, "ignore_eos": True}
PROMPTS = [np.random.default_rng(length).integers(3, 90, length).tolist() for length in (3, 21, 30, 47, 64)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with 2 groups of heads."""
    path = tmp_path_factory.mktemp("llama")
    save_tiny("llama", path)
    byte_level().tokenizer.save(str(path / "tokenizer.json"))
    return path


def config(model: Path | str, trace: Path, **more: Any) -> ServerConfig:
    return build_config(SETTINGS | {"model": str(model), "trace_dir": str(trace)} | more)


def received(trace: Path) -> list[int]:
    """Pages of each prompt that the decode replica was handed."""
    told = [record for record in TraceReader(trace / "replica-0") if isinstance(record, TierTold)]
    return [record.count for record in told if record.kind == "received"]


def passed(trace: Path) -> bool:
    return all(audit(run).verdict is Verdict.PASS for run in trace.glob("replica-*/run-*"))


@pytest.mark.slow
def test_two_ranks_prefill_for_one_process_that_decodes(folder: Path, tmp_path: Path) -> None:
    with Engine(config(folder, tmp_path / "alone")) as engine:
        alone = [each.tokens for each in engine.generate(PROMPTS, GREEDY)]
    with Engine(config(folder, tmp_path / "apart", disaggregate="1p1d", prefill_tp=2)) as engine:
        assert [each.tokens for each in engine.generate(PROMPTS, GREEDY)] == alone
        assert [len(each.summary.get("ranks", ())) for each in engine.replicas.live()] == [0, 2]
    assert sorted(received(tmp_path / "apart")) == [(len(prompt) - 1) // PAGE for prompt in PROMPTS[1:]]
    assert passed(tmp_path / "apart")


@pytest.mark.slow
@pytest.mark.parametrize(("role", "ranks"), [(PREFILL, {"prefill_tp": 2}), ("decode", {"decode_tp": 2})])
def test_the_death_of_a_rank_on_either_side_costs_nobody_a_token(
    role: str, ranks: dict[str, int], folder: Path, tmp_path: Path
) -> None:
    with Engine(config(folder, tmp_path / "alone")) as engine:
        alone = [each.tokens for each in engine.generate(PROMPTS, GREEDY)]
    more = ranks | {"prefill_lease_s": 600.0}
    with Engine(config(folder, tmp_path / "apart", disaggregate="1p1d", **more)) as engine:
        (group,) = [each.runner for each in engine.replicas.live() if each.names.role == role]
        assert isinstance(group, RankGroup)
        before = [one.pid for one in group.ready]
        streams = [engine.stream(prompt, GREEDY) for prompt in PROMPTS]
        os.kill(before[1], signal.SIGKILL)
        assert [tuple(token for delta in stream for token in delta.tokens) for stream in streams] == alone
        engine.generate([prompt[::-1] for prompt in PROMPTS], GREEDY)
        wait_for(lambda: not {one.pid for one in group.ready} & set(before))
    assert passed(tmp_path / "apart")


SIZES = [("1p1d", 1, 3, "local"), ("1p1d", 3, 2, "processes"), ("2p1d", 2, 1, "processes")]


@pytest.fixture(scope="module")
def unified(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What SmolLM2 says in one process."""
    smollm2_source()
    prompts, samplings = random_requests(80)
    with Engine(config("smollm2", tmp_path_factory.mktemp("one"), **SMOLLM2)) as engine:
        return [list(each.tokens) for each in engine.generate(prompts, samplings)]


SMOLLM2: dict[str, Any] = {
    "deterministic": True,
    "kv_tokens": 1 << 14,
    "page_size": 16,
    "max_queued": 400,
    "threads": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize(("apart", "prefill", "decode", "runtime"), SIZES)
def test_smollm2_says_the_same_with_any_ranks_on_either_side(
    apart: str, prefill: int, decode: int, runtime: str, unified: list[list[int]], tmp_path: Path
) -> None:
    ranks = {"disaggregate": apart, "prefill_tp": prefill, "decode_tp": decode, "runtime": runtime}
    prompts, samplings = random_requests(80)
    with Engine(config("smollm2", tmp_path, **SMOLLM2 | ranks)) as engine:
        if runtime == "processes":
            wait_for(lambda: linked(engine, int(apart[0]), 1))
        assert [list(each.tokens) for each in engine.generate(prompts, samplings)] == unified
    assert sum(received(tmp_path)) > len(prompts)
    assert passed(tmp_path)


# ---- what is refused ----

REFUSED = [
    ({"prefill_tp": 2}, "prefill_tp: prefill and decode are not apart: say --tp, or --disaggregate too"),
    (
        {"disaggregate": "1p1d", "tp": 3, "decode_tp": 2, "backend": "torch"},
        "prefill_tp: 3 to prefill and 2 to decode: in plain torch sums depend",
    ),
    ({"disaggregate": "1p1d", "decode_tp": 3}, "decode_tp: the ghost computes no model, and on the CPU only"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_ranks_that_cannot_be_are_refused_by_the_setting_that_the_user_gave(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(build_config({"model": "ghost", "trace_dir": str(tmp_path)} | settings))


def test_other_ranks_on_the_two_sides_are_refused_on_cuda_devices() -> None:
    hosts: dict[str, Any] = {"nodes": 2, "listen": "tcp://10.0.0.1:7000", "keys": "k"}
    config = build_config({"model": "m", "disaggregate": "1p1d", "prefill_tp": 2, "device": "cuda"} | hosts)
    told = "prefill_tp: 2 to prefill and 1 to decode: with cuda sums depend on the number of ranks; only the compiled"
    for place in range(2):
        with pytest.raises(ConfigError, match=told):
            share_of(config, place)


def test_more_ranks_than_key_heads_are_refused_before_the_other_side_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smollm2_source()
    monkeypatch.setattr("pawl.build.assembly.start_group", None)
    with pytest.raises(ConfigError, match="prefill_tp: tp 4: this model has 3 key heads"):
        Engine(config("smollm2", tmp_path, disaggregate="1p1d", prefill_tp=4, decode_tp=2))


def test_pages_that_the_other_side_cannot_read_are_refused_and_what_was_loaded_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def loaded(share: ServerConfig, report: object, names: Any) -> Any:
        tiers = SimpleNamespace(layout=f"of {names.role}")
        return SimpleNamespace(loop_config=SimpleNamespace(tiers=tiers), close=lambda: closed.append(names.role))

    monkeypatch.setattr(loading, "load_here", loaded)
    with pytest.raises(ConfigError, match="pages of one side are none of the other: of decode, of prefill"):
        loading.load(config("ghost", tmp_path, disaggregate="1p1d"))
    assert sorted(closed) == ["decode", "prefill"]


def test_what_is_dequantised_for_ranks_is_so_on_the_other_side_too(tmp_path: Path) -> None:
    made = build_config({"model": "smollm2", "trace_dir": str(tmp_path), "disaggregate": "1p1d", "prefill_tp": 2})
    assert [(share_of(made, place).tp, share_of(made, place).dtype) for place in (0, 1)] == [(1, "bf16"), (2, "bf16")]
    alike = build_config({"model": "smollm2", "trace_dir": str(tmp_path), "disaggregate": "1p1d"})
    assert share_of(alike, 0).dtype == "auto"
