"""A running server whose trace cannot be written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pawl.build.ghost import load_ghost
from pawl.build.parts import check_settings
from pawl.config import ConfigError, build_config
from tests.pawl.ghost_server import ghost_server

PROMPT = {"text": "some words", "sampling_params": {"max_new_tokens": 4}}
ATTEMPTS = 5_000
"""Requests within which a flush of the recorder certainly comes."""


def until(client: httpx.Client, holds: Callable[[httpx.Response], bool]) -> None:
    """Send requests until the answer to one is such."""
    for _ in range(ATTEMPTS):
        if holds(client.post("/generate", json=PROMPT)):
            return
    raise AssertionError(f"not within {ATTEMPTS} requests")


def take_away(folder: Path) -> None:
    """Remove the traces, and have nothing put in their place."""
    shutil.rmtree(folder)
    folder.touch()


def give_back(folder: Path) -> None:
    folder.unlink()


@pytest.mark.parametrize("required", [False, True])
def test_a_removed_folder_is_told_and_stops_new_requests_where_the_trace_is_required(
    tmp_path: Path, required: bool
) -> None:
    folder = tmp_path / "traces"
    settings = {"model": "ghost", "trace_dir": str(folder), "trace_required": required}
    parts = load_ghost(build_config(settings))
    with ghost_server(parts, **settings) as (host, port), httpx.Client(base_url=f"http://{host}:{port}") as client:
        assert client.post("/generate", json=PROMPT).status_code == 200
        health = client.get("/health").json()
        assert (health["status"], health["trace"]) == ("ok", "ok")
        take_away(folder)
        if required:
            until(client, lambda response: response.status_code == 503)
            assert "not taken without a trace" in client.post("/generate", json=PROMPT).json()["error"]["message"]
        else:
            until(client, lambda response: client.get("/health").json()["trace"] != "ok")
            assert client.post("/generate", json=PROMPT).status_code == 200
        health = client.get("/health")
        assert health.status_code == (503 if required else 200)
        assert "records lost" in health.json()["trace"]
        assert "pawl_trace_losing 1" in client.get("/metrics").text
        give_back(folder)
        until(client, lambda _: "written again" in client.get("/health").json()["trace"])
        assert client.post("/generate", json=PROMPT).status_code == 200
        (lost,) = [
            float(line.split()[1])
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("pawl_trace_lost_records_total")
        ]
        assert lost > 0


def test_a_trace_that_is_off_cannot_be_required() -> None:
    with pytest.raises(ConfigError, match="trace_required"):
        check_settings(build_config({"model": "ghost", "trace": False, "trace_required": True}))
