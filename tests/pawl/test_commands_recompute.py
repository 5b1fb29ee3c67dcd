"""`pawl audit --recompute` over a run of a real model: its words are computed again, and a forged one is named."""

from __future__ import annotations

import json
import platform
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.cli import main
from pawl.config import build_config
from pawl.engine import Engine
from pawl.gpu.native import store
from pawl.gpu.native.bindings import load_library
from pawl.gpu.native.build import Sums, sums_of
from pawl.lifecycle.columns import float32s, int32s
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Record, Started, StepCommitted
from pawl.lifecycle.trace.format import run_folders
from pawl.lifecycle.trace.reader import TraceReader
from pawl.lifecycle.trace.writer import TraceWriter
from tests.conftest import give_memory_back
from tests.gpu.real import smollm2_source

WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0, "top_logprobs": 0, "seed": 11},
    {"temperature": 0.8, "top_p": 0.9, "frequency_penalty": 0.5, "top_logprobs": 3, "seed": 12},
    {"temperature": 0.0, "prompt_logprobs": True, "top_logprobs": 1},
    {"temperature": 1.2, "top_k": 20, "logit_bias": {7: 2.0}, "min_new_tokens": 3, "seed": 13},
)
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder (see `run_into`)."""
    return run_into(tmp_path_factory.mktemp("traces"))


def run_into(folder: Path) -> Path:
    """The folder, in this one, of a run: requests of every kind that share beginnings, in memory for a few of them."""
    smollm2_source()
    source = random.Random(3)
    common = [source.randrange(1000, 40_000) for _ in range(70)]
    prompts = [[*common[: 7 * number], source.randrange(1000, 40_000)] for number in range(10)]
    fields = [{"max_new_tokens": 5 + number} | WAYS[number % len(WAYS)] for number in range(10)]
    settings = {"model": "smollm2", "deterministic": True, "max_running": 4, "kv_tokens": 256, "prefill_chunk": 32}
    with Engine(build_config(settings | {"trace_dir": str(folder)})) as engine:
        engine.generate(prompts, fields)
        engine.generate(prompts[:3], fields[:3])
    give_memory_back()
    (run,) = run_folders(folder)
    return run


def rewritten(run: Path, folder: Path, change: Callable[[list[Record]], Sequence[Record]]) -> Path:
    """Another trace of the changed records, every hash right."""
    writer = TraceWriter(folder, PLENTY)
    for record in change(list(TraceReader(run))):
        writer.append(record)
    writer.close()
    return writer.path


def audited(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["audit", str(path), "--recompute", *more])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_every_word_of_a_run_is_computed_again(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = audited(served, capsys, "smollm2", "--json")
    report, _ = json.JSONDecoder().raw_decode(told)
    assert (status, report["verdict"]) == (0, "PASS")
    assert report["recomputed"]["requests"] == 13
    assert report["recomputed"]["tokens"] == report["num_tokens"] > 100
    assert report["recomputed"]["scores"] > 100
    assert report["recomputed"]["not_recomputed"] == 0


def test_a_trace_may_stand_behind_the_flag(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--recompute", str(served)]) == 0
    assert "computed again: 13 requests" in capsys.readouterr().out


def forge(records: list[Record], what: str) -> tuple[list[Record], int, int]:
    """One token, or one log-probability, of a step in the middle; the request and position that it belongs to."""
    history = History()
    middle = len(records) // 2
    for at, record in enumerate(records):
        history.advance(record)
        if at < middle or not isinstance(record, StepCommitted):
            continue
        if what == "token" and (drew := np.flatnonzero(history.committed.drew[history.step.samples])).size:
            row = int(history.step.rows[history.step.samples][drew[0]])
            tokens = int32s(record.tokens).copy()
            tokens[drew[0]] += 1
            changed = msgspec.structs.replace(record, tokens=tokens.tobytes())
            return (
                [*records[:at], changed, *records[at + 1 :]],
                int(history.request[row]),
                history.known(row) - 1,
            )
        if what == "log-probability" and record.scores is not None:
            chosen, top = float32s(record.scores.chosen).copy(), float32s(record.scores.top).copy()
            other = np.nextafter(chosen[0], np.float32(-np.inf))
            top[top == chosen[0]] = other  # a token has one number in its place
            chosen[0] = other
            scores = record.scores._replace(chosen=chosen.tobytes(), top=top.tobytes())
            changed = msgspec.structs.replace(record, scores=scores)
            row = int(int32s(record.scores.rows)[0])
            position = int(int32s(record.scores.positions)[0])
            return [*records[:at], changed, *records[at + 1 :]], int(history.request[row]), position
    raise AssertionError(f"there is no {what} to forge")


@pytest.mark.parametrize("what", ["token", "log-probability"])
def test_a_forged_word_is_named(what: str, served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, request, position = forge(list(TraceReader(served)), what)
    forged = rewritten(served, tmp_path, lambda _: records)
    assert main(["audit", str(forged)]) == 0, "without the model it cannot be seen"
    status, told = audited(forged, capsys)
    assert status == 1
    assert re.search(rf"violated: recomputed at record \d+, request {request}: .*position {position}\b", told)


def test_a_run_that_was_killed_is_computed_as_far_as_it_is_recorded(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = rewritten(served, tmp_path, lambda records: records[: len(records) // 2])
    status, told = audited(cut, capsys)
    assert (status, "INCOMPLETE" in told) == (2, True)
    assert re.search(r"computed again: \d+ requests, [1-9]\d+ output tokens", told)


def with_facts(records: list[Record], **facts: Any) -> list[Record]:
    first, *rest = records
    assert isinstance(first, Started)
    return [msgspec.structs.replace(first, config=first.config | facts), *rest]


def test_a_run_that_promised_nothing_is_said_not_to_have_been_computed(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch_run = rewritten(served, tmp_path, lambda records: with_facts(records, backend="torch", deterministic=False))
    status, told = audited(torch_run, capsys)
    assert status == 0
    assert "computed again: nothing; 13 requests of a run that does not promise the same bits" in told


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of other processors last bits may differ")
def test_another_class_of_the_same_bits_is_no_other_processor(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = TraceReader(served)
    assert isinstance(first, Started)
    sums = first.config["processor"].partition(", ")[1:]
    other = "".join(("avx with something", *sums))
    assert audited(rewritten(served, tmp_path, lambda records: with_facts(records, processor=other)), capsys)[0] == 0


@pytest.mark.parametrize(
    ("changes", "model", "words"),
    [
        ({}, ["ghost-town"], "ghost-town"),
        ({"loop": {"weights": "another"}}, [], "is not the model of this run: its weights are"),
        ({"processor": "abacus"}, [], "computed with abacus, and here is"),
        ({"backend": "ghost"}, ["smollm2"], "had a ghost as its model"),
        ({"dtype": "int3"}, [], "int3"),
    ],
    ids=["no such model", "other weights", "another processor", "a ghost", "no such dtype"],
)
def test_what_is_not_the_model_of_the_run_is_refused_in_one_line(
    changes: dict[str, Any],
    model: list[str],
    words: str,
    served: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def change(records: list[Record]) -> list[Record]:
        assert isinstance(records[0], Started)
        loop = records[0].config["loop"] | changes.get("loop", {})
        return with_facts(records, **changes | {"loop": loop})

    status, told = audited(rewritten(served, tmp_path, change), capsys, *model)
    lines = [line for line in told.splitlines() if not line.startswith("{")]
    assert status == 4
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.slow
def test_a_run_that_summed_otherwise_is_computed_as_it_was(
    served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = TraceReader(served)
    assert isinstance(first, Started)
    here = first.config["processor"]
    other: Sums = "pairs" if sums_of(here) == "blocks" else "blocks"
    library = load_library(other)
    monkeypatch.setattr(store, "load_library", lambda sums=None: library if sums is None else load_library(sums))
    elsewhere = run_into(tmp_path)
    monkeypatch.undo()
    status, told = audited(elsewhere, capsys)
    assert status == 0, told
    # Told to be of this processor, its words are not those that are computed here.
    lied = rewritten(elsewhere, tmp_path / "lied", lambda records: with_facts(records, processor=here))
    assert audited(lied, capsys)[0] == 1
