"""An actor dies in the middle of a handler, by what containment cannot hold, or stands still: health, bystanders, log
and trace say so."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.gateway import Gateway
from pawl.actors.scheduler import Scheduler
from pawl.actors.tokenizer import Tokenizer
from pawl.actors.watchdog import FREEZE_S, PULSE_S
from pawl.actors.worker import Worker
from pawl.gpu.ghost.runner import Ghost
from pawl.http.server import EngineServer
from pawl.lifecycle.audit import Verdict, audit
from pawl.loops.loop import Loop
from tests.pawl.ghost_server import PATIENCE_S, ghost_parts, ghost_server
from tests.pawl.test_http_crowd import post, tight


class Death:
    """Replaces a method by one that raises in its last moment, or before it does anything, once it is armed."""

    def __init__(self, error: BaseException, *, late: bool) -> None:
        self.armed = threading.Event()
        self._error = error
        self._late = late

    def of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def dying(*arguments: Any) -> Any:
            if self.armed.is_set() and not self._late:
                raise self._error
            result = method(*arguments)
            if self.armed.is_set():
                raise self._error
            return result

        return dying


def hold(monkeypatch: pytest.MonkeyPatch, until: threading.Event) -> None:
    """A client has some tokens; no step more is computed before that."""
    num_received, receive = itertools.count(), Worker.receive

    def receives(*arguments: Any) -> None:
        if next(num_received) >= 3:
            until.wait(PATIENCE_S)
        receive(*arguments)

    monkeypatch.setattr(Worker, "receive", receives)


def loss_of(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The gateway has heard of a death."""
    heard, lose = threading.Event(), Gateway._lose

    def hears(*arguments: Any) -> None:
        lose(*arguments)
        heard.set()

    monkeypatch.setattr(Gateway, "_lose", hears)
    return heard


async def told(address: tuple[str, int], death: Death) -> dict[str, Any]:
    """What the client of a long stream is told at its end, when somebody dies after its first token."""
    sampling = {"max_new_tokens": 400, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": [101, 102, 103], "sampling_params": sampling, "stream": True}
    reader, writer = await post(address, "/generate", body)
    last: dict[str, Any] = {}
    while (line := await reader.readline()) and line != b"data: [DONE]\n":
        if line.startswith(b"data: {"):
            last = json.loads(line[5:])
            if not death.armed.is_set():
                death.armed.set()
                # The tokenizer has nothing to do for a stream that runs: this is for it to die of.
                _, second = await post(address, "/generate", body)
    second.close()
    writer.close()
    return last


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit("the words of a prompt")], ids=["number", "words"])
@pytest.mark.parametrize(
    ("name", "owner", "method", "late", "verdict"),
    [
        ("scheduler", Scheduler, "settled", False, Verdict.INCOMPLETE),
        ("scheduler", Scheduler, "settled", True, Verdict.INCOMPLETE),
        # The step is committed and its tokens have not left; and the other way round.
        ("scheduler", Loop, "executed", True, Verdict.INCOMPLETE),
        ("scheduler", Scheduler, "launch", False, Verdict.INCOMPLETE),
        ("worker", Worker, "settled", False, Verdict.PASS),
        ("tokenizer", Tokenizer, "settled", False, Verdict.PASS),
        ("detokenizer", Detokenizer, "settled", False, Verdict.PASS),
        ("gateway", Gateway, "settled", True, Verdict.PASS),
    ],
)
def test_a_death_is_told_at_once_with_its_name_and_the_trace_is_honest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    owner: type,
    method: str,
    late: bool,
    verdict: Verdict,
    error: BaseException,
) -> None:
    death = Death(error, late=late)
    monkeypatch.setattr(owner, method, death.of(getattr(owner, method)))
    # The stream must not end before; the tokenizer has no part in it.
    hold(monkeypatch, loss_of(monkeypatch) if owner is Tokenizer else death.armed)
    # The server stays a little, so that it can be asked.
    monkeypatch.setattr(EngineServer, "_engine_failed", lambda *_: None)
    parts = ghost_parts(tight(200), tmp_path)
    with ghost_server(parts) as address:
        end = asyncio.run(told(address, death))["meta_info"]["finish_reason"]
        health = httpx.get(f"http://{address[0]}:{address[1]}/health")
    what = f"{name} is gone: failed: {type(error).__name__}"
    assert end == {"type": "abort", "message": what, "status_code": 500}
    assert health.status_code == 503
    assert (health.json()["status"], health.json()["cause"]) == (what, "internal")
    assert parts.trace_path is not None
    report = audit(parts.trace_path)
    assert report.verdict is verdict, report.text()


class Log:
    """The watchdog's log; `told` is set by its first error."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.lines: list[str] = []

    def error(self, event: str, **_: Any) -> None:
        self.lines.append(event)
        self.told.set()

    def warning(self, event: str, **_: Any) -> None:
        self.lines.append(event)

    info = warning


def test_a_frozen_event_loop_is_told_by_the_watchdog_while_it_stands_and_by_health_when_it_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, armed, settled = Log(), threading.Event(), Gateway.settled

    def freezing(gateway: Gateway) -> None:
        if armed.is_set():
            # Nobody but the watchdog can end this: it is the only one that still says something.
            assert log.told.wait(PATIENCE_S)
        settled(gateway)

    monkeypatch.setattr("pawl.actors.watchdog.log", log)
    monkeypatch.setattr(Gateway, "settled", freezing)
    with ghost_server(ghost_parts(tight(200), tmp_path)) as address:
        armed.set()
        url = f"http://{address[0]}:{address[1]}"
        reply = httpx.post(f"{url}/generate", json={"text": "hi", "sampling_params": {"max_new_tokens": 2}}, timeout=60)
        assert reply.status_code == 200
        assert httpx.get(f"{url}/health").json()["longest_freeze_s"] >= FREEZE_S - PULSE_S
        assert "pawl_longest_freeze_seconds" in httpx.get(f"{url}/metrics").text
    assert "stands still" in log.lines[0]


def test_a_worker_that_hangs_shows_in_health_long_before_it_is_a_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, launch = threading.Event(), Ghost.launch

    def hanging(ghost: Ghost, batch: Any) -> Any:
        assert go_on.wait(PATIENCE_S)
        return launch(ghost, batch)

    monkeypatch.setattr(Ghost, "launch", hanging)
    with ghost_server(ghost_parts(tight(200), tmp_path)) as address, ThreadPoolExecutor(1) as others:
        url = f"http://{address[0]}:{address[1]}"
        body = {"text": "hi", "sampling_params": {"max_new_tokens": 2}}
        reply = others.submit(httpx.post, f"{url}/generate", json=body, timeout=60)
        health = httpx.get(f"{url}/health")
        while not health.json()["oldest_step_s"]:
            health = httpx.get(f"{url}/health")
        go_on.set()
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        assert reply.result().status_code == 200
