"""Clients that hang up, failures in the middle of a stream, slow readers, and the orderly end of the server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from pawl.http.server import open_socket, uvicorn_logs
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort
from tests.pawl.fake_engine import PATIENCE_S, Served
from tests.pawl.reading import events, everything, post

PATHS = {
    "/v1/completions": {"prompt": "hello", "max_tokens": 400},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/generate": {"text": "hello", "sampling_params": {"max_new_tokens": 400}},
}


@contextlib.contextmanager
def raw_call(served: Served, path: str, stream: bool) -> Iterator[socket.socket]:
    """A request over a bare socket, which the test may close as it likes."""
    body = json.dumps({**PATHS[path], "stream": stream}).encode()
    with socket.create_connection(served.address, PATIENCE_S) as connection:
        connection.sendall(post(body, path))
        yield connection


# ---- clients that hang up ----


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_hangs_up_aborts_its_request(
    client: httpx.Client, served: Served, path: str, stream: bool
) -> None:
    engine = served.engine
    served.on_loop(engine.hold)
    before = engine.gateway.totals.ended[Cause.DISCONNECT]
    del engine.seen[:]
    with raw_call(served, path, stream):
        engine.until(lambda: len(engine.live) == 1)
    engine.until(lambda: engine.gateway.num_live == 0)
    aborts = [message for message in engine.seen if isinstance(message, Abort)]
    assert [abort.cause for abort in aborts] == [Cause.DISCONNECT]
    assert engine.gateway.totals.ended[Cause.DISCONNECT] == before + 1


def test_a_client_that_hangs_up_takes_nobody_along(client: httpx.Client, served: Served) -> None:
    engine = served.engine
    served.on_loop(engine.hold)
    with client.stream("POST", "/generate", json={**PATHS["/generate"], "stream": True}) as stays:
        engine.until(lambda: len(engine.live) == 1)
        with raw_call(served, "/generate", stream=True):
            engine.until(lambda: len(engine.live) == 2)
        engine.until(lambda: engine.gateway.num_live == 1)
        served.on_loop(engine.release)
        stays.read()
    assert events(stays)[-1]["meta_info"]["completion_tokens"] == 400


# ---- failures in the middle ----


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_failure_in_the_middle_is_an_error_event_and_the_end(client: httpx.Client, served: Served, path: str) -> None:
    engine = served.engine
    served.on_loop(engine.hold)
    with client.stream("POST", path, json={**PATHS[path], "n": 2, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        served.on_loop(lambda: engine.end(Cause.WORKER_LOST))
        text = "\n".join(lines)
    assert response.status_code == 200
    last = [line for line in text.split("\n") if line.startswith("data: ")][-2:]
    assert last[1] == "data: [DONE]"
    error = json.loads(last[0].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "worker_lost")
    assert '"finish_reason":"' not in text


def test_a_native_stream_tells_a_failure_in_its_finish_reason(client: httpx.Client, served: Served) -> None:
    engine = served.engine
    served.on_loop(engine.hold)
    with client.stream("POST", "/generate", json={**PATHS["/generate"], "stream": True}) as response:
        engine.until(lambda: any(live.tokens for live in engine.live.values()))
        chunks = response.iter_text()
        begin = next(chunks)
        served.on_loop(lambda: engine.end(Cause.TIMEOUT, "too slow"))
        text = begin + "".join(chunks)
    last = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
    assert last["text"] == "h"
    assert last["meta_info"]["finish_reason"] == {"type": "abort", "message": "too slow", "status_code": 408}
    assert text.endswith("data: [DONE]\n\n")


def test_the_status_line_does_not_wait_for_ever(
    client: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pawl.http.replies.HEADER_PATIENCE_S", 0.05)
    served.on_loop(served.engine.fall_silent)
    with client.stream("POST", "/generate", json={**PATHS["/generate"], "stream": True}) as response:
        assert response.status_code == 200, "the status came although no token did"
        served.on_loop(served.engine.release)
        response.read()
    assert events(response)[-1]["meta_info"]["completion_tokens"] == 400


# ---- slow readers ----


def test_a_client_that_does_not_read_costs_one_merged_output(client: httpx.Client, served: Served) -> None:
    """The engine finishes although nobody reads, and what is read later is whole."""
    engine = served.engine
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 500}, "stream": True}
    data = json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE_S)
        connection.connect(served.address)
        before = engine.gateway.totals.ended[Cause.LENGTH]
        head = (
            "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        engine.until(lambda: engine.gateway.totals.ended[Cause.LENGTH] == before + 1)
        received = b""
        while part := connection.recv(65_536):
            received += part
    assert b"data: [DONE]" in received
    assert ("hello" * 100).encode() in received


# ---- the end ----


@pytest.mark.parametrize("path", PATHS)
def test_stopping_ends_open_streams_with_a_last_word(path: str) -> None:
    with Served() as served, httpx.Client(base_url=served.url) as client:
        served.on_loop(served.engine.hold)
        with client.stream("POST", path, json={**PATHS[path], "stream": True}) as response:
            served.begin_stop()
            response.read()
        *_, last = events(response)
        served.join()
        if path == "/generate":
            assert last["meta_info"]["finish_reason"]["status_code"] == 503
        else:
            assert last["error"]["code"] == "drained"
        assert served.engine.gateway.num_live == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


def test_what_finishes_within_the_grace_finishes_whole() -> None:
    with Served(grace_s=30.0) as served, httpx.Client(base_url=served.url) as client:
        served.on_loop(served.engine.hold)
        body = {"prompt": "hello", "max_tokens": 5, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            served.begin_stop()
            served.engine.until(lambda: served.engine.gateway.draining)
            served.on_loop(served.engine.release)
            response.read()
        assert events(response)[-1]["choices"][0]["finish_reason"] == "length"
        served.join()


def test_a_second_signal_asks_and_a_third_does_not_wait() -> None:
    with Served(grace_s=3600.0) as served, httpx.Client(base_url=served.url) as client:
        served.on_loop(served.engine.hold)
        with client.stream("POST", "/generate", json={**PATHS["/generate"], "stream": True}):
            served.begin_stop()
            served.engine.until(lambda: served.engine.gateway.draining)
            served.begin_stop()
            assert served.server is not None
            assert not served.server.force_exit
            served.begin_stop()
            served.join()


@pytest.mark.parametrize("signals", [1, 3])
@pytest.mark.parametrize("path", ["/v1/completions", "/flush_cache"])
def test_who_waits_when_a_server_waits_no_longer_is_told_that_it_stops(
    path: str, signals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body has not come, or what it has ordered takes long. One signal is the end of the time for closing, three
    leave none."""
    if signals == 1:
        monkeypatch.setattr("pawl.http.server.CLOSING_S", 0)
    with capture_logs() as logs, uvicorn_logs(), Served(grace_s=0.0 if signals == 1 else 3600.0) as served:
        served.engine.mute = True
        sent = post(b"{", path, length=100) if path == "/v1/completions" else post(b"{}", path)
        with socket.create_connection(served.address, PATIENCE_S) as connection:
            connection.sendall(sent)
            served.until(lambda: bool(served.server and served.server.server_state.tasks))
            for _ in range(signals):
                served.begin_stop()
            received = everything(connection)
        served.join()
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head
    assert json.loads(body)["error"]["message"] == "the server is shutting down"
    assert not [entry for entry in logs if entry.get("exc_info")]


