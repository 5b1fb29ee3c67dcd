"""Vectors over a real socket, from a ghost: what both routes answer, and what they refuse."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from pawl.build.ghost import load_ghost
from pawl.config import build_config
from pawl.gpu.ghost.embedding import VECTOR_SIZE
from tests.pawl.ghost_server import ghost_server


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    config = build_config({"model": "ghost", "trace_dir": str(tmp_path_factory.mktemp("vectors")), "kv_tokens": 4096})
    with (
        ghost_server(load_ghost(config)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        yield client


def embedded(client: httpx.Client, text: Any, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json={"input": text, "model": "ghost", **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def vectors(client: httpx.Client, text: Any, **fields: Any) -> list[list[float]]:
    return [each["embedding"] for each in embedded(client, text, **fields)["data"]]


def test_a_text_and_its_token_ids_have_the_same_vector_of_length_1(client: httpx.Client) -> None:
    body = embedded(client, "hello")
    (vector,) = vectors(client, "hello")
    assert body["object"] == "list"
    assert body["model"] == "ghost"
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": vector}]
    assert len(vector) == VECTOR_SIZE
    assert np.linalg.norm(vector) == pytest.approx(1.0)
    assert vectors(client, list(b"hello")) == [vector]
    assert vectors(client, "hallo") != [vector]


def test_each_of_a_list_has_the_vector_it_has_alone_in_its_place(client: httpx.Client) -> None:
    texts = [f"text {number}" * (1 + number % 3) for number in range(40)]
    assert vectors(client, texts) == [vectors(client, text)[0] for text in texts]
    assert [each["index"] for each in embedded(client, texts)["data"]] == list(range(40))
    assert vectors(client, [list(text.encode()) for text in texts]) == vectors(client, texts)


def test_base64_holds_the_same_floats(client: httpx.Client) -> None:
    (vector,) = vectors(client, "hello")
    (text,) = vectors(client, "hello", encoding_format="base64")
    assert np.frombuffer(base64.b64decode(str(text)), "<f4").tolist() == vector


def test_fewer_dimensions_are_the_first_of_length_1_again(client: httpx.Client) -> None:
    (vector,), (short,) = vectors(client, "hello"), vectors(client, "hello", dimensions=3)
    assert len(short) == 3
    assert short == pytest.approx(np.array(vector[:3]) / np.linalg.norm(vector[:3]), abs=1e-6)
    assert vectors(client, "hello", dimensions=VECTOR_SIZE) == [vector]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": "a", "dimensions": VECTOR_SIZE + 1}, "dimensions", "at most 8"),
        ({"input": "a", "dimensions": 0}, "dimensions", "from 1 to"),
        ({"input": []}, "input", "must not be an empty list"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"input": ["a", 1]}, "input", "must not mix"),
        ({"input": [99_999]}, "input", "not in the model's vocabulary"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", ""),
        ({"input": "a", "lora_path": "x"}, "lora_path", "not enabled"),
        ({"input": "a", "stream": True}, "stream", "stream"),
        ({}, "input", ""),
    ],
)
def test_what_cannot_be_is_refused_by_name_in_openais_shape(
    client: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = client.post("/v1/embeddings", json=fields)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


def test_another_model_is_not_found_and_a_text_too_long_says_so(client: httpx.Client) -> None:
    assert client.post("/v1/embeddings", json={"input": "a", "model": "other"}).status_code == 404
    answer = client.post("/v1/embeddings", json={"input": "x" * 5000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_encode_answers_as_sglang_does(client: httpx.Client) -> None:
    (vector,) = vectors(client, "hello")
    one = client.post("/encode", json={"text": "hello", "rid": "mine"}).json()
    assert one["embedding"] == vector
    assert one["meta_info"]["id"] == "mine"
    assert one["meta_info"]["prompt_tokens"] == 5
    many = client.post("/encode", json={"text": ["hello"]}).json()
    assert [each["embedding"] for each in many] == [vector]
    ids = client.post("/encode", json={"input_ids": [list(b"hello"), list(b"hallo")]}).json()
    assert [each["embedding"] for each in ids] == vectors(client, ["hello", "hallo"])
    refused = client.post("/encode", json={"text": "a", "input_ids": [1]})
    assert refused.status_code == 400
    assert "exactly one" in refused.json()["error"]["message"]


def test_vectors_are_made_beside_tokens_and_counted_by_their_end(client: httpx.Client) -> None:
    said = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 3, "temperature": 0}).json()
    assert said["choices"][0]["text"]
    before = ended(client)
    vectors(client, ["a", "b"])
    assert ended(client) == before + 2


def ended(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return sum(int(line.split()[-1]) for line in lines if 'cause="embedded"' in line and "requests" in line)


def test_pooling_answers_as_vllm_does(client: httpx.Client) -> None:
    texts = ["hello", "hallo"]
    fields = {"model": "ghost", "rid": "mine", "task": "embed"}
    body = client.post("/pooling", json={"input": texts, **fields}).json()
    assert body.pop("created") > 0
    assert body == {
        "id": "pool-mine",
        "object": "list",
        "model": "ghost",
        "data": [
            {"object": "pooling", "index": index, "data": vector} for index, vector in enumerate(vectors(client, texts))
        ],
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
    }
    (short,) = client.post("/pooling", json={"input": "hello", "dimensions": 3, **fields}).json()["data"]
    assert [short["data"]] == vectors(client, "hello", dimensions=3)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": "a"}, "task", "missing"),
        ({"input": "a", "task": "token_embed"}, "task", "embed"),
        ({"input": "", "task": "embed"}, "input", "empty"),
        ({"input": "a", "task": "embed", "softmax": True}, "softmax", "not supported"),
    ],
)
def test_pooling_refuses_by_name_what_is_not_there(
    client: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = client.post("/pooling", json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert words in error["message"]
