"""A whole server whose users have sessions: turns go on from turns, branch, go back, and fail without a trace."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.config import build_config
from pawl.engine import Engine, RequestFailed
from pawl.gpu.ghost.oracle import expected
from tests.pawl.ghost_server import audited_client

VOCABULARY = ghost_vocabulary()
COUNT = 6
CHUNKS = [VOCABULARY.encode(text).tolist() for text in ("about France", "the capital is", "of so many", "a brief")]


def answer(prompt: list[int], count: int = COUNT) -> list[int]:
    return expected(prompt, count)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with audited_client(tmp_path) as client:
        yield client


def opened(client: httpx.Client, **fields: Any) -> str:
    reply = client.post("/open_session", json={"capacity_of_str_len": 1000, **fields})
    assert reply.status_code == 200, reply.text
    name: str = reply.json()
    return name


def turn(client: httpx.Client, session: str, ids: list[int], count: int = COUNT, **fields: Any) -> httpx.Response:
    sampling = {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True}
    body = {"input_ids": ids, "sampling_params": sampling, "session_params": {"id": session, **fields}}
    return client.post("/generate", json=body)


def rid_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    rid: str = response.json()["meta_info"]["id"]
    return rid


def test_turns_go_on_from_turns_as_sglangs_clients_send_them(client: httpx.Client) -> None:
    session, rid, context = opened(client), None, list[int]()
    assert client.post("/open_session", json={"capacity_of_str_len": 9, "session_id": session}).status_code == 400
    for number, chunk in enumerate(CHUNKS):
        count = COUNT if number else 1
        response = turn(client, session, chunk, count, rid=rid, offset=-1, replace=True)
        rid = rid_of(response)
        prompt = context[:-1] + chunk
        assert response.json()["output_ids"] == answer(prompt, count)
        assert response.json()["meta_info"]["prompt_tokens"] == len(prompt)
        context = prompt + answer(prompt, count)
    assert client.post("/close_session", json={"session_id": session}).status_code == 200
    assert turn(client, session, CHUNKS[0]).status_code == 400
    assert client.post("/close_session", json={"session_id": session}).status_code == 404


def test_going_back_replaces_what_came_after(client: httpx.Client) -> None:
    session = opened(client)
    first = rid_of(turn(client, session, CHUNKS[0]))
    second = rid_of(turn(client, session, CHUNKS[1], rid=first))
    third = rid_of(turn(client, session, CHUNKS[2], rid=second))
    response = turn(client, session, CHUNKS[3], rid=first, offset=len(CHUNKS[0]), replace=True)
    assert response.json()["output_ids"] == answer(CHUNKS[0] + CHUNKS[3])
    for gone in (second, third):
        refused = turn(client, session, CHUNKS[1], rid=gone)
        assert (refused.status_code, "is not there" in refused.json()["error"]["message"]) == (400, True)


def test_branches_go_on_side_by_side_and_one_can_drop_an_answer(client: httpx.Client) -> None:
    session = opened(client)
    root = rid_of(turn(client, session, CHUNKS[0]))
    whole = CHUNKS[0] + answer(CHUNKS[0])
    left, right = turn(client, session, CHUNKS[1], rid=root), turn(client, session, CHUNKS[2], rid=root)
    dropped = turn(client, session, CHUNKS[2], rid=root, drop_previous_output=True)
    for response, prompt in ((left, whole + CHUNKS[1]), (right, whole + CHUNKS[2]), (dropped, CHUNKS[0] + CHUNKS[2])):
        assert response.json()["output_ids"] == answer(prompt)
    again = turn(client, session, CHUNKS[3], rid=rid_of(left))
    assert again.json()["output_ids"] == answer(whole + CHUNKS[1] + answer(whole + CHUNKS[1]) + CHUNKS[3])


def test_a_turn_that_is_refused_leaves_the_session_as_it_was(client: httpx.Client) -> None:
    session = opened(client, capacity_of_str_len=100)
    root = rid_of(turn(client, session, CHUNKS[0]))
    kept = rid_of(turn(client, session, CHUNKS[1], rid=root))
    assert turn(client, session, CHUNKS[1], rid="nobody", replace=True).status_code == 400
    assert turn(client, session, CHUNKS[1], 90, rid=root, replace=True).status_code == 400
    assert turn(client, "nowhere", CHUNKS[1]).status_code == 400
    whole = CHUNKS[0] + answer(CHUNKS[0]) + CHUNKS[1]
    response = turn(client, session, CHUNKS[2], rid=kept)
    assert response.json()["output_ids"] == answer(whole + answer(whole) + CHUNKS[2])


def test_a_turn_is_scored_from_where_its_whole_prompt_says(client: httpx.Client) -> None:
    session = opened(client)
    root = rid_of(turn(client, session, CHUNKS[0]))
    start = len(CHUNKS[0]) + COUNT - 1
    body = {
        "input_ids": CHUNKS[1],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 2},
        "return_logprob": True,
        "logprob_start_len": start,
        "session_params": {"id": session, "rid": root},
    }
    scored = client.post("/generate", json=body).json()["meta_info"]["input_token_logprobs"]
    assert [token for _, token, _ in scored][1:] == CHUNKS[1]
    beyond = client.post("/generate", json=body | {"logprob_start_len": start + len(CHUNKS[1]) + 1})
    assert (beyond.status_code, "none to score" in beyond.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("replace", [True, False])
def test_a_turn_takes_the_place_of_a_live_one_or_is_refused(client: httpx.Client, replace: bool) -> None:
    session = opened(client)
    client.post("/pause_generation", json={"mode": "in_place"})
    live: dict[str, Any] = {}

    def ask() -> None:
        body = {
            "rid": "live",
            "input_ids": CHUNKS[0],
            "sampling_params": {"temperature": 0.0, "max_new_tokens": COUNT},
            "session_params": {"id": session},
        }
        live.update(httpx.post(f"{client.base_url}/generate", json=body, timeout=60.0).json())

    thread = threading.Thread(target=ask)
    thread.start()
    while not client.get("/v1/loads").json()["loads"][0]["num_waiting_reqs"]:
        pass
    if not replace:
        refused = turn(client, session, CHUNKS[1], rid="live")
        assert (refused.status_code, "has not ended" in refused.json()["error"]["message"]) == (400, True)
        client.post("/continue_generation")
    else:
        second: list[httpx.Response] = []
        other = threading.Thread(
            target=lambda: second.append(turn(client, session, CHUNKS[1], rid="live", replace=True))
        )
        other.start()
        thread.join(60.0)
        client.post("/continue_generation")
        other.join(60.0)
        assert live["meta_info"]["finish_reason"]["type"] == "abort"
        assert second[0].status_code == 200, second[0].text
        assert second[0].json()["output_ids"] == answer(CHUNKS[0] + CHUNKS[1])
    thread.join(60.0)
    assert turn(client, session, CHUNKS[2], rid="live").status_code == (400 if replace else 200)


def test_a_streaming_session_goes_on_from_the_last_turn_and_nothing_else(client: httpx.Client) -> None:
    session, context = opened(client, streaming=True), list[int]()
    for chunk in CHUNKS:
        context += chunk
        assert turn(client, session, chunk).json()["output_ids"] == answer(context)
        context += answer(context)
    assert turn(client, session, CHUNKS[0], offset=1).status_code == 400


def test_a_session_that_nobody_uses_is_closed_when_its_time_is_over(client: httpx.Client) -> None:
    session = opened(client, timeout=0.05)
    while turn(client, session, CHUNKS[0], 1).status_code == 200:
        threading.Event().wait(0.1)
    assert client.post("/close_session", json={"session_id": session}).status_code == 404


def test_one_turn_has_one_prompt_and_one_answer(client: httpx.Client) -> None:
    body = {"text": ["a", "b"], "session_params": {"id": opened(client)}}
    assert client.post("/generate", json=body).status_code == 400


def test_an_engine_opens_and_closes_sessions_by_the_names_of_the_command(tmp_path: Path) -> None:
    with Engine(build_config({"model": "ghost", "trace_dir": str(tmp_path)})) as engine:
        assert engine.control("open-session", session_id="mine")["session_id"] == "mine"
        engine.control("close-session", session_id="mine")
        with pytest.raises(RequestFailed, match="there is no session"):
            engine.control("close-session", session_id="mine")
