"""Bad input is refused with a status and a message that says what to change, and touches no other request."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from pawl.actors.messages.control import Reply
from pawl.http.completions import CompletionRenderer
from pawl.http.errors import MESSAGE_OF_CAUSE, STATUS_OF_CAUSE, Problem, status_of
from pawl.http.generation import NAMES
from pawl.lifecycle.states import ABORT_CAUSES, Cause
from pawl.loops.orders.requests import Abort
from pawl.loops.recovery import FAILED_ORDER
from tests.pawl.fake_engine import Served

JSON = {"content-type": "application/json"}

PROMPT = {"prompt": "hello"}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"text": "hello"}

Bad = tuple[dict[str, Any], int, str, str]
"""(body, status, param, part of the message)"""

COMPLETIONS: list[Bad] = [
    ({}, 400, "prompt", "missing"),
    ({"prompt": None}, 400, "prompt", "must be"),
    ({"prompt": 7}, 400, "prompt", "must be"),
    ({"prompt": []}, 400, "prompt", "empty"),
    ({"prompt": ""}, 400, "prompt", "empty"),
    ({"prompt": [[]]}, 400, "prompt", "empty"),
    ({"prompt": ["a", 1]}, 400, "prompt", "mix"),
    ({"prompt": [1, "a"]}, 400, "prompt", "mix"),
    ({"prompt": ["a", [1]]}, 400, "prompt", "mix"),
    ({"prompt": [1.5]}, 400, "prompt[0]", "must be"),
    ({"prompt": [True]}, 400, "prompt[0]", "must be"),
    ({"prompt": [1, 256]}, 400, "prompt", "vocabulary"),
    ({"prompt": [-1]}, 400, "prompt[0]", "from 0"),
    ({"prompt": [1, 1 << 40]}, 400, "prompt[1]", "to 2147483647"),
    ({"prompt": "x" * 600}, 400, "max_tokens", "512"),
    ({**PROMPT, "max_tokens": 508}, 400, "max_tokens", "at most 507"),
    ({**PROMPT, "max_tokens": -1}, 400, "max_tokens", "max_tokens must be an integer from 0"),
    ({**PROMPT, "max_tokens": "5"}, 400, "max_tokens", "must be"),
    ({**PROMPT, "max_tokens": 1 << 70}, 400, "max_tokens", "max_tokens"),
    ({**PROMPT, "model": "gpt-17"}, 404, "model", "does not exist"),
    ({**PROMPT, "model": 3}, 400, "model", "must be"),
    ({**PROMPT, "temprature": 1}, 400, "temprature", "did you mean 'temperature'"),
    ({**PROMPT, "nonsense": 1}, 400, "nonsense", "unknown field"),
    ({**PROMPT, "temperature": -0.1}, 400, "temperature", "from 0"),
    ({**PROMPT, "temperature": "hot"}, 400, "temperature", "must be"),
    ({**PROMPT, "temperature": True}, 400, "temperature", "must be"),
    ({**PROMPT, "top_p": -0.1}, 400, "top_p", "from 0 to 1"),
    ({**PROMPT, "top_p": 1.1}, 400, "top_p", "from 0 to 1"),
    ({**PROMPT, "top_k": -2}, 400, "top_k", "-1"),
    ({**PROMPT, "min_p": 2}, 400, "min_p", "from 0 to 1"),
    ({**PROMPT, "presence_penalty": 3}, 400, "presence_penalty", "from -2 to 2"),
    ({**PROMPT, "frequency_penalty": -3}, 400, "frequency_penalty", "from -2 to 2"),
    ({**PROMPT, "repetition_penalty": 0}, 400, "repetition_penalty", "from 0.001"),
    ({**PROMPT, "min_tokens": 9, "max_tokens": 3}, 400, "min_tokens", "min_tokens (9)"),
    ({**PROMPT, "logit_bias": {"x": 1}}, 400, "logit_bias", "each key of logit_bias must be an integer"),
    ({**PROMPT, "logit_bias": {"1": 200}}, 400, "logit_bias[...]", "from -100 to 100"),
    ({**PROMPT, "logit_bias": {"256": 1}}, 400, "logit_bias", "vocabulary"),
    ({**PROMPT, "stop_token_ids": [256]}, 400, "stop_token_ids", "vocabulary"),
    ({**PROMPT, "stop_token_ids": list(range(9))}, 400, "stop_token_ids", "at most 8"),
    ({**PROMPT, "stop": 3}, 400, "stop", "must be"),
    ({**PROMPT, "stop": [""]}, 400, "stop[0]", "1 to 1024 characters"),
    ({**PROMPT, "seed": 1.5}, 400, "seed", "must be"),
    ({**PROMPT, "n": 0}, 400, "n", "from 1 to 128"),
    ({**PROMPT, "n": 1000}, 400, "n", "from 1 to 128"),
    ({**PROMPT, "best_of": 3, "n": 4}, 400, "best_of", "at least n"),
    ({**PROMPT, "suffix": "end"}, 400, "suffix", "not supported"),
    ({**PROMPT, "logprobs": 21}, 400, "logprobs", "logprobs must be an integer from 0 to 20"),
    ({**PROMPT, "logprobs": True}, 400, "logprobs", "must be"),
    ({**PROMPT, "timeout_s": 0}, 400, "timeout_s", "above 0"),
    ({**PROMPT, "stream_options": {"a": 1}}, 400, "stream_options.a", "unknown field"),
    ({**PROMPT, "regex": "[0-9]+", "ebnf": "root ::="}, 400, "ebnf", "contradict"),
    ({**PROMPT, "regex": ""}, 400, "regex", "regex must be a string of 1 to"),
    ({**PROMPT, "lora_path": "x"}, 400, "lora_path", "adapter"),
]

CHAT: list[Bad] = [
    ({}, 400, "messages", "missing"),
    ({"messages": []}, 400, "messages", "empty"),
    ({"messages": "hi"}, 400, "messages", "must be"),
    ({"messages": ["hi"]}, 400, "messages[0]", "must be"),
    ({**MESSAGES, "model": "gpt-17"}, 404, "model", "does not exist"),
    ({**MESSAGES, "max_tokens": 3, "max_completion_tokens": 4}, 400, "max_completion_tokens", "contradict"),
    ({**MESSAGES, "top_logprobs": 3}, 400, "top_logprobs", "logprobs"),
    ({**MESSAGES, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "from 0 to 20"),
    ({**MESSAGES, "logprobs": 2}, 400, "logprobs", "must be"),
    ({**MESSAGES, "tools": [{"type": "function"}]}, 400, "tools[0].function", "missing"),
    ({**MESSAGES, "tool_choice": "required"}, 400, "tool_choice", "there are no tools"),
    ({**MESSAGES, "functions": [{}]}, 400, "functions[0].name", "missing"),
    ({**MESSAGES, "response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "missing"),
    ({**MESSAGES, "response_format": {"type": "yaml"}}, 400, "response_format.type", "response_format.type"),
    ({**MESSAGES, "modalities": ["audio"]}, 400, "modalities", "not supported"),
    ({**MESSAGES, "audio": {}}, 400, "audio", "not supported"),
    ({**MESSAGES, "suffix": "x"}, 400, "suffix", "unknown field"),
    ({**MESSAGES, "chat_template": "{{ 1 }}"}, 400, "chat_template", "not supported"),
]

NATIVE: list[Bad] = [
    ({}, 400, "", "exactly one"),
    ({"text": "a", "input_ids": [1]}, 400, "", "exactly one"),
    ({"text": ""}, 400, "", "empty"),
    ({"text": []}, 400, "", "empty"),
    ({"text": [1]}, 400, "", "text[0]"),
    ({"input_ids": []}, 400, "", "empty"),
    ({"input_ids": [1, [2]]}, 400, "", "mix"),
    ({"input_ids": [999]}, 400, "", "vocabulary"),
    ({"input_ids": "abc"}, 400, "", "must be"),
    ({**TEXT, "sampling_params": {"nonsense": 1}}, 400, "", "sampling_params.nonsense"),
    ({**TEXT, "sampling_params": {"max_tokens": 1}}, 400, "", "sampling_params.max_tokens"),
    ({**TEXT, "sampling_params": 5}, 400, "", "sampling_params"),
    ({**TEXT, "sampling_params": [{}, {}]}, 400, "", "2 entries for 1 prompts"),
    ({"text": ["a", "b"], "sampling_params": []}, 400, "sampling_params", "0 entries for 2 prompts"),
    ({"text": ["a", "b"], "rid": []}, 400, "rid", "0 entries"),
    ({"text": ["a", "b"], "return_logprob": []}, 400, "return_logprob", "0 entries"),
    ({"text": ["a", "b"], "top_logprobs_num": []}, 400, "top_logprobs_num", "0 entries"),
    ({"text": ["a", "b"], "logprob_start_len": []}, 400, "logprob_start_len", "0 entries"),
    ({**TEXT, "sampling_params": {"temperature": "hot"}}, 400, "", "sampling_params.temperature"),
    ({**TEXT, "sampling_params": {"max_new_tokens": -1}}, 400, "", "max_new_tokens"),
    ({**TEXT, "sampling_params": {"max_new_tokens": 600}}, 400, "", "512"),
    ({**TEXT, "sampling_params": {"n": 0}}, 400, "", "n must be"),
    ({**TEXT, "sampling_params": {"seed": 1, "sampling_seed": 2}}, 400, "", "contradict"),
    ({**TEXT, "sampling_params": {"json_schema": "{"}}, 400, "", "json_schema is not valid JSON"),
    ({**TEXT, "sampling_params": {"regex": "a", "choice": ["b"]}}, 400, "", "contradict"),
    ({**TEXT, "return_logprob": True, "top_logprobs_num": 99}, 400, "", "top_logprobs_num must be"),
    ({"text": ["a", "b"], "rid": ["x"]}, 400, "", "rid has 1 entries"),
    ({"text": ["a", "b"], "rid": ["x", "x"]}, 400, "", "rid must name"),
    ({**TEXT, "image_data": "x.png"}, 400, "", "image_data is not supported"),
    ({**TEXT, "lora_path": "x"}, 400, "lora_path", "not enabled"),
    ({**TEXT, "return_hidden_states": True}, 400, "", "return_hidden_states is not supported"),
    ({**TEXT, "nonsense": 1}, 400, "", "unknown field 'nonsense'"),
    ({**TEXT, "cache_salt": "a", "extra_key": "b"}, 400, "", "contradict"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "bad"),
    [
        *(("/v1/completions", bad) for bad in COMPLETIONS),
        *(("/v1/chat/completions", bad) for bad in CHAT),
        *(("/generate", bad) for bad in NATIVE),
    ],
)
def test_bad_input_is_refused_by_name(client: httpx.Client, path: str, bad: Bad, stream: bool) -> None:
    body, status, param, words = bad
    response = client.post(path, json={**body, "stream": True} if stream else body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words in error["message"]
    if path.startswith("/v1/"):
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert set(error) == {"message", "type", "param", "code"}
    else:
        assert set(error) == {"message"}


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/generate", "/abort_request", "/tokenize"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not json",
        b'{"prompt": NaN}',
        b'{"prompt": "\xff"}',
        b"[]",
        b"7",
        b'"x"',
        b"null",
        b"{'a': 1}",
        b'{"prompt": "\\ud800"}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(client: httpx.Client, path: str, content: bytes) -> None:
    response = client.post(path, content=content, headers=JSON)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_nesting_without_end_is_refused(client: httpx.Client) -> None:
    deep = b'{"prompt": "x", "session_params": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    response = client.post("/v1/completions", content=deep, headers=JSON)
    assert response.status_code == 400
    assert "deep" in response.json()["error"]["message"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit_is_refused_before_it_is_decoded(declared: bool) -> None:
    with Served(max_body_bytes=1000) as served, httpx.Client(base_url=served.url) as client:
        content = b"x" * 1001
        response = client.post(
            "/v1/completions", content=content if declared else iter([content[:600], content[600:]]), headers=JSON
        )
        assert response.status_code == 413
        assert "1000" in response.json()["error"]["message"]
        fits = client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 1})
        assert fits.status_code == 200


def test_an_unknown_path_is_404_in_the_shape_of_its_api(client: httpx.Client) -> None:
    native, openai = client.post("/nothing"), client.post("/v1/nothing")
    assert (native.status_code, openai.status_code) == (404, 404)
    assert set(native.json()["error"]) == {"message"}
    assert openai.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/completions", "POST"), ("POST", "/v1/models", "GET"), ("DELETE", "/generate", "POST")],
)
def test_a_wrong_method_is_405_and_says_which_is_right(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert allowed in response.headers["allow"]
    assert allowed in response.json()["error"]["message"]


def test_a_duplicate_live_rid_is_refused_and_the_first_goes_on(client: httpx.Client, served: Served) -> None:
    served.on_loop(served.engine.hold)
    body = {"text": "hello", "rid": "twin", "sampling_params": {"max_new_tokens": 2}}
    with client.stream("POST", "/generate", json={**body, "stream": True}) as first:
        served.engine.until(lambda: len(served.engine.live) == 1)
        second = httpx.post(f"{served.url}/generate", json=body)
        served.on_loop(served.engine.release)
        first.read()
    assert second.status_code == 400
    assert "twin" in second.json()["error"]["message"]
    assert first.status_code == 200
    assert '"text":"he"' in first.text


def test_more_than_the_limit_is_503_with_retry_after_and_harms_nobody() -> None:
    with Served(limit=2) as served, httpx.Client(base_url=served.url) as client:
        served.on_loop(served.engine.hold)
        with client.stream("POST", "/generate", json={"text": "hello", "stream": True}) as running:
            served.engine.until(lambda: len(served.engine.live) == 1)
            for path, body in (("/v1/completions", {**PROMPT, "n": 2}), ("/generate", {"text": ["a", "b"]})):
                response = client.post(path, json=body)
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
            served.on_loop(served.engine.release)
            running.read()
        assert running.status_code == 200
        assert client.post("/v1/completions", json={**PROMPT, "n": 2}).status_code == 200


def test_one_bad_prompt_of_a_completion_call_ends_its_siblings(client: httpx.Client, served: Served) -> None:
    served.on_loop(served.engine.hold)
    del served.engine.seen[:]
    response = client.post("/v1/completions", json={"prompt": ["hello", ""], "max_tokens": 400})
    assert response.status_code == 400
    served.engine.until(lambda: served.engine.gateway.num_live == 0)
    aborts = [message for message in served.engine.seen if isinstance(message, Abort)]
    assert [(len(abort.requests), abort.cause) for abort in aborts] == [(1, Cause.CLIENT)]


def test_every_abort_cause_has_a_status_and_words() -> None:
    assert set(STATUS_OF_CAUSE) == set(MESSAGE_OF_CAUSE) == set(ABORT_CAUSES)
    assert all(status >= 400 for status in STATUS_OF_CAUSE.values())


def test_a_stream_that_cannot_be_written_to_its_end_says_so(
    client: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bytes:
        raise RuntimeError

    monkeypatch.setattr(CompletionRenderer, "scores", broken)
    response = client.post("/v1/completions", json={"prompt": "hello", "stream": True})
    assert response.status_code == 200
    *_, failure, last = response.text.strip().split("\n\n")
    assert '"code":"internal"' in failure
    assert last == "data: [DONE]"
    monkeypatch.undo()
    assert client.post("/v1/completions", json={"prompt": "hello"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/completions", "prompt"),
        ("/v1/chat/completions", "messages"),
        ("/v1/responses", "input"),
        ("/v1/responses/input_tokens", "input"),
        ("/v1/embeddings", "input"),
        ("/encode", "text"),
    ],
)
def test_a_prompt_that_is_too_long_is_named_as_the_route_has_it(path: str, param: str) -> None:
    assert Problem(400, "too long", "prompt").renamed(NAMES[path]).param == param


def test_names_are_replaced_by_their_longest_known_beginning() -> None:
    names = {"response_format": "text.format", "response_format.json_schema": "text.format", "n_max": "most"}
    problem = Problem(400, "response_format.json_schema.schema or response_format.type, not n_max.", "n_max[1].x")
    renamed = problem.renamed(names)
    assert renamed.message == "text.format.schema or text.format.type, not most."
    assert renamed.param == "n_max[1].x"
    assert problem.renamed({}).message == problem.message


@pytest.mark.parametrize(
    ("message", "unserved", "status"),
    [
        ("not flushed: requests are live", False, 409),
        ("the scheduler did not answer within 5 s", True, 503),
        ("the engine stopped: stopped", True, 503),
        (FAILED_ORDER, False, 500),
        (f"replica 2: {FAILED_ORDER}", False, 500),
        ("the server failed to read the weights: KeyError", False, 500),
        ("the server failed to read the adapter: KeyError", False, 500),
        ("the worker failed to exchange the weights: ranks were lost", False, 500),
    ],
)
def test_an_order_that_was_not_done_is_the_clients_fault_only_where_it_was_refused(
    message: str, unserved: bool, status: int
) -> None:
    assert status_of(Reply(1, False, message, unserved=unserved), 409) == status


def test_an_order_at_which_the_server_fails_is_a_500(client: httpx.Client, served: Served) -> None:
    served.engine.fails_orders = True
    try:
        for path in ("/flush_cache", "/load_lora_adapter", "/v1/unload_lora_adapter"):
            fields = {"lora_name": "x"} if "unload" in path else {"lora_name": "x", "lora_path": "y"}
            answer = client.post(path, json=fields if "lora" in path else {})
            assert (answer.status_code, answer.json()["error"]["message"]) == (500, FAILED_ORDER)
    finally:
        served.engine.fails_orders = False
