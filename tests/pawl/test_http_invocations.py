"""`/invocations` answers what the route answers that a body is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pawl.build.ghost import load_ghost
from pawl.config import build_config
from pawl.http.invocations import ROUTES
from tests.pawl.ghost_server import ghost_server

MESSAGES = [{"role": "user", "content": "hi"}]
GREEDY = {"temperature": 0, "max_tokens": 4}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, **GREEDY},
    "/v1/completions": {"prompt": "hello", **GREEDY},
    "/pooling": {"input": "hello", "task": "embed"},
    "/v1/embeddings": {"input": "hello"},
    "/v1/score": {"query": "a", "items": ["b", "c"], "label_token_ids": [97, 98]},
    "/score": {"text_1": "a", "text_2": "b"},
    "/rerank": {"query": "a", "documents": ["b"]},
}
OWN = {"id", "created", "metadata"}
"""Members that no two calls share."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    config = build_config({"model": "ghost", "trace_dir": str(tmp_path_factory.mktemp("calls")), "kv_tokens": 4096})
    with (
        ghost_server(load_ghost(config)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        yield client


def test_every_route_that_a_body_may_be_for_is_looked_at() -> None:
    assert set(BODIES) == set(ROUTES.values())


@pytest.mark.parametrize("path", BODIES)
def test_a_body_is_answered_as_by_its_own_route(client: httpx.Client, path: str) -> None:
    client.post(path, json=BODIES[path])  # from now on the prompt is cached
    there, here = (client.post(each, json=BODIES[path]) for each in (path, "/invocations"))
    assert here.status_code == there.status_code == (400 if path in ("/score", "/rerank") else 200)
    assert here.json().keys() == there.json().keys()
    assert {k: v for k, v in here.json().items() if k not in OWN} == {
        k: v for k, v in there.json().items() if k not in OWN
    }


def test_a_stream_is_a_stream(client: httpx.Client) -> None:
    body = {**BODIES["/v1/completions"], "stream": True}
    answer = client.post("/invocations", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-2]]
    whole = client.post("/v1/completions", json=BODIES["/v1/completions"]).json()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": MESSAGES, "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "best": 1}, "best"),
        ({"input": "a", "dimensions": 99}, "dimensions"),
        ({"prompt": [999_999]}, "prompt"),
    ],
)
def test_refusals_are_in_the_words_of_the_route(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("content", [b"{}", b'{"model": "ghost"}', b"[]", b"7", b"{", b""])
def test_what_is_for_no_route_is_refused(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/invocations", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"].startswith("the body ")


def test_a_body_that_is_too_large_is_413(client: httpx.Client) -> None:
    assert client.post("/invocations", json={"prompt": [[]] * 30_000}).status_code == 413
