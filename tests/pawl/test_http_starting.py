"""From the first moment the port answers: how far loading is, then what the model says; a signal is heard at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
import uvloop

from pawl.build.ghost import load_ghost
from pawl.build.parts import Parts
from pawl.config import ServerConfig, build_config
from pawl.engine import Engine
from pawl.gpu.step_runner import Abilities
from pawl.http.server import EngineServer, open_socket
from tests.pawl.ghost_server import PATIENCE_S


class Loading:
    """A server whose model is there when the test says so."""

    def __init__(self, config: ServerConfig) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self.ready: list[str] = []
        self.status: Future[int] = Future()
        self.listener = open_socket(config.host, config.port)
        self.url = "http://127.0.0.1:{1}".format(*self.listener.getsockname())
        self.server = EngineServer(config, lambda report: self._load(config, report))
        self._thread = threading.Thread(target=self._run, name="server")

    def _load(self, config: ServerConfig, report: Callable[[float], None]) -> Parts:
        report(0.4)
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        return load_ghost(config)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self.status.set_result(runner.run(self.server.run(self.listener, self._opened)))
        except Exception as error:
            self.status.set_exception(error)

    def _opened(self, url: str, abilities: Abilities) -> None:
        self.ready.append(url)

    def __enter__(self) -> Loading:
        self._thread.start()
        assert self.begun.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop("the test is over")
        self.go_on.set()
        self._thread.join(PATIENCE_S)
        self.listener.close()
        assert not self._thread.is_alive()


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return build_config({"model": "ghost", "port": 0, "trace_dir": str(tmp_path)})


def until_ready(url: str) -> httpx.Response:
    """What `/health` says once it is not loading any more."""
    while (reply := httpx.get(f"{url}/health", timeout=PATIENCE_S)).status_code == 503:
        pass
    return reply


def test_until_the_model_is_there_every_answer_is_503_and_says_how_far_it_is(config: ServerConfig) -> None:
    with Loading(config) as loading:
        health = httpx.get(f"{loading.url}/health", timeout=PATIENCE_S)
        assert (health.status_code, health.json()) == (503, {"status": "loading 40 %"})
        prompt = {"prompt": "a", "max_tokens": 1}
        asked = httpx.post(f"{loading.url}/v1/completions", json=prompt, timeout=PATIENCE_S)
        assert (asked.status_code, asked.json()["error"]["code"]) == (503, "loading")
        assert int(health.headers["retry-after"]) == int(asked.headers["retry-after"]) > 0
        assert loading.ready == []
        loading.go_on.set()
        assert until_ready(loading.url).json()["status"] == "ok"
        assert loading.ready == [loading.url]
        assert httpx.post(f"{loading.url}/v1/completions", json=prompt, timeout=PATIENCE_S).status_code == 200
    assert loading.status.result(PATIENCE_S) == 0


def test_who_may_not_ask_may_not_while_the_model_loads_either(tmp_path: Path) -> None:
    invited = "https://mine.example"
    flags = {"model": "ghost", "port": 0, "trace_dir": str(tmp_path), "cors_origins": invited}
    with Loading(build_config(flags)) as loading, httpx.Client(base_url=loading.url, timeout=PATIENCE_S) as client:
        foreign = [
            client.get("/health", headers={"host": "evil.example"}),
            client.post("/v1/completions", json={}, headers={"host": "evil.example"}),
            client.post("/v1/completions", json={}, headers={"origin": "https://evil.example"}),
        ]
        assert [reply.status_code for reply in foreign] == [403] * 3
        mine = client.get("/health", headers={"origin": invited})
        assert (mine.status_code, mine.headers["access-control-allow-origin"]) == (503, invited)


def test_a_server_that_is_stopped_while_it_loads_does_not_wait_for_the_model(config: ServerConfig) -> None:
    with Loading(config) as loading:
        loading.server.stop("SIGTERM")
        assert loading.status.result(PATIENCE_S) == 0
        assert not loading.go_on.is_set()


def test_a_server_that_is_stopped_once_its_model_is_there_is_not_opened(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loading(config) as loading:

        async def stopped(*_: object) -> None:
            loading.server.stop("SIGTERM")
            while loading.listener.fileno() != -1:
                await asyncio.sleep(0)

        monkeypatch.setattr("pawl.build.lora.load_adapters", stopped)
        loading.go_on.set()
        assert loading.status.result(PATIENCE_S) == 0
        assert loading.ready == []


def test_garbage_is_collected_before_anybody_watches_how_the_event_loop_turns(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as that takes, nothing else runs; what is there then is not looked at again."""
    done: list[str] = []
    collect, freeze, start = gc.collect, gc.freeze, Engine.start
    monkeypatch.setattr("pawl.http.server.gc.collect", lambda: done.append("collected") or collect())
    monkeypatch.setattr("pawl.http.server.gc.freeze", lambda: done.append("frozen") or freeze())

    def started(engine: Engine, loop: asyncio.AbstractEventLoop | None = None) -> None:
        done.append("started")
        start(engine, loop)

    monkeypatch.setattr(Engine, "start", started)
    with Loading(config) as loading:
        loading.go_on.set()
        until_ready(loading.url)
        assert done == ["collected", "started", "frozen"]


def test_what_loading_raises_ends_the_server(config: ServerConfig) -> None:
    with Loading(config) as loading:
        loading.failure = OSError("the disk is gone")
        loading.go_on.set()
        with pytest.raises(OSError, match="the disk is gone"):
            loading.status.result(PATIENCE_S)
    assert loading.ready == []
