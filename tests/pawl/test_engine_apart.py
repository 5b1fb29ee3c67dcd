"""Prefill and decode apart in one engine: the same words, and traces that hold on both sides."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.names import DECODE, PREFILL, UNIFIED, names_of
from pawl.build.roles import roles_of
from pawl.build.tiers import make_storage
from pawl.cli import main
from pawl.config import ConfigError, ServerConfig, build_config
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.export.timeline import timeline
from pawl.lifecycle.records import TierTold
from pawl.lifecycle.trace.reader import TraceReader
from tests.gpu.real import smollm2_source

PROMPTS = [f"request {number}: " + "a long prompt whose pages are worth the way " * 6 for number in range(6)]
SAMPLING = {"max_new_tokens": 8, "temperature": 0.0}
BEGINNING = "a beginning that many prompts have, of some pages: " * 3
ONE_AFTER_ANOTHER = [BEGINNING + "one", BEGINNING + "two", BEGINNING + "one", "another one " * 20, BEGINNING[:70] + "!"]
CACHED = [0, 144, 144, 0, 64]
"""Tokens of each that were in a cache: whole pages of what was asked before."""


def config(folder: Path, **fields: Any) -> ServerConfig:
    given = {"model": "ghost", "trace_dir": str(folder), "context_length": 1024, "page_size": 16}
    # A shorter lease would end some hand-overs on a busy machine.
    return build_config(given | {"prefill_lease_s": 3600.0} | fields)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one replica says."""
    with Engine(config(tmp_path_factory.mktemp("alone"))) as engine:
        return [completion.text for completion in engine.generate(PROMPTS, SAMPLING)]


@pytest.mark.parametrize("apart", [None, "1p1d", "2p1d", "1p2d"])
@pytest.mark.parametrize("pacing", ["lockstep", "overlap", "pipeline"])
def test_the_words_and_what_is_called_cached_are_those_of_one_replica(
    apart: str | None, pacing: str, alone: list[str], tmp_path: Path
) -> None:
    with Engine(config(tmp_path, disaggregate=apart, pacing=pacing)) as engine:
        said = [completion.text for completion in engine.generate(PROMPTS, SAMPLING)]
        usages = [engine.generate([prompt], SAMPLING)[0].done.usage for prompt in ONE_AFTER_ANOTHER]
    assert said == alone
    assert [usage.cached_tokens for usage in usages] == CACHED


def test_pages_are_handed_over_and_both_traces_pass(alone: list[str], tmp_path: Path) -> None:
    with Engine(config(tmp_path, disaggregate="1p1d")) as engine:
        completions = engine.generate(PROMPTS, SAMPLING)
    assert [completion.text for completion in completions] == alone
    # What was computed for a request elsewhere is nobody's cache: not for clients, and not in what is made of a trace.
    lines = timeline(TraceReader(tmp_path / "replica-0")).requests
    assert [line.num_cached for line in lines] == [each.done.usage.cached_tokens for each in completions] == [0] * 6
    told = [record for record in TraceReader(tmp_path / "replica-0") if isinstance(record, TierTold)]
    received = [record for record in told if record.kind == "received"]
    assert len(received) == len(PROMPTS)
    assert all(record.count for record in received)
    found = [audit(run) for run in sorted(tmp_path.glob("replica-*/run-*"))]
    assert [each.verdict for each in found] == [Verdict.PASS] * 2


def test_one_letter_between_the_two_numbers_is_all_that_there_is_to_say() -> None:
    assert roles_of(config(Path("x"), disaggregate="2p1d")) == (DECODE, PREFILL, PREFILL)
    assert roles_of(config(Path("x"), dp=3)) == (UNIFIED,) * 3


def test_what_does_not_go_together_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Engine(config(tmp_path, disaggregate="1p1d", dp=2))


PROCESSES = {"disaggregate": "1p1d", "runtime": "processes"}
NIXL_NEEDS: dict[str, dict[str, Any]] = {
    "page_transport: .* between processes only": {"disaggregate": "1p1d"},
    "page_transport: .* needs --disaggregate": {"runtime": "processes"},
    "pip install 'pawl-engine.nixl.'": PROCESSES,
    "UCX_NET_DEVICES": PROCESSES | {"nodes": 2, "listen": "tcp://10.0.0.1:7000", "keys": "keys"},
}


@pytest.mark.parametrize("words", NIXL_NEEDS)
def test_nixl_without_what_it_needs_is_refused_in_a_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pawl.build.roles.installed", lambda: words == "UCX_NET_DEVICES")
    monkeypatch.delenv("UCX_NET_DEVICES", raising=False)
    with pytest.raises(ConfigError, match=words):
        roles_of(config(tmp_path, page_transport="nixl", **NIXL_NEEDS[words]))


