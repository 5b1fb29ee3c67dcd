"""Fields of OpenAI's routes that are not OpenAI's own: those of vLLM and SGLang, and those that change nothing."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from pawl.actors.messages.generate import TokenLogprob
from pawl.actors.sink import Delta
from pawl.http.completions import CompletionRenderer
from pawl.http.rendering import Frame
from tests.pawl.fake_engine import INFO, Bytes, Served, logprob
from tests.pawl.reading import events, streamed_text
from tests.pawl.test_http_openai import MESSAGES, chat, complete, last_submit


def test_the_best_of_many_are_those_of_the_highest_mean_score(client: httpx.Client, served: Served) -> None:
    reply = complete(client, prompt=["abc", "xyz"], n=2, best_of=4, max_tokens=2, echo=True)
    texts = [choice["text"] for choice in reply["choices"]]
    assert texts == ["abcab", "abcab", "xyzxy", "xyzxy"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in reply["choices"])
    assert reply["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": 6,
        "completion_tokens": 16,
        "total_tokens": 22,
        "prompt_tokens_details": None,
    }


def test_candidates_are_compared_by_their_mean_score() -> None:
    def delta(*scores: float) -> Delta:
        return Delta("", logprobs=tuple(TokenLogprob(1, score, "") for score in scores))

    frame = Frame(INFO, "id", 0, n=2, candidates=3)
    renderer = CompletionRenderer(frame, top_logprobs=None, echoes=(), tokenization=Bytes(), hides_special=True)
    deltas = [delta(-3.0, -0.5), delta(-1.0), delta(-0.5, -0.6), delta(), delta(-9.0), delta(-8.0)]
    assert renderer.chosen(deltas) == [2, 1, 5, 4]


@pytest.mark.parametrize(
    ("names_ids", "own", "rivals"),
    [
        (False, ["a", "bytes:\\xc3", "bytes:\\xc3"], ["bytes:\\xc3", "bytes:\\xe2", "b"]),
        (True, ["token_id:97", "token_id:195", "token_id:195"], ["token_id:195", "token_id:226", "token_id:98"]),
    ],
)
def test_scores_name_parts_of_characters_and_have_no_infinities(
    names_ids: bool, own: list[str], rivals: list[str]
) -> None:
    top = ((0xC3, -math.inf, "\ufffd"), (0xE2, -0.5, "\ufffd"), (98, -1.0, "b"), (98, -2.0, "b"), (99, -3.0, "c"))
    entries = (
        TokenLogprob(97, None, "a"),
        TokenLogprob(0xC3, -math.inf, "\ufffd", top),
        TokenLogprob(0xC3, -20_000.0, "\ufffd", top[:1]),
    )
    frame = Frame(INFO, "id", 0, n=1, candidates=1, names_ids=names_ids)
    renderer = CompletionRenderer(frame, top_logprobs=4, echoes=(), tokenization=Bytes(), hides_special=True)
    scores = renderer.scores(0, Delta("", logprobs=entries))
    assert scores is not None
    assert (scores["tokens"], scores["token_logprobs"]) == (own, [None, -9999.0, -9999.0])
    assert scores["top_logprobs"] == [
        None,
        dict(zip(rivals, [-9999.0, -0.5, -1.0], strict=True)),
        {rivals[0]: -9999.0},
    ]


def test_token_ids_of_prompt_and_output_can_be_had(client: httpx.Client) -> None:
    choice = complete(client, prompt="abc", return_token_ids=True, max_tokens=2)["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([97, 98, 99], [97, 98])
    body = {"prompt": "abc", "return_token_ids": True, "max_tokens": 2, "stream": True}
    streamed = [chunk["choices"][0] for chunk in events(client.post("/v1/completions", json=body))]
    assert streamed[0]["prompt_token_ids"] == [97, 98, 99]
    assert all("prompt_token_ids" not in choice for choice in streamed[1:])
    assert [token for choice in streamed for token in choice["token_ids"]] == [97, 98]
    whole = chat(client, return_token_ids=True, max_tokens=2)
    assert bytes(whole["prompt_token_ids"]) == b"user: hi\n"
    assert whole["choices"][0]["token_ids"] == list(b"us")
    body = {"messages": MESSAGES, "return_token_ids": True, "max_tokens": 2, "stream": True}
    chunks = events(client.post("/v1/chat/completions", json=body))
    assert bytes(chunks[0]["prompt_token_ids"]) == b"user: hi\n"
    assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    assert [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", ())] == list(b"us")
    assert "token_ids" not in complete(client)["choices"][0]


def test_the_chunk_with_the_role_counts_no_token_yet(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True, "stream_options": options}
    usages = [chunk["usage"]["completion_tokens"] for chunk in events(client.post("/v1/chat/completions", json=body))]
    assert usages[0] == 0
    assert usages == sorted(usages)
    assert usages[-1] == 3


def test_tokens_with_scores_can_be_named_by_their_ids(client: httpx.Client) -> None:
    fields = {"return_tokens_as_token_ids": True, "max_tokens": 1}
    scores = complete(client, prompt="a", logprobs=1, **fields)["choices"][0]["logprobs"]
    assert scores["tokens"] == ["token_id:97"]
    assert set(scores["top_logprobs"][0]) == {"token_id:255", "token_id:97"}
    content = chat(client, logprobs=True, top_logprobs=1, **fields)["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "token_id:117"
    assert content[0]["top_logprobs"][0]["token"] == "token_id:255"


def test_scores_of_the_prompt_are_by_token_id_with_rank_and_text(client: httpx.Client) -> None:
    first, second = complete(client, prompt="ab", prompt_logprobs=1, max_tokens=1)["choices"][0]["prompt_logprobs"]
    assert first is None
    # The chosen token is the second likeliest of all, and one was asked for.
    assert second == {
        "98": {"logprob": logprob(98), "rank": 2, "decoded_token": "b"},
        "255": {"logprob": -0.25, "rank": 1, "decoded_token": "\ufffd"},
    }
    # Without being asked for they are null, as vLLM has it.
    assert chat(client)["prompt_logprobs"] is None
    of_chat = chat(client, prompt_logprobs=0, max_tokens=1)["prompt_logprobs"]
    assert [list(entry) for entry in of_chat[1:]] == [[str(token)] for token in b"ser: hi\n"]


def test_names_of_other_engines_mean_the_same(client: httpx.Client, served: Served) -> None:
    complete(client, no_stop_trim=True, extra_key="k", request_id="mine")
    submit = last_submit(served)
    assert (submit.text_options.include_stop, submit.cache_salt, submit.rid) == (True, "k", "mine")
    response = client.post("/v1/completions", json={"prompt": "x", "rid": "a", "request_id": "b"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "request_id"


def test_replies_carry_the_name_of_the_call(client: httpx.Client) -> None:
    for stream in (False, True):
        body = {"prompt": "x", "max_tokens": 1, "stream": stream}
        response = client.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
        assert response.headers["x-request-id"] == "mine"
        assert client.post("/v1/completions", json={**body, "rid": "a\nb\u00e9"}).headers["x-request-id"] == "a?b?"
        assert len(client.post("/v1/completions", json=body).headers["x-request-id"]) == 32


def test_a_reply_can_begin_with_the_message_it_goes_on_with(client: httpx.Client, served: Served) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
    fields = {"messages": messages, "continue_final_message": True, "max_tokens": 2}
    assert chat(client, **fields, echo=True)["choices"][0]["message"]["content"] == "Well, us"
    assert chat(client, **fields)["choices"][0]["message"]["content"] == "us"
    assert last_submit(served).template_options == {"continue_final_message": True}
    streamed = events(client.post("/v1/chat/completions", json={**fields, "echo": True, "stream": True}))
    assert streamed_text(streamed) == "Well, us"
    parts = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "Well, "}]}]
    assert chat(client, **fields | {"messages": parts}, echo=True)["choices"][0]["message"]["content"] == "Well, us"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"best_of": 1, "n": 2}, "best_of"),
        ("/v1/completions", {"best_of": 2, "stream": True}, "best_of"),
        ("/v1/completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("/v1/completions", {"custom_params": {"a": 1}}, "custom_params"),
        ("/v1/chat/completions", {"allowed_token_ids": [1]}, "allowed_token_ids"),
        ("/v1/chat/completions", {"continue_final_message": True}, "continue_final_message"),
        ("/generate", {"sampling_params": {"custom_params": {"a": 1}}}, "custom_params"),
    ],
)
def test_what_would_change_the_answer_and_is_not_there_is_refused_by_name(
    client: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    valid = {"/v1/completions": {"prompt": "x"}, "/v1/chat/completions": {"messages": MESSAGES}}.get(
        path, {"text": "x"}
    )
    response = client.post(path, json={**valid, **fields})
    assert response.status_code == 400
    assert param in response.json()["error"]["message"]


def test_what_cannot_change_the_answer_is_taken(client: httpx.Client) -> None:
    extra = {
        "store": True,
        "service_tier": "flex",
        "prediction": {"type": "content", "content": "hello"},
        "prompt_cache_retention": "24h",
        "use_beam_search": False,
        "stream": True,
        "stream_options": {"include_obfuscation": True},
    }
    assert client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, **extra}).status_code == 200
