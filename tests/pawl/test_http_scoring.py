"""`/v1/score` says how likely tokens are to follow, as SGLang does; what needs another kind of model is refused."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from pawl.actors.messages.generate import Submit
from tests.pawl.fake_engine import logprob


def score(client: httpx.Client, **fields: Any) -> Any:
    response = client.post("/v1/score", json={"query": "a ", "items": ["b", "c"], "label_token_ids": [7, 9], **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_each_item_gets_the_probabilities_of_the_labels_in_their_order(client: httpx.Client) -> None:
    reply = score(client, model="echo")
    likely = [math.exp(logprob(token)) for token in (7, 9)]
    assert reply["scores"] == [pytest.approx(likely)] * 2
    assert (reply["object"], reply["model"], reply["usage"]["prompt_tokens"]) == ("scoring", "echo", 6)
    assert score(client, label_token_ids=[9, 7])["scores"][0] == pytest.approx(likely[::-1])


def test_softmax_is_over_the_labels_alone(client: httpx.Client) -> None:
    likely = [math.exp(logprob(token)) for token in (7, 9)]
    assert score(client, apply_softmax=True)["scores"][1] == pytest.approx([one / sum(likely) for one in likely])


@pytest.mark.parametrize(
    ("fields", "prompts"),
    [
        ({"query": "a ", "items": ["b", "c"]}, ["a b", "a c"]),
        ({"query": "a ", "items": "b", "item_first": True}, ["ba "]),
        ({"query": [1, 2], "items": [[3], [4, 5]]}, [(1, 2, 3), (1, 2, 4, 5)]),
        ({"query": [1, 2], "items": [[3]], "item_first": True}, [(3, 1, 2)]),
    ],
)
def test_items_come_after_the_query_or_before(
    client: httpx.Client, engine: Any, fields: dict[str, Any], prompts: list[Any]
) -> None:
    before = len(engine.seen)
    score(client, **fields)
    submits = [message for message in engine.seen[before:] if isinstance(message, Submit)]
    assert [submit.token_ids or submit.text for submit in submits] == prompts


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"label_token_ids": None}, 400, "label_token_ids"),
        ({"label_token_ids": []}, 400, "label_token_ids must not be an empty list"),
        ({"label_token_ids": [1 << 20]}, 400, "label_token_ids"),
        ({"query": None}, 400, "query"),
        ({"items": []}, 400, "items must not be an empty list"),
        ({"items": [[1]]}, 400, "items"),
        ({"query": [1]}, 400, "items"),
        ({"query": "x" * 1_000_000, "items": ["y"] * 5}, 413, "allowed"),
        ({"model": "another"}, 404, "another"),
        ({"text_1": "a", "text_2": "b"}, 400, "cross-encoder"),
    ],
)
def test_what_cannot_be_scored_is_refused(client: httpx.Client, fields: dict[str, Any], status: int, said: str) -> None:
    body = {"query": "a", "items": ["b"], "label_token_ids": [1], **fields}
    response = client.post("/v1/score", json=body)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_a_model_that_generates_text_does_not_rerank(client: httpx.Client, path: str) -> None:
    response = client.post(path, json={"query": "a", "documents": ["b"]})
    assert response.status_code == 400
    assert "cross-encoder" in response.json()["error"]["message"]
