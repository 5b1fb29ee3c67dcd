"""A whole server, paused and continued by its users: the replies, the health, and what clients get."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.config import build_config
from pawl.engine import Engine, RequestFailed
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.audit import Verdict, audit
from tests.pawl.ghost_server import audited_client

VOCABULARY = ghost_vocabulary()
GREEDY = {"temperature": 0.0}
LONG = 300


def said(prompt: str, count: int) -> str:
    return VOCABULARY.decode(expected(VOCABULARY.encode(prompt).tolist(), count))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with audited_client(tmp_path) as client:
        yield client


class Asking(threading.Thread):
    """A client that waits for its whole answer."""

    def __init__(self, client: httpx.Client, prompt: str, count: int) -> None:
        super().__init__()
        self._url, self._body = (
            client.base_url,
            {"text": prompt, "sampling_params": {"max_new_tokens": count, **GREEDY}},
        )
        self.answer: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        self.answer = httpx.post(f"{self._url}/generate", json=self._body, timeout=60.0).json()

    def told(self) -> dict[str, Any]:
        self.join(60.0)
        return self.answer


def loads(client: httpx.Client, name: str) -> int:
    return int(client.get("/v1/loads").json()["loads"][0][name])


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_sglangs_routes_answer_in_its_words_and_who_comes_meanwhile_waits(client: httpx.Client, mode: str) -> None:
    reply = client.post("/pause_generation", json={"mode": mode})
    assert reply.status_code == 200
    assert reply.json() == {"success": True, "message": "Generation paused successfully.", "status": "ok"}
    asking = Asking(client, "hello", 5)
    while not loads(client, "num_waiting_reqs"):
        assert loads(client, "num_running_reqs") == 0
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "paused")
    assert client.get("/health_generate").json() == {"status": "paused"}
    assert client.get("/is_paused").json() == {"is_paused": True}
    assert client.post("/flush_cache").status_code == 200
    reply = client.post("/continue_generation", json={})
    assert reply.json() == {"success": True, "message": "Generation continued successfully.", "status": "ok"}
    assert asking.told()["text"] == said("hello", 5)
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_stream_that_was_paused_goes_on_where_it_was(client: httpx.Client, mode: str) -> None:
    body = {"text": "hello", "sampling_params": {"max_new_tokens": LONG, **GREEDY}, "stream": True}
    with client.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        for _ in range(3):
            assert httpx.post(f"{client.base_url}/pause_generation", json={"mode": mode}).status_code == 200
            assert httpx.post(f"{client.base_url}/continue_generation").status_code == 200
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    assert httpx.Response(200, text=data[-1]).json()["text"] == said("hello", LONG)


def test_a_pause_that_aborts_is_answered_when_everybody_has_been(client: httpx.Client) -> None:
    client.post("/pause_generation", json={"mode": "in_place"})
    asking = [Asking(client, f"hello {n}", 5) for n in range(3)]
    while loads(client, "num_waiting_reqs") < 3:
        pass
    assert client.post("/pause_generation").status_code == 200
    assert loads(client, "num_total_reqs") == 0
    for each in asking:
        reason = each.told()["meta_info"]["finish_reason"]
        assert (reason["type"], reason["message"]) == ("abort", "generation was paused")
    client.post("/continue_generation")


def test_vllms_routes_answer_in_its_words(client: httpx.Client) -> None:
    assert client.post("/pause", params={"mode": "keep", "clear_cache": "true"}).json() == {"status": "paused"}
    assert client.get("/is_paused").json() == {"is_paused": True}
    assert client.post("/resume").json() == {"status": "resumed"}
    assert client.get("/is_paused").json() == {"is_paused": False}
    refused = client.post("/pause", params={"mode": "wait"})
    assert (refused.status_code, "mode keep" in refused.json()["error"]["message"]) == (400, True)


def test_a_client_that_hangs_up_while_it_is_paused_is_forgotten(client: httpx.Client) -> None:
    client.post("/pause_generation", json={"mode": "retract"})
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 5}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{client.base_url}/generate", json=body, timeout=httpx.Timeout(60.0, read=0.2))
    while loads(client, "num_total_reqs"):
        pass
    client.post("/continue_generation")


def test_a_mode_that_there_is_not_is_refused(client: httpx.Client) -> None:
    assert client.post("/pause_generation", json={"mode": "gently"}).status_code == 400
    assert client.get("/is_paused").json() == {"is_paused": False}


def test_an_engine_is_steered_by_the_names_of_the_command(tmp_path: Path) -> None:
    with Engine(build_config({"model": "ghost", "trace_dir": str(tmp_path)})) as engine:
        engine.control("pause", mode="retract")
        assert engine.control("state")["serving"] == "paused"
        assert engine.control("flush-cache")["waiting"] == 0
        engine.control("continue")
        assert engine.generate("hello", {"max_new_tokens": 3, **GREEDY})[0].text == said("hello", 3)
        with pytest.raises(RequestFailed, match="mode"):
            engine.control("pause", mode="gently")
        with pytest.raises(KeyError, match="there is no control message 'pose'"):
            engine.control("pose")
    assert audit(tmp_path).verdict is Verdict.PASS


def test_an_engine_that_stops_while_it_is_paused_answers_everybody(tmp_path: Path) -> None:
    with Engine(build_config({"model": "ghost", "trace_dir": str(tmp_path)})) as engine:
        engine.control("pause", mode="in_place")

        def ended() -> None:
            with pytest.raises(RequestFailed):
                engine.generate("hello", {"max_new_tokens": 3})

        asked = threading.Thread(target=ended)
        asked.start()
        while not engine.control("state")["waiting"]:
            pass
    asked.join(60.0)
    assert not asked.is_alive()
    assert audit(tmp_path).verdict is Verdict.PASS


def test_a_call_by_name_is_the_message_itself_and_no_other_name_is_one(client: httpx.Client) -> None:
    paused = client.post("/rpc", json={"method": "pause", "parameters": {"mode": "in_place"}})
    assert (paused.status_code, client.get("/is_paused").json()) == (200, {"is_paused": True})
    assert client.post("/rpc", json={"method": "continue"}).status_code == 200
    state = client.post("/rpc", json={"method": "state", "parameters": {"detail": True}}).json()
    assert (state["serving"], state["live"]) == ("serving", [])
    for body in (
        {"method": "__class__"},
        {"method": "call", "parameters": {"method": "state"}},
        {"method": "pause", "parameters": {"mode": "gently"}},
        {"method": "pause", "parameters": {"mood": "abort"}},
    ):
        refused = client.post("/rpc", json=body)
        assert (refused.status_code, refused.json()["success"]) == (400, False)


def test_garbage_that_is_frozen_is_counted(client: httpx.Client) -> None:
    reply = client.post("/freeze_gc").json()
    assert reply["message"] == "Garbage collection frozen."
    assert reply["frozen_objects"] > 1000


def test_who_is_aborted_while_paused_is_told_so_whatever_it_asked_for(client: httpx.Client) -> None:
    client.post("/pause_generation", json={"mode": "in_place"})
    bodies = {
        "/v1/embeddings": {"input": "a text", "rid": "mine"},
        "/encode": {"text": "a text", "rid": "mine"},
        "/generate": {"text": "a text", "rid": "mine"},
    }
    for path, body in bodies.items():
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(client.post(path, json=body)))  # noqa: B023
        asking.start()
        while client.post("/abort_request", json={"rid": "mine"}).json()["unknown"]:
            assert not answers
        asking.join(60.0)
        answered = answers[0].status_code, answers[0].text
        assert answered[0] == 499 or '"abort"' in answered[1], (path, answered)
        assert "the server failed" not in answered[1]
    client.post("/continue_generation")
