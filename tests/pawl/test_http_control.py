"""Health, facts, tokenization, abort, flush and keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pawl.actors.control import ROWS
from pawl.actors.control.weights import GET_WEIGHTS
from pawl.actors.control_row import Who
from pawl.actors.messages.control import Pulse, Stalled
from pawl.actors.runtime.actor import Down
from tests.pawl.fake_engine import Served
from tests.pawl.reading import samples

OPEN_PATHS = ["/health", "/ready", "/metrics"]
KEYED_PATHS = ["/v1/models", "/server_info", "/health_generate", "/v1/loads", "/model_info"]


# ---- health ----


@pytest.mark.parametrize("path", ["/health", "/ready", "/health_generate"])
def test_a_turning_engine_is_well(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_health_follows_the_engines_loop(client: httpx.Client, served: Served) -> None:
    gateway = served.engine.gateway
    served.on_loop(lambda: gateway.receive(Stalled(12.5)))
    assert client.get("/ready").status_code == 503
    response = client.get("/health")
    assert response.status_code == 503
    assert "12.5" in response.json()["status"]
    served.on_loop(lambda: gateway.receive(Stalled(0.0)))
    assert client.get("/health").status_code == 200


def test_health_tells_a_slow_step_and_a_silent_scheduler_before_they_are_a_stall(
    client: httpx.Client, served: Served
) -> None:
    gateway = served.engine.gateway
    served.on_loop(lambda: gateway.receive(Stalled(0.0, oldest_step_s=2.5, silent_s=1.75)))
    response = client.get("/health")
    assert response.status_code == 200
    assert (response.json()["oldest_step_s"], response.json()["silent_s"]) == (2.5, 1.75)
    served.on_loop(lambda: gateway.receive(Stalled(0.0)))
    assert client.get("/health").json()["oldest_step_s"] == 0.0


def test_a_pulse_that_is_late_is_a_freeze_that_health_and_metrics_remember() -> None:
    with Served() as served:
        gateway = served.engine.gateway
        served.on_loop(lambda: gateway.receive(Pulse(gateway.context.now() - 3.0)))
        served.on_loop(lambda: gateway.receive(Pulse(gateway.context.now())))
        assert 3.0 <= httpx.get(f"{served.url}/health").json()["longest_freeze_s"] < 4.0
        assert samples(httpx.get(f"{served.url}/metrics").text)["pawl_longest_freeze_seconds"] >= 3.0


def test_health_generate_fails_when_no_token_comes_in_time() -> None:
    with Served(probe_timeout_s=0.05) as served:
        served.on_loop(served.engine.fall_silent)
        response = httpx.get(f"{served.url}/health_generate")
        assert response.status_code == 503
        served.engine.until(lambda: served.engine.gateway.num_live == 0)


def test_a_lost_engine_is_sick_and_refuses() -> None:
    with Served() as served:
        served.on_loop(lambda: served.engine.gateway.receive(Down("scheduler", "it broke")))
        health = httpx.get(f"{served.url}/health")
        assert health.status_code == 503
        assert health.json()["cause"] == "internal"
        assert health.json()["status"] == "scheduler is gone: it broke"
        response = httpx.post(f"{served.url}/generate", json={"text": "hello"})
        assert response.status_code == 503
        assert "scheduler" in response.json()["error"]["message"]


def test_what_nobody_can_answer_is_the_servers_fault_and_says_so() -> None:
    refused = []
    with Served() as served, httpx.Client(base_url=served.url, verify=False) as client:
        served.on_loop(lambda: served.engine.gateway.receive(Down("scheduler", "it broke")))
        for method, path in [(row.methods[0], path) for row in ROWS for path in row.routes]:
            response = client.request(method, path, json={} if method == "POST" else None)
            if "it broke" not in response.text or response.status_code == 200:
                continue  # its body lacks something, or it tells of the server whatever that is like
            body = response.json()
            assert (path, response.status_code, "retry-after" in response.headers) == (path, 503, True)
            assert body.get("success", False) is False
            assert ("code" in body["error"]) == path.startswith("/v1/")
            refused.append(path)
    assert {"/flush_cache", "/pause_generation", "/sleep", "/v1/loads", "/get_load"} <= set(refused)


def test_a_draining_server_is_healthy_but_not_ready() -> None:
    with Served() as served:
        served.on_loop(lambda: served.engine.gateway.drain(0.0))
        assert httpx.get(f"{served.url}/health").status_code == 200
        assert httpx.get(f"{served.url}/ready").status_code == 503


# ---- facts ----


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
def test_model_facts_are_given_under_both_names(client: httpx.Client, path: str) -> None:
    facts = client.get(path).json()
    assert facts["model_path"] == "/models/echo"
    assert facts["is_generation"] is True
    assert facts["context_length"] == 512


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
def test_server_facts_hold_settings_and_the_schedulers_own_state(client: httpx.Client, path: str) -> None:
    facts = client.get(path).json()
    assert facts["page_size"] == 16
    assert facts["status"] == "ready"
    assert facts["internal_states"][0]["pages"]["total"] == 100
    assert facts["actors"]["tokenizer"]["waiting_data"] == 5


def test_loads_count_requests_and_tokens(client: httpx.Client, served: Served) -> None:
    served.on_loop(served.engine.hold)
    with client.stream("POST", "/generate", json={"text": "hello", "stream": True}) as running:
        served.engine.until(lambda: len(served.engine.live) == 1)
        (load,) = httpx.get(f"{served.url}/v1/loads").json()["loads"]
        (of_router,) = httpx.get(f"{served.url}/get_load").json()
        served.on_loop(served.engine.release)
        running.read()
    assert (load["num_running_reqs"], load["num_total_reqs"]) == (1, 1)
    assert (load["num_used_tokens"], load["max_total_num_tokens"]) == (160, 1600)
    assert of_router == {"dp_rank": 0, "num_reqs": 1, "num_waiting_reqs": 0, "num_tokens": 160}


def test_what_sglangs_router_sends_with_a_request_is_known(client: httpx.Client) -> None:
    sent = {"model": None, "return_text_in_logprobs": False, "stream": False, "log_metrics": True, "background": False}
    sent |= {"return_hidden_states": False, "no_logs": False, "return_bytes": False, "return_entropy": False}
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 4}}
    assert client.post("/generate", json=body | sent).status_code == 200
    assert client.post("/generate", json=body | {"model": client.get("/v1/models").json()["data"][0]["id"]}).is_success
    refused = client.post("/generate", json=body | {"model": "another"})
    assert (refused.status_code, "another" in refused.text) == (404, True)
    assert client.post("/generate", json=body | {"return_bytes": True}).status_code == 400


# ---- text ----


@pytest.mark.parametrize("name", ["prompt", "text"])
def test_text_becomes_tokens_under_both_names(client: httpx.Client, name: str) -> None:
    reply = client.post("/tokenize", json={name: "hé"}).json()
    assert reply == {"tokens": [104, 195, 169], "count": 3, "max_model_len": 512}


def test_long_text_and_lists_of_texts_become_tokens(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"prompt": "a" * 50_000}).json()["count"] == 50_000
    reply = client.post("/tokenize", json={"prompt": ["ab", ""]}).json()
    assert (reply["tokens"], reply["count"]) == ([[97, 98], []], [2, 0])


def test_more_text_than_one_call_may_bring_is_refused(client: httpx.Client) -> None:
    for path, body in (
        ("/tokenize", {"prompt": "a" * 500_001}),
        ("/tokenize", {"prompt": ["a" * 1000] * 501}),
        ("/detokenize", {"tokens": [97] * 200_001}),
        ("/detokenize", {"tokens": [[97] * 1000] * 201}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 413
        assert "one call takes" in response.json()["error"]["message"]


def test_tokens_become_text_again(client: httpx.Client) -> None:
    assert client.post("/detokenize", json={"tokens": [104, 195, 169]}).json() == {"text": "hé", "prompt": "hé"}
    assert client.post("/detokenize", json={"tokens": [[97], [98]]}).json()["text"] == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "text": "b"}, 400),
        ("/tokenize", {"prompt": 5}, 400),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404),
        ("/detokenize", {}, 400),
        ("/detokenize", {"tokens": "abc"}, 400),
        ("/detokenize", {"tokens": [256]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": [[256]]}, 400),
        ("/detokenize", {"tokens": [1, [2]]}, 400),
        ("/abort_request", {}, 400),
        ("/abort_request", {"rid": []}, 400),
        ("/abort_request", {"rid": 5}, 400),
    ],
)
def test_bad_bodies_are_refused(client: httpx.Client, path: str, body: dict[str, Any], status: int) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


# ---- abort and flush ----


def run(client: httpx.Client, served: Served, rid: str) -> Any:
    """A stream that is under way."""
    return client.stream("POST", "/generate", json={"text": "hello", "rid": rid, "stream": True})


def test_an_abort_says_which_ended_and_which_were_unknown(client: httpx.Client, served: Served) -> None:
    served.on_loop(served.engine.hold)
    with run(client, served, "abc") as one:
        served.engine.until(lambda: len(served.engine.live) == 1)
        # A name is exact: neither a beginning of it nor a longer one will do.
        reply = httpx.post(f"{served.url}/abort_request", json={"rid": ["ab", "abc", "abcd"]}).json()
        one.read()
    assert reply == {"success": False, "ended": ["abc"], "pending": [], "unknown": ["ab", "abcd"]}


def test_an_abort_of_all_ends_all(client: httpx.Client, served: Served) -> None:
    served.on_loop(served.engine.hold)
    with run(client, served, "a") as one, httpx.Client(base_url=served.url) as other, run(other, served, "b") as two:
        served.engine.until(lambda: len(served.engine.live) == 2)
        reply = httpx.post(f"{served.url}/abort_request", json={"abort_all": True}).json()
        assert reply == {"success": True, "num_ended": 2, "num_pending": 0}
        assert '"type":"abort"' in one.read().decode()
        assert '"type":"abort"' in two.read().decode()


def test_an_abort_that_does_not_end_in_time_is_pending(
    client: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pawl.actors.control.requests.PATIENCE_S", 0.05)
    served.on_loop(served.engine.hold)
    with run(client, served, "slow") as one:
        served.engine.until(lambda: len(served.engine.live) == 1)
        served.engine.mute = True
        reply = httpx.post(f"{served.url}/abort_request", json={"rid": "slow"}).json()
        served.engine.mute = False
        served.on_loop(served.engine.release)
        one.read()
    assert reply == {"success": True, "ended": [], "pending": ["slow"], "unknown": []}


def test_a_flush_at_rest_succeeds(client: httpx.Client) -> None:
    response = client.post("/flush_cache?timeout=1.5")
    assert response.status_code == 200
    assert response.json()["success"] is True


def test_a_get_changes_nothing_and_the_refusal_names_the_method(client: httpx.Client) -> None:
    for row in ROWS:
        if (row.replayed or row.who is Who.ADMIN) and row is not GET_WEIGHTS:  # which only reads, in SGLang by GET too
            assert "GET" not in row.methods, row.name
    assert client.get("/weights_checker?action=snapshot").status_code == 405
    response = client.get("/flush_cache")
    assert response.status_code == 405
    assert "POST" in response.json()["error"]["message"]


def test_a_flush_with_live_requests_is_refused_and_loses_none(client: httpx.Client, served: Served) -> None:
    served.on_loop(served.engine.hold)
    with run(client, served, "x") as one:
        served.engine.until(lambda: len(served.engine.live) == 1)
        response = httpx.post(f"{served.url}/flush_cache")
        served.on_loop(served.engine.release)
        one.read()
    assert response.status_code == 400
    assert response.json()["running"] == 1
    assert one.status_code == 200


@pytest.mark.parametrize("timeout", ["-1", "soon", "nan", "inf", "1e9", ""])
def test_a_flush_with_a_bad_timeout_is_refused(client: httpx.Client, timeout: str) -> None:
    response = client.post(f"/flush_cache?timeout={timeout}")
    assert response.status_code == 400
    assert "timeout" in response.json()["error"]["message"]


# ---- keys ----


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with Served(api_key="user-key", admin_api_key="admin-key") as served:
        yield served


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), {"authorization": "Bearer"}, bearer("user-ke"), {"authorization": "user-key"}]
)
def test_without_the_key_only_probes_get_through(locked: Served, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=locked.url, headers=headers) as client:
        for path in KEYED_PATHS:
            response = client.get(path)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/completions", json={"prompt": "x"}).json()["error"]["code"] == "invalid_api_key"
        assert client.post("/flush_cache").status_code == 401
        assert client.post("/abort_request", json={"rid": "x"}).status_code == 401
        assert [client.get(path).status_code for path in OPEN_PATHS] == [200, 200, 200]


def test_the_api_key_opens_all_but_control(locked: Served) -> None:
    with httpx.Client(base_url=locked.url, headers=bearer("user-key")) as client:
        assert [client.get(path).status_code for path in KEYED_PATHS] == [200] * len(KEYED_PATHS)
        assert client.post("/flush_cache").status_code == 401
        for path, asked in (("/pause", {}), ("/resume", {}), ("/rpc", {"method": "continue"})):
            assert client.post(path, json=asked).status_code == 401, path
        for body in ({"rid": "x"}, {"rid": ["x", "y"]}, {"abort_all": True}):
            response = client.post("/abort_request", json=body)
            assert response.status_code == 401
            assert "admin" in response.json()["error"]["message"]
        response = client.get("/server_info?detail=true")
        assert response.status_code == 403
        assert "admin" in response.json()["error"]["message"]


def test_the_admin_key_opens_everything(locked: Served) -> None:
    with httpx.Client(base_url=locked.url, headers=bearer("admin-key")) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.post("/flush_cache").status_code == 200
        assert client.post("/abort_request", json={"abort_all": True}).status_code == 200
        assert client.post("/abort_request", json={"rid": "x"}).json()["unknown"] == ["x"]
        assert client.get("/server_info?detail=true").status_code == 200


def test_an_admin_key_alone_locks_control_only() -> None:
    with Served(admin_api_key="admin-key") as served, httpx.Client(base_url=served.url) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.post("/flush_cache").status_code == 401
        assert client.post("/abort_request", json={"rid": "x"}).status_code == 401
        assert client.get("/server_info").status_code == 200
        assert client.get("/server_info?detail=true").status_code == 403


def test_an_api_key_alone_opens_control_too() -> None:
    with Served(api_key="user-key") as served:
        assert httpx.post(f"{served.url}/flush_cache", headers=bearer("user-key")).status_code == 200
        assert httpx.post(f"{served.url}/flush_cache").status_code == 401
