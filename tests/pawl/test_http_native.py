"""`POST /generate` answers as SGLang does, so that its clients work unchanged."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from pawl.actors.messages.generate import Submit
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from tests.pawl.fake_engine import Served, logprob
from tests.pawl.reading import events


def generate(client: httpx.Client, limit: int = 3, **body: Any) -> Any:
    body.setdefault("sampling_params", {"max_new_tokens": limit})
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_single_prompt_gets_a_single_object(client: httpx.Client) -> None:
    reply = generate(client, text="hello", rid="my-own")
    meta = reply.pop("meta_info")
    assert reply == {"text": "hel", "output_ids": [104, 101, 108]}
    assert meta == {
        "id": "my-own",
        "finish_reason": {"type": "length", "length": 3},
        "weight_version": "default",
        "weight_versions": [{"version": "", "start": 0, "end": 3}],  # the fake engine names none
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "cached_tokens": 2,
        "num_retractions": 0,
        "e2e_latency": 2.0,
        "queue_time": 0.5,
    }


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"text": ["ab", "xyz"]}, ["aba", "xyz"]),
        ({"text": ["ab"]}, ["aba"]),
        ({"input_ids": [[97, 98], [120]]}, ["aba", "xxx"]),
        ({"text": "ab", "sampling_params": {"n": 2, "max_new_tokens": 3}}, ["aba", "aba"]),
        ({"text": ["a", "b"], "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}]}, ["a", "bb"]),
    ],
)
def test_lists_get_lists(client: httpx.Client, body: dict[str, Any], texts: list[str]) -> None:
    assert [item["text"] for item in generate(client, **body)] == texts


def test_flat_token_ids_are_one_prompt(client: httpx.Client) -> None:
    assert generate(client, input_ids=[97, 98])["text"] == "aba"


def test_the_limit_defaults_to_128(client: httpx.Client) -> None:
    assert generate(client, text="ab", sampling_params=None)["meta_info"]["completion_tokens"] == 128


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        ({"stop": "l"}, {"type": "stop", "matched": "l"}),
        ({"stop_token_ids": [108]}, {"type": "stop", "matched": 108}),
        ({"max_new_tokens": 2}, {"type": "length", "length": 2}),
    ],
)
def test_the_finish_reason_has_its_detail(client: httpx.Client, sampling: dict[str, Any], reason: Any) -> None:
    assert generate(client, text="hello", sampling_params=sampling)["meta_info"]["finish_reason"] == reason


def test_a_stream_is_cumulative_and_ends_as_the_whole(client: httpx.Client) -> None:
    whole = generate(client, text="hello")
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 3}, "stream": True}
    chunks = events(client.post("/generate", json=body))
    assert [chunk["text"] for chunk in chunks] == ["h", "he", "hel"]
    assert [chunk["output_ids"] for chunk in chunks] == [[104], [104, 101], [104, 101, 108]]
    assert [chunk["meta_info"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]
    assert [chunk["meta_info"]["finish_reason"] for chunk in chunks[:-1]] == [None, None]
    assert {chunk["meta_info"]["prompt_tokens"] for chunk in chunks} == {5}
    assert all("index" not in chunk for chunk in chunks)
    last = chunks[-1]
    assert last["meta_info"].pop("id") != whole["meta_info"].pop("id")
    assert last == whole


def test_a_stream_may_be_incremental(client: httpx.Client) -> None:
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 3}, "stream": True, "incremental_streaming": True}
    chunks = events(client.post("/generate", json=body))
    assert [(chunk["text"], chunk["output_ids"]) for chunk in chunks] == [("h", [104]), ("e", [101]), ("l", [108])]
    assert [chunk["meta_info"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]


@pytest.mark.parametrize("incremental", [False, True])
def test_scores_of_a_stream_come_once_each(client: httpx.Client, incremental: bool) -> None:
    """All of them with every event made a stream of 2,000 tokens 153 MB."""
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 3}, "return_logprob": True, "top_logprobs_num": 2}
    whole = client.post("/generate", json=body).json()["meta_info"]
    options = {"stream": True, "incremental_streaming": incremental}
    metas = [chunk["meta_info"] for chunk in events(client.post("/generate", json=body | options))]
    for name in ("output_token_logprobs", "output_top_logprobs"):
        assert [len(meta[name]) for meta in metas] == [1, 1, 1]
        assert [entry for meta in metas for entry in meta[name]] == whole[name]


def test_each_of_several_answers_has_a_name_and_the_prompts_name_is_for_all(
    client: httpx.Client, served: Served
) -> None:
    sampling = {"n": 2, "max_new_tokens": 3}
    replies = generate(client, text="ab", rid="both", sampling_params=sampling)
    assert [reply["meta_info"]["id"] for reply in replies] == ["both_0", "both_1"]
    served.on_loop(served.engine.hold)
    body = {"text": "hello", "rid": "both", "sampling_params": sampling, "stream": True}
    with httpx.Client(base_url=served.url) as other, client.stream("POST", "/generate", json=body) as stream:
        served.engine.until(lambda: len(served.engine.live) == 2)
        assert other.post("/abort_request", json={"rid": "both_1"}).json()["ended"] == ["both_1"]
        assert other.post("/abort_request", json={"rid": "both"}).json()["ended"] == ["both"]
        stream.read()


def test_a_streamed_list_says_which_item_an_event_belongs_to(client: httpx.Client) -> None:
    body = {"text": ["ab", "xyz"], "sampling_params": {"max_new_tokens": 3}, "stream": True}
    chunks = events(client.post("/generate", json=body))
    last = {chunk["index"]: chunk["text"] for chunk in chunks}
    assert last == {0: "aba", 1: "xyz"}


def test_log_probabilities_are_triples(client: httpx.Client) -> None:
    meta = generate(client, 2, text="ab", return_logprob=True)["meta_info"]
    assert meta["output_token_logprobs"] == [[logprob(97), 97, None], [logprob(98), 98, None]]
    assert meta["input_token_logprobs"] == []
    assert "output_top_logprobs" not in meta


def test_prompts_are_scored_from_the_position_asked_for(client: httpx.Client) -> None:
    options = {"return_logprob": True, "return_text_in_logprobs": True, "top_logprobs_num": 2}
    all_of_it = generate(client, 1, text="abc", logprob_start_len=0, **options)["meta_info"]
    assert all_of_it["input_token_logprobs"] == [[None, 97, "a"], [logprob(98), 98, "b"], [logprob(99), 99, "c"]]
    assert all_of_it["input_top_logprobs"][0] is None
    assert all_of_it["input_top_logprobs"][1] == [[-0.25, 255, "\ufffd"], [logprob(98), 98, "b"]]
    assert all_of_it["output_top_logprobs"] == [[[-0.25, 255, "\ufffd"], [logprob(97), 97, "a"]]]
    tail = generate(client, 1, text="abc", logprob_start_len=2, **options)["meta_info"]
    assert tail["input_token_logprobs"] == all_of_it["input_token_logprobs"][2:]


def test_named_tokens_are_scored_at_every_place(client: httpx.Client) -> None:
    options = {"return_logprob": True, "top_logprobs_num": 1, "token_ids_logprob": [100, 7]}
    scored = [[logprob(100), 100, None], [logprob(7), 7, None]]
    meta = generate(client, 2, text="abc", logprob_start_len=0, **options)["meta_info"]
    assert meta["output_token_ids_logprobs"] == [scored, scored]
    assert meta["output_top_logprobs"] == [[[-0.25, 255, None]]] * 2
    assert meta["input_token_ids_logprobs"] == [None, scored, scored]
    assert generate(client, 2, text="abc", **options)["meta_info"]["input_token_ids_logprobs"] == []
    unscored = generate(client, 2, text="abc", token_ids_logprob=[100])["meta_info"]
    assert not [name for name in unscored if "logprobs" in name]


def test_each_prompt_may_name_tokens_of_its_own(client: httpx.Client) -> None:
    replies = generate(client, 1, text=["a", "b"], return_logprob=True, token_ids_logprob=[[1], [2, 3]])
    named = [[entry[1] for entry in reply["meta_info"]["output_token_ids_logprobs"][0]] for reply in replies]
    assert named == [[1], [2, 3]]


@pytest.mark.parametrize("named", [[[1]], [[1], 2], [1 << 20], list(range(129)), [[*range(129)], []], [-1]])
def test_names_that_cannot_be_scored_are_refused(client: httpx.Client, named: list[Any]) -> None:
    body = {"text": ["a", "b"], "return_logprob": True, "token_ids_logprob": named}
    response = client.post("/generate", json=body)
    assert response.status_code == 400
    assert "token_ids_logprob" in response.json()["error"]["message"]


def test_options_may_differ_by_item(client: httpx.Client) -> None:
    scored, plain = generate(client, 1, text=["a", "b"], return_logprob=[True, False], rid=["one", "two"])
    assert "output_token_logprobs" in scored["meta_info"]
    assert "output_token_logprobs" not in plain["meta_info"]
    assert [scored["meta_info"]["id"], plain["meta_info"]["id"]] == ["one", "two"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_item_that_fails_leaves_its_neighbours_alone(client: httpx.Client, stream: bool) -> None:
    body = {"text": ["hello", "", "ab"], "sampling_params": {"max_new_tokens": 2}, "stream": stream}
    response = client.post("/generate", json=body)
    assert response.status_code == 200
    if stream:
        last = {chunk["index"]: chunk for chunk in events(response)}
        items = [last[index] for index in range(3)]
    else:
        items = response.json()
    assert [item["text"] for item in items] == ["he", "", "ab"]
    reason = items[1]["meta_info"]["finish_reason"]
    assert (reason["type"], reason["status_code"]) == ("abort", 400)
    assert "empty" in reason["message"]


def test_a_call_of_which_nothing_is_left_has_the_status_of_its_failure(client: httpx.Client) -> None:
    response = client.post("/generate", json={"text": ["", ""]})
    assert response.status_code == 400


def test_every_field_reaches_the_engine_under_its_own_name(client: httpx.Client, served: Served) -> None:
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {"97": -5},
        "max_new_tokens": 4,
        "min_new_tokens": 2,
        "stop_token_ids": [1],
        "ignore_eos": True,
        "sampling_seed": 9,
        "stop": ["Q"],
        "no_stop_trim": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }
    generate(client, text="ab", sampling_params=sampling, extra_key="tenant", priority=2, timeout_s=7)
    submit = next(message for message in reversed(served.engine.seen) if isinstance(message, Submit))
    assert submit.sampling == SamplingParameters(
        temperature=0.5,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        repetition_penalty=1.1,
        logit_bias={97: -5.0},
        max_new_tokens=4,
        min_new_tokens=2,
        stop_token_ids=(1,),
        seed=9,
    )
    options = submit.text_options
    assert (options.stop, options.include_stop) == (("Q",), True)
    assert (options.skip_special_tokens, options.spaces_between_special_tokens) == (False, False)
    assert (submit.cache_salt, submit.priority, submit.timeout_s) == ("tenant", 2, 7.0)


def test_the_load_generator_of_the_seed_system_is_understood(client: httpx.Client) -> None:
    """The body that its benchmark sends, and what it reads around a run."""
    body = {
        "text": "hello",
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 4, "ignore_eos": True},
        "stream": True,
        "lora_path": None,
        "return_logprob": False,
        "logprob_start_len": -1,
        "image_data": None,
        "return_routed_experts": False,
    }
    last = events(client.post("/generate", json=body))[-1]
    assert last["text"] == "hell"
    assert last["meta_info"]["completion_tokens"] == 4
    assert client.get("/v1/models").json()["data"][0]["id"] == "echo"
    state = client.get("/get_server_info").json()["internal_states"][0]
    assert state.get("avg_spec_accept_length") is None
    assert client.post("/flush_cache").status_code == 200
    assert client.post("/start_profile").status_code == 200


def test_an_aborted_request_returns_what_it_has(client: httpx.Client, served: Served) -> None:
    served.on_loop(served.engine.hold)
    body = {"text": "hello", "rid": "doomed", "sampling_params": {"max_new_tokens": 100}}
    with (
        httpx.Client(base_url=served.url) as other,
        client.stream("POST", "/generate", json=body | {"stream": True}) as s,
    ):
        served.engine.until(lambda: len(served.engine.live) == 1)
        reply = other.post("/abort_request", json={"rid": "doomed", "abort_message": "enough"}).json()
        assert reply == {"success": True, "ended": ["doomed"], "pending": [], "unknown": []}
        s.read()
        last = events(s)[-1]
    assert last["text"] == "h"
    assert last["meta_info"]["finish_reason"] == {"type": "abort", "message": "enough", "status_code": 499}


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (Cause.TIMEOUT, 408),
        (Cause.OVERLOADED, 503),
        (Cause.NEVER_FITS, 422),
        (Cause.WORKER_LOST, 500),
        (Cause.DRAINED, 503),
        (Cause.INTERNAL, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_cause_that_ends_a_request_before_its_first_token_is_a_status(
    client: httpx.Client, served: Served, cause: Cause, status: int, stream: bool
) -> None:
    served.engine.end_next = cause
    response = client.post("/generate", json={"text": "hello", "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["message"]
    if status == 503:
        assert response.headers["retry-after"] == "1"
