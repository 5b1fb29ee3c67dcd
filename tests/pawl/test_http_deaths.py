"""An actor dies in the middle of a handler, by what containment cannot hold: health, bystanders and trace say so."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.gateway import Gateway
from pawl.actors.scheduler import Scheduler
from pawl.actors.tokenizer import Tokenizer
from pawl.actors.worker import Worker
from pawl.http.server import EngineServer
from pawl.lifecycle.audit import Verdict, audit
from pawl.loops.loop import Loop
from tests.pawl.ghost_server import ghost_parts, ghost_server
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


@pytest.mark.parametrize("error", [SystemExit(3), RuntimeError("the words of a prompt")], ids=["exit", "error"])
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