@pytest.mark.parametrize(("transport", "readable"), [("auto", True), ("messages", False)])
def test_pages_are_read_where_they_are_unless_they_are_to_travel_in_messages(
    transport: str, readable: bool, tmp_path: Path
) -> None:
    fields: dict[str, Any] = PROCESSES | {"host_cache_gb": 0.001, "page_transport": transport}
    storage = make_storage(config(tmp_path, **fields), "ghost", 4096, names_of(1, PREFILL))
    assert (storage.outgoing._memory is not None) == readable


@pytest.mark.parametrize("text", ["", "1p", "p1d", "0p1d", "1p0d", "1d1p", "1P1D", "1p1d "])
def test_another_form_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        config(tmp_path, disaggregate=text)


def test_the_audit_of_a_folder_of_replicas_judges_all_and_compares_their_hand_overs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Engine(config(tmp_path, disaggregate="1p1d")) as engine:
        engine.generate(PROMPTS, SAMPLING)
    assert main(["audit", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("PASS") == 2
    assert f"hand-overs: {len(PROMPTS)} between these" in said
    assert main(["audit", "--json", str(tmp_path / "replica-0"), str(tmp_path / "replica-1")]) == 0
    *reports, together = json.loads(capsys.readouterr().out)
    assert [each["verdict"] for each in reports] == ["PASS", "PASS"]
    assert together["hand_overs"]["faults"] == []


def test_a_decode_replica_beside_the_prefill_replica_of_another_run_is_a_violation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        with Engine(config(tmp_path / name, disaggregate="1p1d")) as engine:
            engine.generate([f"{name}: {prompt}" for prompt in PROMPTS[:2]], SAMPLING)
    assert main(["audit", str(tmp_path / "one" / "replica-0"), str(tmp_path / "other" / "replica-1")]) == 1
    assert "no prefill replica was asked for its tokens" in capsys.readouterr().out


def test_what_a_prefill_replica_computed_before_it_was_started_again_is_compared_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("before", "engine", "behind"):
        with Engine(config(tmp_path / name, disaggregate="1p1d")) as engine:
            engine.generate([f"{name}: {prompt}" for prompt in PROMPTS[:2]], SAMPLING)
    runs = tmp_path / "engine" / "replica-1"
    shutil.move(tmp_path / "behind" / "replica-1" / "run-000001", runs / "run-000002")
    assert main(["audit", str(tmp_path / "engine")]) == 0
    assert "hand-overs: 2 between these" in capsys.readouterr().out
    shutil.rmtree(runs / "run-000001")
    shutil.move(tmp_path / "before" / "replica-1" / "run-000001", runs / "run-000001")
    assert main(["audit", str(tmp_path / "engine")]) == 1
    assert "no prefill replica was asked for its tokens" in capsys.readouterr().out


CELLS = [(pacing, apart) for pacing in ("lockstep", "overlap", "pipeline") for apart in (None, "1p1d")]
"""With `1p1d` there are two: one that prefills and one that decodes."""


def random_requests(count: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Prompts of up to half a thousand characters, some of which begin alike; and how they are sampled."""
    drawn = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz  .,"
    beginnings = ["".join(drawn.choices(letters, k=drawn.randrange(200))) for _ in range(20)]
    prompts, samplings = [], []
    for number in range(count):
        beginning = drawn.choice(beginnings) if drawn.random() < 0.5 else ""
        prompts.append(beginning + "".join(drawn.choices(letters, k=drawn.randrange(1, 300))))
        sampling = {"max_new_tokens": drawn.randrange(1, 25), "temperature": drawn.choice((0.0, 0.7, 1.0))}
        sampling |= {"top_p": drawn.choice((0.5, 1.0)), "frequency_penalty": drawn.choice((0.0, 1.0))}
        samplings.append(sampling | {"seed": number})
    return prompts, samplings


@pytest.mark.slow
@pytest.mark.parametrize(("model", "count"), [("ghost", 1000), ("smollm2", 200)])
def test_random_requests_have_the_same_tokens_in_all_nine_cells(model: str, count: int, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_queued": 2 * count, "prefill_chunk": 64}
    if model != "ghost":
        smollm2_source()
        fields |= {"model": model, "deterministic": True, "kv_tokens": 1 << 14}
    prompts, samplings = random_requests(count)
    said, cells = [], set()
    for pacing, apart in CELLS:
        folder = tmp_path / f"{pacing}-{apart}"
        with Engine(config(folder, pacing=pacing, disaggregate=apart, **fields)) as engine:
            said.append([list(completion.tokens) for completion in engine.generate(prompts, samplings)])
            cells |= {replica.summary["cell"] for replica in engine.replicas.live()}
        if apart is not None:
            told = [record for record in TraceReader(folder / "replica-0") if isinstance(record, TierTold)]
            assert sum(record.kind == "received" for record in told) > count // 2
    assert len(cells) == 9
    assert all(each == said[0] for each in said)
