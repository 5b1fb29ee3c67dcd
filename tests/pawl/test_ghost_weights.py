"""A whole server whose weights are exchanged by its users: the replies, what clients get, and what the trace says."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.control.weights import NO_TENSORS, PICKLED
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.config import build_config
from pawl.engine import Engine, RequestFailed
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.weights import GhostWeights
from pawl.loops.weights import DONE, KEPT
from tests.pawl.ghost_server import audited_client

VOCABULARY = ghost_vocabulary()
LONG = 400


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with audited_client(tmp_path, weight_version="v0") as client:
        yield client


def update(client: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    return client.post("/update_weights_from_disk", json={"model_path": path, **fields})


def said(tokens: list[int], source: str, count: int) -> list[int]:
    """What a ghost of these weights says next."""
    return expected(tokens, count, GhostWeights.named(source).salt)


def generate(client: httpx.Client, count: int) -> dict[str, Any]:
    body = {"text": "hello", "sampling_params": {"max_new_tokens": count, "temperature": 0.0, "ignore_eos": True}}
    answer: dict[str, Any] = client.post("/generate", json=body).json()
    return answer


def test_an_update_changes_what_is_said_what_it_is_called_and_where_the_model_is(client: httpx.Client) -> None:
    info = client.get("/get_model_info").json()
    assert (info["weight_version"], info["model_path"]) == ("v0", "ghost")
    assert generate(client, 5)["meta_info"]["weight_version"] == "v0"
    reply = update(client, "ghost:b", weight_version="v1")
    assert (reply.status_code, reply.json()) == (200, {"success": True, "message": DONE})
    info = client.get("/get_model_info").json()
    assert (info["weight_version"], info["model_path"], info["tokenizer_path"]) == ("v1", "ghost:b", "ghost")
    answer = generate(client, 5)
    assert answer["output_ids"] == said(VOCABULARY.encode("hello").tolist(), "ghost:b", 5)
    meta = answer["meta_info"]
    assert (meta["cached_tokens"], meta["weight_version"]) == (0, "v1")
    assert meta["weight_versions"] == [{"version": "v1", "start": 0, "end": 5}]


def test_weights_that_cannot_be_had_are_a_400_and_change_nothing(client: httpx.Client) -> None:
    reply = update(client, "nowhere", weight_version="v1")
    assert reply.status_code == 400
    assert (reply.json()["success"], reply.json()["message"].count("\n")) == (False, 0)
    assert update(client, "ghost:b", load_format="pickle").status_code == 400
    assert client.post("/update_weights_from_disk", json={}).status_code == 400
    info = client.get("/get_model_info").json()
    assert (info["weight_version"], info["model_path"]) == ("v0", "ghost")
    assert generate(client, 5)["output_ids"] == said(VOCABULARY.encode("hello").tolist(), "ghost", 5)


@pytest.mark.parametrize("paused", ["", "retract", "in_place"])
def test_a_stream_across_an_update_says_which_weights_drew_which_token(client: httpx.Client, paused: str) -> None:
    sampling = {"max_new_tokens": LONG, "temperature": 0.0, "ignore_eos": True}
    body = {"text": "hello", "sampling_params": sampling, "stream": True}
    with client.stream("POST", "/generate", json=body) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
        next(lines)
        if paused:
            client.post("/pause_generation", json={"mode": paused})
        assert update(client, "ghost:b", weight_version="v1", flush_cache=False).status_code == 200
        if paused:
            client.post("/continue_generation", json={})
        for line in lines:
            last = json.loads(line.removeprefix("data: "))
    spans, tokens = last["meta_info"]["weight_versions"], last["output_ids"]
    assert [span["version"] for span in spans] == ["v0", "v1"]
    assert [spans[0]["start"], spans[1]["start"], spans[1]["end"]] == [0, spans[0]["end"], LONG]
    first, prompt = spans[0]["end"], VOCABULARY.encode("hello").tolist()
    assert tokens[:first] == said(prompt, "ghost", first)
    assert tokens[first:] == said(prompt + tokens[:first], "ghost:b", LONG - first)
    assert (last["meta_info"]["weight_version"], last["meta_info"]["finish_reason"]["type"]) == ("v1", "length")


def test_weights_that_serve_are_renamed(client: httpx.Client) -> None:
    assert client.get("/get_weight_version").json() == client.get("/weight_version").json() == {"weight_version": "v0"}
    reply = client.post("/update_weight_version", json={"new_version": "v9", "abort_all_requests": False})
    assert (reply.status_code, reply.json()["success"], reply.json()["new_version"]) == (200, True, "v9")
    assert client.get("/get_weight_version").json() == {"weight_version": "v9"}
    answer = generate(client, 5)
    assert answer["meta_info"]["weight_version"] == "v9"
    assert answer["output_ids"] == said(VOCABULARY.encode("hello").tolist(), "ghost", 5)
    info = client.get("/model_info").json()
    assert (info["weight_version"], info["model_path"], info["tokenizer_path"]) == ("v9", "ghost", "ghost")


def test_replies_of_openais_routes_say_which_weights_drew_them(client: httpx.Client) -> None:
    asked = {"model": "ghost", "max_tokens": 4, "temperature": 0.0}
    for version in ("v0", "v1"):
        chat = client.post("/v1/chat/completions", json=asked | {"messages": [{"role": "user", "content": "hi"}]})
        text = client.post("/v1/completions", json=asked | {"prompt": "hi"})
        assert [reply.json()["metadata"]["weight_version"] for reply in (chat, text)] == [version, version]
        update(client, "ghost:b", weight_version="v1")


def test_an_engine_without_a_server_takes_the_same_message() -> None:
    with Engine(build_config({"model": "ghost", "trace": False})) as engine:
        before = engine.generate(["hello"], {"max_new_tokens": 4, "temperature": 0.0})[0].tokens
        engine.control("update-weights", model_path="ghost:b")
        assert engine.generate(["hello"], {"max_new_tokens": 4, "temperature": 0.0})[0].tokens != before
        with pytest.raises(RequestFailed, match="nowhere"):
            engine.control("update-weights", model_path="nowhere")
        engine.control("update-weights", model_path="ghost")
        assert engine.generate(["hello"], {"max_new_tokens": 4, "temperature": 0.0})[0].tokens == before


# ---- tensors ----

P, Q = GhostWeights.named("ghost:p+q"), GhostWeights.named("ghost:other+q")


def put(client: httpx.Client, file: bytes, **fields: Any) -> httpx.Response:
    return client.post("/update_weights_from_tensor", json={"safetensors": b64encode(file).decode(), **fields})


def test_tensors_that_are_sent_are_served_as_base64_as_the_whole_body_and_from_shared_memory(
    client: httpx.Client,
) -> None:
    def served(reply: httpx.Response, version: str, source: str) -> None:
        assert (reply.status_code, reply.json()) == (200, {"success": True, "message": DONE})
        answer = generate(client, 5)
        assert answer["output_ids"] == said(VOCABULARY.encode("hello").tolist(), source, 5)
        assert (answer["meta_info"]["weight_version"], answer["meta_info"]["cached_tokens"]) == (version, 0)

    served(put(client, P.file(), weight_version="v1"), "v1", "ghost:p+q")
    # One of both: the other stays.
    served(put(client, Q.file("ghost.first"), flush_cache=False), "v1", "ghost:other+q")
    raw = {"content": P.file(), "headers": {"content-type": "application/octet-stream"}}
    served(client.post("/update_weights_from_tensor", params={"weight_version": "v2"}, **raw), "v2", "ghost:p+q")
    segment = SharedMemory(create=True, size=4096)
    segment.buf[: len(Q.file())] = Q.file()
    where = {"shared_memory": segment.name, "size": len(Q.file())}
    served(client.post("/update_weights_from_tensor", json=where), "v2", "ghost:other+q")
    segment.close()
    segment.unlink()
    info = client.get("/get_model_info").json()
    assert (info["model_path"], info["weight_version"]) == ("ghost", "v2")


def test_weights_in_several_parts_are_exchanged_with_the_last_of_them(client: httpx.Client) -> None:
    client.post("/pause_generation", json={"mode": "retract"})
    reply = put(client, P.file("ghost.first"), weight_version="v1", last=False)
    assert (reply.status_code, reply.json()) == (200, {"success": True, "message": KEPT})
    assert client.get("/get_weight_version").json() == {"weight_version": "v0"}
    assert put(client, P.file("ghost.second"), weight_version="v1").json()["message"] == DONE
    assert client.post("/flush_cache").status_code == 200
    client.post("/continue_generation", json={})
    answer = generate(client, 5)
    assert answer["output_ids"] == said(VOCABULARY.encode("hello").tolist(), "ghost:p+q", 5)
    assert answer["meta_info"]["weight_versions"] == [{"version": "v1", "start": 0, "end": 5}]


def test_a_part_that_fails_leaves_the_old_weights_and_drops_those_before_it(client: httpx.Client) -> None:
    prompt = VOCABULARY.encode("hello").tolist()
    for bad in (P.file().replace(b"ghost.first", b"ghost.worst"), b"no safetensors", P.file()[:-3]):
        assert put(client, P.file("ghost.first"), weight_version="v1", last=False).status_code == 200
        reply = put(client, bad, weight_version="v1")
        assert (reply.status_code, reply.json()["success"], reply.json()["message"].count("\n")) == (400, False, 0)
        assert generate(client, 5)["output_ids"] == said(prompt, "ghost", 5)
    assert put(client, P.file("ghost.second"), weight_version="v1").status_code == 200
    assert generate(client, 5)["output_ids"] == said(prompt, "ghost:+q", 5)


def test_pickles_are_refused_with_what_to_send_and_so_is_nothing_at_all(client: httpx.Client) -> None:
    pickled = {"serialized_named_tensors": ["gASVAAAAAA=="], "flush_cache": True}
    reply = client.post("/update_weights_from_tensor", json=pickled)
    assert (reply.status_code, reply.json()["message"]) == (400, PICKLED)
    for body in ({}, {"shared_memory": "x"}, {"size": 9}, {"safetensors": "AAAA", "shared_memory": "x", "size": 9}):
        reply = client.post("/update_weights_from_tensor", json=body)
        assert (reply.status_code, reply.json()["message"]) == (400, NO_TENSORS)
    for body in ({"shared_memory": "a/b", "size": 9}, {"shared_memory": "..", "size": 9}, {"safetensors": "?"}):
        assert client.post("/update_weights_from_tensor", json=body).status_code == 400
    assert client.get("/get_weight_version").json() == {"weight_version": "v0"}


# ---- questions ----


def test_values_of_a_weight_are_those_of_the_version_that_serves(client: httpx.Client) -> None:
    put(client, P.file())
    asked = {"name": "ghost.first", "truncate_size": 1}
    values = P.tensors["ghost.first"].astype(float).tolist()
    assert client.post("/get_weights_by_name", json=asked).json() == values
    assert client.request("GET", "/get_weights_by_name", json=asked).json() == values
    assert client.get("/get_weights_by_name", params=asked).json() == values
    detail = client.post("/get_weights_by_name", json=asked | {"detail": True}).json()
    assert detail == {"name": "ghost.first", "shape": [1], "dtype": "uint64", "values": values}
    reply = client.post("/get_weights_by_name", json={"name": "nothing"})
    assert (reply.status_code, reply.json()["success"]) == (404, False)
    assert client.post("/get_weights_by_name", json=asked | {"truncate_size": 0}).status_code == 400


def test_a_snapshot_and_digests_tell_whether_an_update_has_changed_anything(client: httpx.Client) -> None:
    def check(action: str) -> httpx.Response:
        return client.post("/weights_checker", json={"action": action})

    assert check("compare").status_code == 400
    assert check("snapshot").json()["success"]
    before = check("checksum").json()["ranks"]
    assert check("checksum").json()["ranks"] == before
    put(client, GhostWeights().file())
    assert (check("compare").status_code, check("checksum").json()["ranks"]) == (200, before)
    put(client, P.file("ghost.second"))
    reply = check("compare")
    assert (reply.status_code, reply.json()["success"]) == (400, False)
    assert "ghost.second max_abs_err=" in reply.json()["message"]
    (rank,) = check("checksum").json()["ranks"]
    assert rank["checksums"]["ghost.first"] == before[0]["checksums"]["ghost.first"]
    assert rank["checksums"]["ghost.second"] != before[0]["checksums"]["ghost.second"]
    assert (rank["parallelism_info"]["tp_size"], len(rank["checksums"]["ghost.first"])) == (1, 16)
    for action in ("reset_tensors", "nonsense"):
        assert (check(action).status_code, "Unsupported" in check(action).json()["message"]) == (400, True)
