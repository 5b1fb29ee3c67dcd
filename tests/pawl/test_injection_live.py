"""A live server: a function that raises for one request ends that request, and the others' streams are exact."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.open_requests import OpenRequests
from pawl.actors.scheduler import Scheduler
from pawl.actors.text.stream import Stream
from pawl.actors.tokenizer import Tokenizer
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.audit import Verdict, audit
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.intake import Intake
from pawl.loops.requests import Requests
from pawl.loops.select import LoopConfig
from tests.pawl.ghost_server import ghost_parts, ghost_server
from tests.pawl.test_http_crowd import stream

MARK = "marked"
SECRET = 77
"""A token of the marked prompt."""
PLACES: tuple[tuple[type, str], ...] = (
    *((OpenRequests, name) for name in ("open", "accept")),
    *((Tokenizer, name) for name in ("receive", "_understand", "_tokens", "_fitting")),
    *((Scheduler, name) for name in ("_submit", "opened", "ended")),
    *((Intake, "submit"), (Requests, "submit"), (Requests, "close")),
    *((Detokenizer, name) for name in ("_open", "_special", "_end")),
    *((Stream, name) for name in ("__init__", "push", "flush", "done")),
)
KINDS = (ValueError, KeyError, MemoryError)


class Marked:
    """Raises once, in the function that is patched, when it is called for the marked request."""

    def __init__(self, kind: type[Exception], *, after: bool) -> None:
        self.kind = kind
        self.after = after
        self.request: int | None = None
        self.struck = False

    def concerns(self, arguments: tuple[Any, ...]) -> bool:
        """Whether the arguments name the marked request."""
        for each in arguments:
            rid = getattr(each, "rid", None) or getattr(each, "names", None)
            number = each if type(each) is int else getattr(each, "request", None)
            if rid == MARK or (isinstance(rid, tuple) and MARK in rid):
                return True
            if self.request is not None and number == self.request:
                return True
            if hasattr(each, "info") and getattr(each.info, "request", None) == self.request is not None:
                return True
        return False

    def patch(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        """Let the method raise."""
        original: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            strikes = not self.struck and self.concerns(arguments)
            if strikes and not self.after:
                self.struck = True
                raise self.kind(f"it was {SECRET}")
            given = original(*arguments, **named)
            if strikes:
                self.struck = True
                raise self.kind(f"it was {SECRET}")
            return given

        patch.setattr(owner, name, wrapped)
        opened = OpenRequests.open

        def noting(books: OpenRequests, request: int, names: tuple[str, ...], *rest: Any) -> None:
            if MARK in names:
                self.request = request
            opened(books, request, names, *rest)

        if (owner, name) != (OpenRequests, "open"):
            patch.setattr(OpenRequests, "open", noting)


async def one_of_many(address: tuple[str, int], streamed: bool) -> tuple[Any, list[list[int]]]:
    """The answer to the marked request, and what two others got meanwhile."""
    sampling = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True, "stop": ["\x00never"]}
    body = {"input_ids": [SECRET, 2, 3], "rid": MARK, "sampling_params": sampling, "stream": streamed}
    async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=60.0, verify=False) as client:
        answer, *others = await asyncio.gather(
            client.post("/generate", json=body), *(stream(address, [5, index], None) for index in range(2))
        )
        health = await client.get("/health")
    assert health.status_code == 200, health.text
    return answer, others


@pytest.mark.parametrize(
    ("after", "streamed"),
    [
        pytest.param(False, False, id="before, whole"),
        pytest.param(True, True, id="after, streamed"),
        pytest.param(False, True, id="before, streamed", marks=pytest.mark.slow),
        pytest.param(True, False, id="after, whole", marks=pytest.mark.slow),
    ],
)
def test_a_live_server_ends_the_one_request_it_fails_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: bool, streamed: bool
) -> None:
    wrong: list[str] = []
    config = LoopConfig(num_pages=64, page_size=4, max_context=128, max_running=4, prefill_chunk=16)
    parts = ghost_parts(config, tmp_path)
    num_struck = 0
    with ghost_server(parts) as address:
        for index, (owner, name) in enumerate(PLACES):
            marked = Marked(KINDS[index % len(KINDS)], after=after)
            with monkeypatch.context() as patch:
                marked.patch(patch, owner, name)
                answer, others = asyncio.run(one_of_many(address, streamed))
            num_struck += marked.struck
            whole = expected([SECRET, 2, 3], 6)
            where = f"{owner.__name__}.{name}"
            if others != [expected([5, each], len(tokens)) for each, tokens in enumerate(others)]:
                wrong.append(f"{where}: others were told {others}")
            if not ended_well(answer, whole):
                wrong.append(f"{where}: {answer.status_code} {answer.text[-300:]}")
        metrics = httpx.get(f"http://{address[0]}:{address[1]}/metrics", verify=False).text
    assert wrong == []
    assert num_struck > len(PLACES) // 2
    counts = [line for line in metrics.splitlines() if line.startswith("pawl_contained_failures_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in counts) >= num_struck // 2
    logged = "".join(capsys.readouterr())
    assert f"it was {SECRET}" not in logged
    assert parts.trace_path is not None
    report = audit(parts.trace_path, [OneDecisionLog()])
    assert report.verdict is Verdict.PASS, report.text()


def ended_well(answer: httpx.Response, whole: list[int]) -> bool:
    """It was told of the failure, or had everything (where what raised was after its end)."""
    if "the server failed" in answer.text:
        # 200: its first tokens had left when it failed.
        return answer.status_code in (200, 500) and f"it was {SECRET}" not in answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return bool(events[-1]["output_ids"] == whole)
    return answer.status_code == 200 and bool(answer.json()["output_ids"] == whole)
