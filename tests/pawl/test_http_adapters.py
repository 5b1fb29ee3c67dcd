"""Requests whose adapter is unloaded, be it that another takes its place, while they are on their way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from pawl.http.streams import MOST_AGAIN
from pawl.loops.orders.adapters import LoadAdapter
from tests.pawl.fake_engine import INFO, PATIENCE_S, Served
from tests.pawl.reading import events

CALLS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "echo:x", "prompt": "hello", "max_tokens": 3},
    "/v1/chat/completions": {"model": "x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/v1/responses": {"model": "x", "input": "hi", "max_output_tokens": 3},
    "/generate": {"text": "hello", "lora_path": "x", "sampling_params": {"max_new_tokens": 3}},
}


@pytest.fixture
def served() -> Iterator[Served]:
    with Served(info=msgspec.structs.replace(INFO, max_loaded_adapters=1)) as served:
        engine = served.engine
        served.on_loop(lambda: engine.load(LoadAdapter(name="x", path="here")))
        yield served
        engine.until(lambda: engine.gateway.num_live == 0)
        served.on_loop(engine.gateway.check)


@pytest.fixture
def own(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE_S, verify=False) as client:
        yield client


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("times", [1, 2])
def test_an_adapter_that_is_unloaded_under_a_request_is_loaded_again_for_it(
    own: httpx.Client, served: Served, path: str, times: int
) -> None:
    right = own.post(path, json=CALLS[path])
    served.engine.num_unloads = times
    answer = own.post(path, json=CALLS[path])
    assert (answer.status_code, text_of(answer.json())) == (200, text_of(right.json()))
    assert served.engine.num_unloads == 0
    assert served.engine.num_loads == 1 + times
    loads = [one.message for one in served.engine.seen if isinstance(getattr(one, "message", None), LoadAdapter)]
    assert loads == [LoadAdapter(name="x", path="here")] * times


def text_of(body: dict[str, Any]) -> object:
    """What the model has said."""
    return body.get("text") or body.get("output", [{}])[0].get("content") or list(body["choices"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_a_stream_and_all_choices_of_a_call_are_made_again_as_well(
    own: httpx.Client, served: Served, path: str
) -> None:
    """Of four choices the first two come too late, and the others begin without an adapter, as nobody has any left."""
    n = {"sampling_params": {"max_new_tokens": 3, "n": 4}} if path == "/generate" else {"n": 4}
    served.engine.num_unloads = 2
    answer = own.post(path, json=CALLS[path] | n | {"stream": True})
    assert answer.status_code == 200
    told = events(answer)
    assert "error" not in str(told)
    ends = [each for event in told for each in event.get("choices", [event]) if finish_of(each)]
    assert sorted(each["index"] for each in ends) == [0, 1, 2, 3]
    assert {finish_of(each) for each in ends} == {"length"}


def finish_of(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason") or choice.get("meta_info", {}).get("finish_reason")
    return reason["type"] if isinstance(reason, dict) else reason


def test_a_search_goes_on_where_its_adapter_is_unloaded_between_two_steps(own: httpx.Client, served: Served) -> None:
    body = CALLS["/v1/completions"] | {"use_beam_search": True, "n": 2}
    right = own.post("/v1/completions", json=body).json()
    served.engine.num_unloads = 3  # the first step, and both beams of the second
    assert own.post("/v1/completions", json=body).json()["choices"] == right["choices"]
    assert served.engine.num_unloads == 0


@pytest.mark.parametrize("stream", [False, True])
def test_where_its_place_is_always_taken_a_call_ends_as_one_to_try_again_later(
    own: httpx.Client, served: Served, stream: bool
) -> None:
    served.engine.num_unloads = MOST_AGAIN + 1
    answer = own.post("/v1/completions", json=CALLS["/v1/completions"] | {"stream": stream})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "others have taken its place" in answer.json()["error"]["message"]
    assert served.engine.num_unloads == 0


def test_what_is_not_valid_is_refused_once_though_it_names_an_adapter(own: httpx.Client, served: Served) -> None:
    before = served.engine.num_loads
    answer = own.post("/generate", json={"input_ids": [1, 10_000], "lora_path": "x"})
    assert answer.status_code == 400
    assert served.engine.num_loads == before
