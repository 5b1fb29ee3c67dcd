"""Limits that are set over HTTP, and steps that are slowed down: what SGLang's clients send and read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.pawl.ghost_server import audited_client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with audited_client(tmp_path, max_running=8, prefill_chunk=64) as client:
        yield client


def generated(client: httpx.Client, count: int) -> dict[str, Any]:
    sampling = {"max_new_tokens": count, "temperature": 0}
    reply: dict[str, Any] = client.post("/generate", json={"text": "ab", "sampling_params": sampling}).json()
    return reply


def set_state(client: httpx.Client, **limits: Any) -> httpx.Response:
    return client.post("/set_internal_state", json={"server_args": limits})


def state(client: httpx.Client) -> dict[str, Any]:
    (found,) = client.get("/get_server_info").json()["internal_states"]
    return dict(found)


def test_limits_are_set_by_sglangs_names_and_by_ours_and_shown(client: httpx.Client) -> None:
    response = set_state(client, pp_max_micro_batch_size=4, chunked_prefill_size=32)
    assert (response.status_code, response.json()) == (200, [True])
    assert set_state(client, max_queued=7).json() == [True]
    shown = state(client)
    assert (shown["max_running"], shown["prefill_chunk"], shown["max_queued"]) == (4, 32, 7)
    assert shown["effective_max_running_requests_per_dp"] == 4
    assert len(generated(client, 3)["output_ids"]) == 3


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_running": 2, "chunked_prefill_size": 65}, "prefill_chunk must be from 16 to 64"),
        ({"max_running": 2, "tp_size": 2}, "unknown field 'server_args.tp_size'"),
        ({"max_running": 2, "max_queued": "many"}, "server_args.max_queued must be an integer"),
        ({"max_running": 2, "max_running_requests": 3}, "max_running is set twice"),
        ({"max_running": 0}, "max_running"),
    ],
)
def test_where_one_limit_may_not_be_none_is_set(client: httpx.Client, limits: dict[str, Any], words: str) -> None:
    response = set_state(client, **limits)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["updated"] is False
    assert state(client)["max_running"] == 8


def test_what_sets_nothing_succeeds_as_sglangs_tests_have_it(client: httpx.Client) -> None:
    assert all(set_state(client).json())


def test_each_token_waits_while_steps_are_slowed_down_and_none_afterwards(client: httpx.Client) -> None:
    assert client.post("/slow_down", json={"forward_sleep_time": 0.2}).status_code == 200
    assert state(client)["forward_sleep_time"] == 0.2
    began = time.monotonic()
    assert len(generated(client, 3)["output_ids"]) == 3
    assert time.monotonic() - began >= 0.6
    assert client.post("/slow_down", json={"forward_sleep_time": None}).status_code == 200
    assert state(client)["forward_sleep_time"] is None
    assert len(generated(client, 50)["output_ids"]) == 50


def test_a_step_that_waits_for_an_hour_is_no_stall_and_its_request_ends_at_once_when_told(client: httpx.Client) -> None:
    client.post("/slow_down", json={"forward_sleep_time": 3600})
    with client.stream("POST", "/generate", json={"text": "ab", "rid": "slow", "stream": True}) as stream:
        while state(client)["waiting"] != 1:
            pass
        health = client.get("/health").json()
        assert (health["status"], health["oldest_step_s"]) == ("ok", 0.0)
        assert client.post("/abort_request", json={"rid": "slow"}).json()["ended"] == ["slow"]
        assert "abort" in stream.read().decode()


def test_a_delay_that_is_shortened_counts_at_once(client: httpx.Client) -> None:
    client.post("/slow_down", json={"forward_sleep_time": 3600})
    with client.stream("POST", "/generate", json={"text": "ab", "stream": True}) as stream:
        while state(client)["waiting"] != 1:
            pass
        client.post("/slow_down", json={"forward_sleep_time": 0.001})
        assert "[DONE]" in stream.read().decode()


@pytest.mark.parametrize("body", [{}, {"forward_sleep_time": -1}, {"forward_sleep_time": "long"}, {"seconds": 1}])
def test_a_delay_that_cannot_be_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/slow_down", json=body).status_code == 400


def test_the_state_says_how_much_of_drafts_is_accepted_as_sglangs_tests_read_it(tmp_path: Path) -> None:
    with audited_client(tmp_path, speculate="ngram", prompt_lookup_min=1) as client:
        assert "avg_spec_accept_length" not in state(client)
        generated(client, 200)
        shown = state(client)
        counters = shown["counters"]
        assert shown["avg_spec_accept_length"] == 1 + counters["accepted_tokens"] / counters["drafts"]
