"""`/v1/completions`, `/v1/chat/completions` and `/v1/models` answer as OpenAI's API does."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from pawl.actors.messages.generate import Submit
from pawl.lifecycle.request import SamplingParameters
from tests.pawl.fake_engine import END_OF_TEXT, Served, logprob
from tests.pawl.reading import events, streamed_text

MESSAGES = [{"role": "user", "content": "hi"}]


def complete(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/v1/completions", json={"model": "echo", "prompt": "hello", "max_tokens": 5, **body})
    assert response.status_code == 200, response.text
    return response.json()


def chat(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 6, **body})
    assert response.status_code == 200, response.text
    return response.json()


def last_submit(served: Served) -> Submit:
    return next(message for message in reversed(served.engine.seen) if isinstance(message, Submit))


# ---- completions ----


def test_a_completion_has_openais_shape(client: httpx.Client) -> None:
    reply = complete(client)
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["model"] == "echo"
    assert reply["system_fingerprint"] == "pawl-0.0-default"
    (choice,) = reply["choices"]
    assert choice == {
        "index": 0,
        "text": "hello",
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "matched_stop": None,
        "prompt_logprobs": None,
    }
    assert reply["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["aba"]),
        (["ab", "xyz"], ["aba", "xyz"]),
        ([97, 98], ["aba"]),
        ([[97, 98], [120]], ["aba", "xxx"]),
    ],
)
def test_every_form_of_prompt_is_understood(client: httpx.Client, prompt: Any, texts: list[str]) -> None:
    reply = complete(client, prompt=prompt, max_tokens=3)
    assert [choice["text"] for choice in reply["choices"]] == texts
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(texts)))


def test_max_tokens_defaults_to_sixteen(client: httpx.Client) -> None:
    assert complete(client, max_tokens=None)["usage"]["completion_tokens"] == 16


def test_n_choices_count_their_prompt_once_and_get_seeds_of_their_own(client: httpx.Client, served: Served) -> None:
    del served.engine.seen[:]
    reply = complete(client, prompt=["hello", "ab"], n=3, seed=5)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    assert reply["usage"]["prompt_tokens"] == 7
    assert reply["usage"]["completion_tokens"] == 30
    submits = [message for message in served.engine.seen if isinstance(message, Submit)]
    assert [submit.sampling.seed for submit in submits] == [5, 6, 7, 5, 6, 7]


@pytest.mark.parametrize(
    ("body", "text", "reason", "matched"),
    [
        ({"stop": "o"}, "hell", "stop", "o"),
        ({"stop": ["zz", "l"]}, "he", "stop", "l"),
        ({"stop_token_ids": [108]}, "he", "stop", 108),
        ({"prompt": "ab\0", "max_tokens": 9}, "ab", "stop", None),
        ({"prompt": "ab\0", "max_tokens": 4, "ignore_eos": True}, "ab\0a", "length", None),
        ({"max_tokens": 0}, "", "length", None),
    ],
)
def test_the_finish_reason_tells_what_stopped_it(
    client: httpx.Client, body: dict[str, Any], text: str, reason: str, matched: Any
) -> None:
    (choice,) = complete(client, **body)["choices"]
    assert choice["text"] == text
    assert (choice["finish_reason"], choice["stop_reason"]) == (reason, matched)
    # SGLang's name says the model's own end, too.
    assert choice["matched_stop"] == (END_OF_TEXT if text == "ab" else matched)


def test_seeds_of_choices_count_round_at_the_end_of_their_range(client: httpx.Client, served: Served) -> None:
    del served.engine.seen[:]
    complete(client, n=2, seed=(1 << 63) - 1)
    submits = [message for message in served.engine.seen if isinstance(message, Submit)]
    assert [submit.sampling.seed for submit in submits] == [(1 << 63) - 1, 0]


def test_log_probabilities_name_the_token_and_its_rivals(client: httpx.Client) -> None:
    (choice,) = complete(client, prompt="ab", max_tokens=2, logprobs=3)["choices"]
    scores = choice["logprobs"]
    assert scores["tokens"] == ["a", "b"]
    assert scores["token_logprobs"] == [logprob(97), logprob(98)]
    assert scores["text_offset"] == [0, 1]
    assert [set(top) for top in scores["top_logprobs"]] == [{"bytes:\\xff", "a", "\x01"}, {"bytes:\\xff", "b", "\x01"}]


@pytest.mark.parametrize("prompt", ["hello", [104, 101, 108, 108, 111]])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_evaluation_harness_can_score_a_prompt(client: httpx.Client, prompt: Any, max_tokens: int) -> None:
    (choice,) = complete(client, prompt=prompt, max_tokens=max_tokens, logprobs=1, echo=True, temperature=0)["choices"]
    assert choice["text"] == "hello" + "h" * max_tokens
    scores = choice["logprobs"]
    num_tokens = 5 + max_tokens
    assert [len(scores[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [num_tokens] * 4
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    assert scores["token_logprobs"][1:5] == [logprob(ord(letter)) for letter in "ello"]
    # A token is greedy when no rival beats it; the harness takes the largest of the map.
    assert max(scores["top_logprobs"][1].values()) == -0.25
    assert scores["text_offset"] == list(range(num_tokens))


def test_offsets_are_places_in_the_text_whatever_tokens_it_was_cut_into(client: httpx.Client) -> None:
    """A character of several tokens begins where its first one does; a token that is not shown takes no room."""
    body = {"max_tokens": 0, "echo": True, "logprobs": 2}
    (choice,) = complete(client, prompt="a \U0001f60a\u6f22 b", **body)["choices"]
    scores = choice["logprobs"]
    assert choice["text"] == "a \U0001f60a\u6f22 b"
    assert scores["text_offset"] == [0, 1, 2, 2, 2, 2, 3, 3, 3, 4, 5]
    assert scores["tokens"][2] == "bytes:\\xf0"
    for token, own, top in zip(
        scores["tokens"][1:], scores["token_logprobs"][1:], scores["top_logprobs"][1:], strict=True
    ):
        assert top[token] == own
    (choice,) = complete(client, prompt=[97, 0, 98], **body)["choices"]
    assert choice["text"] == "a\0b", "this vocabulary shows its end token"


def test_echo_without_scores_repeats_the_prompt(client: httpx.Client) -> None:
    (choice,) = complete(client, prompt=[97, 98], max_tokens=1, echo=True)["choices"]
    assert choice["text"] == "aba"
    assert choice["logprobs"] is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": 2},
        {"prompt": ["hello", "ab"]},
        {"echo": True},
        {"logprobs": 2},
        {"echo": True, "max_tokens": 0, "logprobs": 1},
    ],
)
def test_deltas_add_up_to_the_whole(client: httpx.Client, body: dict[str, Any]) -> None:
    whole = complete(client, **body)
    response = client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 5, "stream": True, **body})
    chunks = events(response)
    for choice in whole["choices"]:
        index = choice["index"]
        assert streamed_text(chunks, index) == choice["text"]
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [choice["finish_reason"]]
        if choice["logprobs"]:
            for key, values in choice["logprobs"].items():
                assert [value for one in mine for value in one["logprobs"][key]] == values
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_last_in_a_stream_that_asks_for_it(client: httpx.Client) -> None:
    body = {"prompt": "hello", "max_tokens": 5, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post("/v1/completions", json=body))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (5, 10)


def test_usage_so_far_comes_with_every_chunk_that_asks_for_it(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "hello", "max_tokens": 3, "stream": True, "stream_options": options}
    *chunks, last = events(client.post("/v1/completions", json=body))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {5}
    assert last["usage"]["completion_tokens"] == 3


def test_usage_so_far_needs_usage_to_be_asked_for(client: httpx.Client) -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    body = {"prompt": "hello", "max_tokens": 3, "stream": True, "stream_options": options}
    assert all("usage" not in chunk for chunk in events(client.post("/v1/completions", json=body)))


def test_every_field_reaches_the_engine_under_its_own_name(client: httpx.Client, served: Served) -> None:
    complete(
        client,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        logit_bias={"97": -5},
        min_tokens=2,
        stop_token_ids=[1],
        ignore_eos=True,
        seed=-1,
        stop=["Q"],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        priority=3,
        cache_salt="tenant",
        timeout_s=9.5,
        user="someone",
        best_of=1,
    )
    submit = last_submit(served)
    assert submit.sampling == SamplingParameters(
        temperature=0.5,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        logit_bias={97: -5.0},
        min_new_tokens=2,
        max_new_tokens=5,
        stop_token_ids=(1,),
        seed=(1 << 63) - 1,
    )
    options = submit.text_options
    assert (options.stop, options.include_stop, options.skip_special_tokens) == (("Q",), True, False)
    assert (submit.priority, submit.cache_salt, submit.timeout_s) == (3, "tenant", 9.5)


# ---- chat ----


def test_a_chat_reply_has_openais_shape(client: httpx.Client) -> None:
    reply = chat(client)
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    (choice,) = reply["choices"]
    message = {"role": "assistant", "content": "user: ", "refusal": None, "reasoning_content": None}
    assert choice["message"] == message
    assert choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 6


def test_a_chat_without_a_limit_may_use_the_rest_of_the_context(client: httpx.Client, served: Served) -> None:
    chat(client, max_tokens=None, stop="us")
    assert last_submit(served).fill_context


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_count(client: httpx.Client, name: str) -> None:
    assert chat(client, **{"max_tokens": None, name: 2})["usage"]["completion_tokens"] == 2


def test_a_chat_stream_begins_with_the_role_and_has_no_empty_text_after_it(client: httpx.Client) -> None:
    chunks = events(client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 3, "stream": True}))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert [delta.pop("reasoning_content") for delta in deltas] == [None] * 4
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "u"}, {"content": "s"}, {"content": "e"}]
    body = {"messages": MESSAGES, "stop": "se", "stream": True}
    deltas = [c["delta"] for chunk in events(client.post("/v1/chat/completions", json=body)) for c in chunk["choices"]]
    assert deltas[-1] == {"reasoning_content": None}
    assert all(delta.get("content") for delta in deltas[1:-1])


def test_chat_deltas_add_up_and_the_role_comes_once(client: httpx.Client) -> None:
    body = {"messages": MESSAGES, "max_tokens": 6, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post("/v1/chat/completions", json=body))
    for index in (0, 1):
        assert streamed_text(chunks, index) == "user: "
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert [delta.get("role") for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert last["usage"]["completion_tokens"] == 12


def test_chat_scores_have_bytes_for_parts_of_characters_too(client: httpx.Client) -> None:
    (choice,) = chat(client, max_tokens=1, logprobs=True, top_logprobs=2)["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("u", logprob(117), [117])
    assert [(rival["token"], rival["bytes"]) for rival in entry["top_logprobs"]] == [("\ufffd", [255]), ("u", [117])]


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "text"}},
        {"tool_choice": "none"},
        {"tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tools": []},
        {"modalities": ["text"]},
        {"service_tier": "auto"},
        {"store": False},
        {"parallel_tool_calls": True, "user": "u", "metadata": {"a": "b"}},
    ],
)
def test_options_that_ask_for_what_happens_anyway_are_taken(client: httpx.Client, extra: dict[str, Any]) -> None:
    chat(client, **extra)


def test_template_options_reach_the_template(client: httpx.Client, served: Served) -> None:
    chat(client, chat_template_kwargs={"enable_thinking": False})
    assert last_submit(served).template_options == {"enable_thinking": False}


# ---- models ----


@pytest.mark.parametrize("name", ["echo", "/models/echo", "parrot", None])
def test_all_names_of_the_model_are_accepted(client: httpx.Client, name: str | None) -> None:
    assert complete(client, model=name)["model"] == "echo"


def test_the_model_is_listed_and_found(client: httpx.Client) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("echo", "model", 512)
    assert client.get("/v1/models/echo").json() == card
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/v1/models/echo:adapter").status_code == 404


# ---- OpenAI's own client ----


@pytest.fixture
def own(served: Served, client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_openais_client_completes_and_streams(own: openai.OpenAI) -> None:
    assert [model.id for model in own.models.list()] == ["echo"]
    whole = own.completions.create(model="echo", prompt="hello", max_tokens=5, logprobs=1)
    assert whole.choices[0].text == "hello"
    reply = own.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}], max_tokens=4)
    assert reply.choices[0].message.content == "user"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    text = ""
    with own.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage
    assert text == "user"
    assert usage is not None
    assert usage.completion_tokens == 4


def test_openais_client_raises_its_own_errors(own: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        own.completions.create(model="gpt-17", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        own.completions.create(model="echo", prompt="x", temperature=-3)
    assert bad.value.param == "temperature"
