"""A trainer and its rollouts: weights are exchanged again and again while clients generate. Nobody is lost, and every
token is what the weights say whose name it bears."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import httpx
import pytest
from safetensors.torch import save

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.build.assembly import load_parts
from pawl.config import build_config
from pawl.gpu.dtypes import tensor_of
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.weights import GhostWeights
from pawl.lifecycle.audit import Verdict, audit
from tests.pawl.ghost_server import PATIENCE_S, audited_client, ghost_server

VOCABULARY = ghost_vocabulary()
NUM_CLIENTS = 6
RAW = {"content-type": "application/octet-stream"}
Answer = dict[str, Any]


def ask(client: httpx.Client, prompt: list[int], num_tokens: int) -> Answer:
    sampling = {"max_new_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}
    reply = client.post("/generate", json={"input_ids": prompt, "sampling_params": sampling})
    assert reply.status_code == 200, reply.text
    answer: Answer = reply.json()
    assert answer["meta_info"]["finish_reason"]["type"] == "length"
    assert len(answer["output_ids"]) == num_tokens
    return answer


def put(client: httpx.Client, file: bytes, version: str, *, last: bool = True) -> bool:
    params = {"weight_version": version, "last": str(last).lower()}
    reply = client.post("/update_weights_from_tensor", content=file, params=params, headers=RAW)
    assert reply.status_code in (200, 400), reply.text
    return bool(reply.json()["success"])


def spans(answer: Answer) -> Iterator[tuple[str, int, int]]:
    """(version, first token, end) of each stretch; together they are the whole output."""
    end = 0
    for span in answer["meta_info"]["weight_versions"]:
        assert span["start"] == end < span["end"]
        end = span["end"]
        yield span["version"], span["start"], end
    assert end == len(answer["output_ids"])
    assert answer["meta_info"]["weight_version"] == span["version"]


def rollouts(
    client: httpx.Client, prompts: Callable[[int], list[int]], num_tokens: int, updates: Sequence[Callable[[], object]]
) -> list[tuple[list[int], Answer]]:
    """What clients get, one request after the other each, until after the last of `updates`; before each of these
    somebody has got something, and others are at work."""
    over, answered = Event(), Semaphore(0)

    def generate(own: int) -> list[tuple[list[int], Answer]]:
        got = []
        for number in count():
            prompt = prompts(number * NUM_CLIENTS + own)
            got.append((prompt, ask(client, prompt, num_tokens)))
            answered.release()
            if over.is_set():
                return got
        raise AssertionError("it counts for ever")

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [pool.submit(generate, own) for own in range(NUM_CLIENTS)]
        try:
            for update in updates:
                assert answered.acquire(timeout=PATIENCE_S)
                update()
        finally:
            over.set()
        return [pair for each in clients for pair in each.result()]


def step(client: httpx.Client, number: int) -> str:
    """One update, in one of the ways that trainers have; the source of what serves after it, "" where it must fail."""
    version, source = f"v{number}", f"ghost:{number}+{number}"
    weights = GhostWeights.named(source)
    match number % 5:
        case 0:
            source = f"ghost:{number}"
            body = {"model_path": source, "weight_version": version, "flush_cache": False}
            assert client.post("/update_weights_from_disk", json=body).status_code == 200
        case 1:
            assert put(client, weights.file(), version)
        case 2:  # pause, update in buckets, flush, continue
            client.post("/pause_generation", json={"mode": "retract"})
            assert put(client, weights.file("ghost.first"), version, last=False)
            assert put(client, weights.file("ghost.second"), version)
            assert client.post("/flush_cache").status_code == 200
            client.post("/continue_generation", json={})
        case 3:
            client.post("/pause_generation", json={"mode": "in_place"})
            assert put(client, weights.file("ghost.second"), version, last=False)
            assert put(client, weights.file("ghost.first"), version)
            client.post("/continue_generation", json={})
        case 4:
            assert put(client, weights.file("ghost.first"), version, last=False)
            assert not put(client, weights.file().replace(b"ghost.first", b"ghost.worst"), version)
            return ""
    return source


@pytest.mark.parametrize("num_updates", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_through_updates_nobody_is_lost_and_every_token_bears_the_name_of_the_weights_that_drew_it(
    tmp_path: Path, num_updates: int
) -> None:
    salts = {"v": 0}

    def update(number: int) -> None:
        source = step(client, number)
        if source:
            salts[f"v{number}"] = GhostWeights.named(source).salt

    updates = [partial(update, number) for number in range(1, num_updates + 1)]
    with audited_client(tmp_path, weight_version="v") as client:
        got = rollouts(client, lambda index: VOCABULARY.encode(f"rollout {index}").tolist(), 150, updates)
        assert client.get("/get_weight_version").json() == {"weight_version": list(salts)[-1]}
    num_versions = set[str]()
    for prompt, answer in got:
        tokens = answer["output_ids"]
        for version, start, end in spans(answer):
            num_versions.add(version)
            assert tokens[start:end] == expected([*prompt, *tokens[:start]], end - start, salts[version])
    assert len(num_versions) > 1, "no client has seen an update"


@pytest.mark.slow
def test_a_real_model_says_under_each_name_what_it_says_when_it_is_asked_again_under_it(tmp_path: Path) -> None:
    settings = {"model": "smollm2", "trace_dir": str(tmp_path), "weight_version": "v0", "deterministic": True}
    parts = load_parts(build_config(settings))
    norm = tensor_of(parts.runner.named_weights()["model.norm.weight"])
    files = {f"v{n}": save({"model.norm.weight": norm.roll(n)}) for n in range(3)}
    with (
        ghost_server(parts, **settings) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=120.0) as client,
    ):
        got = rollouts(
            client,
            lambda index: list(range(20 + index, 30 + index)),
            12,
            [partial(put, client, file, version) for version, file in files.items()],
        )
        # Those first under whose eyes the weights were exchanged.
        got = sorted(got, key=lambda pair: -len(pair[1]["meta_info"]["weight_versions"]))[: 2 * NUM_CLIENTS]
        for version, file in files.items():
            assert put(client, file, version)
            for prompt, answer in got:
                tokens = answer["output_ids"]
                for name, start, end in spans(answer):
                    if name == version:
                        again = ask(client, [*prompt, *tokens[:start]], end - start)
                        assert again["output_ids"] == tokens[start:end]
    assert audit(tmp_path).verdict is Verdict.PASS


SERVER = """
import sys
from pawl.cli import main
sys.exit(main(["serve", "ghost", "--port", "0", "--trace-dir", sys.argv[1]]))
"""


@pytest.mark.parametrize("moment", ["between two parts", "in the middle of an update", "while paused for one"])
def test_a_server_that_is_killed_leaves_a_trace_in_which_nothing_is_wrong_but_its_end(
    tmp_path: Path, moment: str
) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)
        url = next(match[0] for match in found if match)
        with httpx.Client(base_url=url, timeout=60.0) as client:
            ask(client, [1, 2, 3], 5)
            weights = GhostWeights.named("ghost:a+b")
            if moment == "while paused for one":
                client.post("/pause_generation", json={"mode": "retract"})
            put(client, weights.file("ghost.first"), "v1", last=False)
            if moment == "in the middle of an update":
                assert put(client, weights.file("ghost.second"), "v1")
                ask(client, [1, 2, 3], 5)
            os.kill(process.pid, signal.SIGKILL)
        process.stdout.read()
    report = audit(tmp_path)
    assert (report.verdict, report.findings) == (Verdict.INCOMPLETE, ())
    assert report.num_records > 0
