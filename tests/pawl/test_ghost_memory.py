"""A whole server whose memory is released and resumed by its users: the replies, the health, and what clients get."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.config import build_config
from pawl.engine import Engine, RequestFailed
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.weight_source import WeightSource
from pawl.loops.residency import UPDATING
from tests.pawl.ghost_server import audited_client
from tests.pawl.test_ghost_pausing import GREEDY, Asking, loads, said

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"
ALL = ["kv_cache", "weights", "cuda_graph"]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with audited_client(tmp_path) as client:
        yield client


def post(client: httpx.Client, path: str, *tags: str, **fields: Any) -> tuple[int, list[str]]:
    reply = client.post(path, json=fields | ({"tags": tags} if tags else {}))
    return reply.status_code, reply.json()["released"]


def test_what_is_released_is_told_and_who_comes_meanwhile_waits(client: httpx.Client) -> None:
    assert post(client, RELEASE) == (200, ALL)
    health = client.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["released"]) == (200, "released", ALL)
    assert client.get("/health_generate").json() == {"status": "released"}
    assert client.get("/server_info").json()["internal_states"][0]["released"] == ALL
    asking = Asking(client, "hello", 5)
    while not loads(client, "num_waiting_reqs"):
        assert loads(client, "num_running_reqs") == 0
    assert post(client, RESUME, "weights") == (200, ["kv_cache", "cuda_graph"])
    assert post(client, RESUME) == (200, [])
    assert asking.told()["text"] == said("hello", 5)
    assert client.get("/health").json()["status"] == "ok"


def test_a_wrong_state_is_a_409_and_changes_nothing(client: httpx.Client) -> None:
    assert post(client, RESUME, "kv_cache") == (409, [])
    assert post(client, RELEASE, "kv_cache") == (200, ["kv_cache"])
    refused = client.post(RELEASE, json={"tags": ["kv_cache", "weights"]})
    assert (refused.status_code, refused.json()["error"]["message"]) == (409, "kv_cache: already released")
    assert post(client, RESUME, "weights") == (409, ["kv_cache"])
    assert post(client, RESUME, "kv_cache") == (200, [])
    assert client.post(RELEASE, json={"tags": ["everything"]}).status_code == 400
    assert client.get("/health").json()["released"] == []


def test_a_busy_server_is_not_released_and_does_not_die_of_it(client: httpx.Client) -> None:
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 300, **GREEDY}, "stream": True}
    with client.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        other = httpx.Client(base_url=client.base_url, timeout=60.0)
        other.post("/pause_generation", json={"mode": "in_place"})
        refused = other.post(RELEASE)
        assert refused.status_code == 409
        assert "keep their pages" in refused.json()["message"]
        assert post(other, RELEASE, "weights") == (200, ["weights"])
        other.post("/pause_generation", json={"mode": "retract"})
        assert post(other, RELEASE, "kv_cache") == (200, ["kv_cache", "weights"])
        other.post("/continue_generation")
        assert post(other, RESUME) == (200, [])
        last = [line for line in lines if line.startswith("data: {")][-1]
    assert httpx.Response(200, text=last.removeprefix("data: ")).json()["text"] == said("hello", 300)


def test_the_order_of_a_training_loop_brings_new_weights_and_an_empty_cache(client: httpx.Client) -> None:
    for version in "abc":
        assert Asking(client, "hello", 5).told()["meta_info"]["cached_tokens"] == 0
        client.post("/pause_generation", json={"mode": "abort"})
        client.post("/flush_cache")
        assert post(client, RELEASE, "kv_cache")[0] == post(client, RELEASE, "weights")[0] == 200
        assert post(client, RESUME, "weights") == (200, ["kv_cache"])
        update = {"model_path": f"ghost:{version}", "weight_version": version}
        assert client.post("/update_weights_from_disk", json=update).status_code == 200
        assert post(client, RESUME, "kv_cache") == (200, [])
        client.post("/continue_generation")
        assert Asking(client, "hello", 5).told()["meta_info"]["weight_version"] == version
        client.post("/flush_cache")


def test_vllms_routes_answer_in_its_words(client: httpx.Client) -> None:
    assert client.get("/is_sleeping").json() == {"is_sleeping": False}
    client.post("/pause_generation", json={"mode": "in_place"})
    asking = Asking(client, "hello", 5)
    while not loads(client, "num_waiting_reqs"):
        pass
    client.post("/continue_generation")
    assert client.post("/sleep", params={"level": "1", "mode": "keep"}).status_code == 200
    assert client.get("/is_sleeping").json() == {"is_sleeping": True}
    assert client.get("/is_paused").json() == {"is_paused": False}
    assert client.post("/sleep", params={"level": "2"}).status_code == 409
    woken = client.post("/wake_up", params={"tags": ["weights", "cuda_graph"]})
    assert (woken.status_code, woken.json()["released"]) == (200, ["kv_cache"])
    assert client.post("/wake_up", params={"tags": "weights"}).status_code == 409
    assert client.get("/is_sleeping").json() == {"is_sleeping": True}
    assert client.post("/wake_up").json()["released"] == []
    assert asking.told()["text"] == said("hello", 5)
    assert client.post("/sleep", params={"level": "3"}).status_code == 400
    assert client.post("/sleep", params={"mode": "wait"}).status_code == 400


def test_a_sleep_that_is_refused_for_an_update_aborts_nobody(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, stage = threading.Event(), threading.Event(), Ghost.stage

    def slow(runner: Ghost, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        begun.set()
        assert may_end.wait(60.0)
        return stage(runner, ticket, source, last=last)

    monkeypatch.setattr(Ghost, "stage", slow)
    update = {"model_path": "ghost:a", "abort_all_requests": False}
    with ThreadPoolExecutor(1) as pool:
        updated = pool.submit(client.post, "/update_weights_from_disk", json=update)
        assert begun.wait(60.0)
        client.post("/pause_generation", json={"mode": "in_place"})
        asking = Asking(client, "hello", 5)
        while not loads(client, "num_waiting_reqs"):
            pass
        refused = client.post("/sleep")
        may_end.set()
        assert (refused.status_code, refused.json()["message"]) == (409, UPDATING)
        client.post("/continue_generation")
        assert updated.result().status_code == 200
    assert asking.told()["meta_info"]["finish_reason"]["type"] == "length"


def test_an_engine_has_the_methods(tmp_path: Path) -> None:
    with Engine(build_config({"model": "ghost", "trace_dir": str(tmp_path)})) as engine:
        first = engine.generate("hello", {"max_new_tokens": 3, **GREEDY})[0].text
        assert engine.release_memory(tags=["kv_cache"])["released"] == ["kv_cache"]
        with pytest.raises(RequestFailed, match="already released"):
            engine.release_memory_occupation(tags=["kv_cache"])
        with pytest.raises(RuntimeError, match="not currently released"):
            engine.resume_memory(tags=["weights"])
        assert engine.resume_memory_occupation()["released"] == []
        assert engine.generate("hello", {"max_new_tokens": 3, **GREEDY})[0].text == first
    assert audit(tmp_path).verdict is Verdict.PASS


def test_an_engine_stops_while_memory_is_released_and_requests_wait(tmp_path: Path) -> None:
    with audited_client(tmp_path) as client:
        post(client, RELEASE)
        asking = Asking(client, "hello", 5)
        while not loads(client, "num_waiting_reqs"):
            pass
    assert "error" in asking.told()


KILLED = """
import sys
from pawl.build.ghost import load_ghost
from pawl.config import build_config
from pawl.engine import Engine

class Stuck:
    def __call__(self, tags):
        print("moving", flush=True)
        sys.stdin.read()

parts = load_ghost(build_config({"model": "ghost", "trace_dir": sys.argv[1]}))
engine = Engine(build_config({"model": "ghost", "trace_dir": sys.argv[1]}), parts=parts).start()
engine.generate("hello", {"max_new_tokens": 3, "temperature": 0.0})
if sys.argv[2] == "resume":
    engine.release_memory()
setattr(parts.runner, sys.argv[2], Stuck())
engine.control(f"{sys.argv[2]}-memory")
"""


@pytest.mark.parametrize("move", ["release", "resume"])
def test_a_server_that_is_killed_in_the_middle_leaves_a_trace_that_no_property_minds(tmp_path: Path, move: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), move]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "moving":
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert audit(tmp_path).verdict is Verdict.INCOMPLETE