def test_who_does_not_read_its_reply_to_the_end_is_cut_when_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pawl.http.server.CLOSING_S", 0)
    with capture_logs() as logs, uvicorn_logs(), Served() as served, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(served.address)
        sampling = {"max_new_tokens": 400, "n": 64}
        connection.sendall(post(json.dumps({"text": "hello", "sampling_params": sampling, "stream": True}).encode()))
        served.until(lambda: any(each.flow.write_paused for each in served.connections()))
        served.begin_stop()
        served.join()
        assert b"[DONE]" not in everything(connection)
    assert served.engine.gateway.num_live == 0
    assert not [entry for entry in logs if entry.get("exc_info")]


SIGNALLED = """
import asyncio, sys, uvloop
from pawl.http.app import create_app
from pawl.http.server import Server, open_socket, uvicorn_logs
from tests.pawl.fake_engine import Bytes, FakeEngine, INFO

async def main():
    engine = FakeEngine()
    engine.hold()
    server = Server(create_app(engine.gateway, INFO, Bytes()), engine.gateway, 0.0)
    with open_socket("127.0.0.1", 0) as listener, uvicorn_logs():
        serving = asyncio.ensure_future(server.serve([listener]))
        await server.listening.wait()
        print(listener.getsockname()[1], file=sys.stderr, flush=True)
        await serving
    print("the engine can still be stopped", file=sys.stderr, flush=True)

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_and_leaves_time_to_stop_the_engine(number: signal.Signals) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", SIGNALLED], cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        url = f"http://127.0.0.1:{int(process.stderr.readline())}"
        with httpx.stream("POST", f"{url}/generate", json={**PATHS["/generate"], "stream": True}) as response:
            os.kill(process.pid, number)
            response.read()
        assert events(response)[-1]["meta_info"]["finish_reason"]["type"] == "abort"
        assert process.stderr.read().endswith("the engine can still be stopped\n")
        assert process.wait(PATIENCE_S) == 0


# ---- sockets and logs ----


def test_an_address_in_use_is_an_error_before_anything_else() -> None:
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        open_socket("127.0.0.1", taken.getsockname()[1])


def test_what_uvicorn_logs_goes_where_our_logs_go() -> None:
    with capture_logs() as logs, uvicorn_logs():
        logging.getLogger("uvicorn.error").error("something %s", "odd")
        logging.getLogger("uvicorn.error").info("chatter")
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("something odd", "error")]
    assert not logging.getLogger("uvicorn").handlers
