"""A crowd of streaming clients, a third of them vanishing, on memory for a tenth of them."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from lifecycle.audit import Verdict, audit
from loops.select import LoopConfig
from tests.loops.ghost import expected
from tests.pawl.ghost_server import ghost_parts, ghost_server

CLIENTS = 200
OUTPUT = 40


async def post(address: tuple[str, int], path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, Any]:
    reader, writer = await asyncio.open_connection(*address)
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    writer.write(head.encode() + payload)
    await writer.drain()
    return reader, writer


async def stream(address: tuple[str, int], prompt: list[int], leave_after: int | None) -> list[int]:
    """Output ids of one streamed request; closes the connection after `leave_after` events."""
    sampling = {"max_new_tokens": OUTPUT, "temperature": 0, "ignore_eos": True}
    reader, writer = await post(
        address, "/generate", {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    )
    tokens: list[int] = []
    events = 0
    try:
        while leave_after is None or events < leave_after:
            line = await reader.readline()
            if not line.startswith(b"data:"):
                assert line, "the server hung up"
                continue
            if line.strip() == b"data: [DONE]":
                break
            event = json.loads(line[5:])
            assert "error" not in event, event
            assert event["output_ids"][: len(tokens)] == tokens, "a stream never takes back what it said"
            tokens = event["output_ids"]
            events += 1
    finally:
        writer.close()
    return tokens


@pytest.mark.parametrize("pacing", ["overlap", "lockstep"])
def test_those_who_stay_get_exactly_their_tokens_and_nothing_leaks(tmp_path: Path, pacing: str) -> None:
    source = random.Random(3)
    shared = [source.randrange(1000) for _ in range(32)]
    prompts = [shared[: source.randrange(33)] + [source.randrange(1000) for _ in range(20)] for _ in range(CLIENTS)]
    leaving = [source.randrange(1, OUTPUT) if index % 3 == 0 else None for index in range(CLIENTS)]
    # A tenth of what all of them would need at once.
    num_pages = CLIENTS * (60 + OUTPUT) // 16 // 10
    loop_config = LoopConfig(
        num_pages=num_pages,
        page_size=16,
        max_context=512,
        max_running=64,
        prefill_chunk=128,
        pacing=pacing,
        lookahead=8,
    )
    parts = ghost_parts(loop_config, tmp_path)

    async def crowd(address: tuple[str, int]) -> list[list[int]]:
        return await asyncio.gather(
            *(stream(address, prompt, leave) for prompt, leave in zip(prompts, leaving, strict=True))
        )

    async def rest(address: tuple[str, int]) -> bytes:
        """Flushing succeeds only when nothing is live any more."""
        reader, writer = await post(address, "/flush_cache?timeout=20", {})
        status = await reader.readline()
        writer.close()
        return status

    with ghost_server(parts) as address:
        outputs = asyncio.run(crowd(address))
        assert b" 200 " in asyncio.run(rest(address))
    for prompt, leave, tokens in zip(prompts, leaving, outputs, strict=True):
        whole = expected(prompt, OUTPUT)
        assert tokens == (whole if leave is None else whole[: len(tokens)])
    assert parts.trace_path is not None
    report = audit(parts.trace_path)
    assert report.verdict is Verdict.PASS, report
