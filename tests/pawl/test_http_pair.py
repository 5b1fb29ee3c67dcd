"""A pair of replicas, to a router that sends each request to a prefill and to a decode server (SGLang's does)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pawl.build.loading import load
from pawl.config import build_config
from tests.pawl.ghost_server import ghost_server

BOOTSTRAP = {"bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": 3999139255806862067}
OF_A_ROUTER = {
    "model": None,
    "return_bytes": False,
    "return_entropy": False,
    "background": False,
    "no_logs": False,
    "return_hidden_states": False,
    "log_metrics": True,
    "return_text_in_logprobs": False,
}
"""What SGLang's router sends along, whatever it was sent."""
PROMPT = "a prompt of several pages, of which each is worth the way"
NATIVE = {"text": PROMPT, "sampling_params": {"max_new_tokens": 4, "temperature": 0.0}}
COMPLETION = {"model": "ghost", "prompt": PROMPT, "max_tokens": 4, "temperature": 0.0}
CHAT = {"model": "ghost", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "temperature": 0.0}
ROUTES = {"/generate": NATIVE, "/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = str(tmp_path_factory.mktemp("pair"))
    settings: dict[str, Any] = {"model": "ghost", "trace_dir": folder, "disaggregate": "1p1d", "context_length": 1024}
    with (
        ghost_server(load(build_config(settings)), **settings) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0) as client,
    ):
        yield client


def prefills(client: httpx.Client) -> int:
    """Prompts that were computed on the prefill side."""
    state: dict[str, Any] = client.get("/server_info").json()["internal_states"][0]
    return int(state["prefill"]["prefills_received"])


@pytest.mark.parametrize("path", ROUTES)
def test_what_a_router_sends_to_both_sides_is_computed_once_and_apart(pair: httpx.Client, path: str) -> None:
    extra = OF_A_ROUTER if path == "/generate" else {}
    body = {**ROUTES[path], **extra, **BOOTSTRAP, "cache_salt": path}
    before = prefills(pair)
    empty = pair.post(f"/prefill{path}", json=body)
    answer = pair.post(path, json=body)
    assert (empty.status_code, answer.status_code) == (200, 200), (empty.text, answer.text)
    assert not empty.json().get("text")
    assert not empty.json().get("choices")
    assert prefills(pair) == before + 1
    assert answer.json().get("text") or answer.json()["choices"]


def test_a_prefill_side_says_as_much_for_many_prompts(pair: httpx.Client) -> None:
    many = {"text": ["one", "other"], "bootstrap_host": ["h"] * 2, "bootstrap_port": [1] * 2, "bootstrap_room": [1, 2]}
    assert len(pair.post("/prefill/generate", json=many).json()) == 2
    sampling = {"max_new_tokens": 1, "temperature": 0.0}
    assert len(pair.post("/generate", json=many | {"sampling_params": sampling}).json()) == 2


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/get_model_info", "/server_info"])
def test_a_prefill_side_is_looked_at_like_any_server(pair: httpx.Client, path: str) -> None:
    assert pair.get(f"/prefill{path}").json().keys() == pair.get(path).json().keys()


def test_nothing_is_ordered_through_the_prefill_side(pair: httpx.Client) -> None:
    assert pair.post("/prefill/flush_cache").status_code == 404
    refused = pair.post("/prefill/generate", json=NATIVE)
    assert refused.status_code == 400
    assert "bootstrap_room" in refused.text


def test_a_server_without_a_prefill_side_says_that_it_has_none(client: httpx.Client) -> None:
    for path, body in ROUTES.items():
        refused = client.post(path, json={**body, **BOOTSTRAP})
        assert refused.status_code == 400
        assert "--disaggregate" in refused.text
    assert client.post("/prefill/generate", json=NATIVE | BOOTSTRAP).status_code == 404
