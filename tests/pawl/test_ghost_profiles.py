"""Profiles over HTTP: what SGLang's and vLLM's clients send, and which files they find."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.pawl.ghost_server import audited_client

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with audited_client(tmp_path_factory.mktemp("traces"), profile_dir=str(folder)) as client:
        yield client


@pytest.fixture(autouse=True)
def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def generate(client: httpx.Client) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}
    response = client.post("/generate", json={"text": "The capital of France is", "sampling_params": sampling})
    assert response.status_code == 200


def start(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/start_profile", json=fields)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_profile_of_some_steps_is_there_when_the_request_has_ended(client: httpx.Client, folder: Path) -> None:
    assert client.post("/start_profile", json={"start_step": "15", "num_steps": 5}).status_code == 200
    generate(client)
    generate(client)
    (name,) = names(folder)
    events = json.loads(gzip.decompress((folder / name).read_bytes()))["traceEvents"]
    assert len({event["name"] for event in events if str(event.get("name")).startswith("step ")}) == 5
    assert client.post("/stop_profile").status_code == 409


def test_a_profile_without_a_number_of_steps_is_written_when_it_is_stopped(client: httpx.Client, folder: Path) -> None:
    assert client.post("/start_profile").status_code == 200
    generate(client)
    assert names(folder) == []
    reply = client.post("/stop_profile")
    assert (reply.status_code, [Path(file).name for file in reply.json()["files"]]) == (200, names(folder))


def test_by_stage_there_are_two_files(client: httpx.Client, folder: Path) -> None:
    assert start(client, profile_by_stage=True, num_steps=10, profile_id="x", profile_prefix="a").status_code == 200
    generate(client)
    assert names(folder) == ["a-x-TP-0-decode.trace.json.gz", "a-x-TP-0-prefill.trace.json.gz"]


def test_a_second_start_is_a_conflict_and_the_first_goes_on(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    assert start(client, output_dir=str(tmp_path / "mine"), profile_id="x").status_code == 200
    second = start(client)
    assert (second.status_code, "under way already" in second.json()["error"]["message"]) == (409, True)
    generate(client)
    assert client.post("/stop_profile").json()["files"] == [str(tmp_path / "mine" / "x-TP-0.trace.json.gz")]
    assert names(folder) == []
    assert client.post("/stop_profile").status_code == 409


@pytest.mark.parametrize(
    "fields",
    [
        {"output_dir": "/proc/version/x"},
        {"output_dir": "~nobody-has-this-name/x"},
        {"output_dir": "a\0b"},
        {"output_dir": "x" * 4000},
        {"activities": ["RPD"]},
        {"activities": []},
        {"num_steps": 0},
        {"num_steps": "many"},
        {"start_step": -1},
        {"profile_id": "../../x"},
        {"profile_prefix": "a/b"},
        {"repeat": 2},
        {"profile_stages": ["decode"]},
        {"profile_by_stage": True, "profile_stages": ["decoding"]},
        {"steps": 3},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_profile_that_cannot_be_is_refused_and_none_is_under_way(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    reply = start(client, **fields)
    assert reply.status_code == 400
    assert "the server failed" not in reply.text
    assert client.post("/stop_profile").status_code == 409


@pytest.mark.parametrize("what", ["start", "stop", "dump"])
def test_of_a_model_without_experts_none_are_recorded(client: httpx.Client, what: str) -> None:
    response = client.post(f"/{what}_expert_distribution_record")
    assert response.status_code == 400
    assert "has no experts" in response.json()["error"]["message"]
