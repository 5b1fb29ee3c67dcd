"""A crowd of streaming clients, a third of them vanishing, on memory for a tenth: a ghost, then the real model."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawl.build.assembly import load_parts
from pawl.build.parts import Parts, assemble
from pawl.config import build_config
from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.audit import Verdict, audit
from pawl.loops.select import LoopConfig
from tests.pawl.ghost_server import ghost_parts, ghost_server

CLIENTS = 200
OUTPUT = 40


async def post(address: tuple[str, int], path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, Any]:
    reader, writer = await asyncio.open_connection(*address)
    payload = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
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


async def crowd(address: tuple[str, int], prompts: list[list[int]], leaving: list[int | None]) -> list[list[int]]:
    """All clients at once."""
    return await asyncio.gather(
        *(stream(address, prompt, leave) for prompt, leave in zip(prompts, leaving, strict=True))
    )


async def rest(address: tuple[str, int]) -> bytes:
    """Status line of a flush, which succeeds only when nothing is live any more."""
    reader, writer = await post(address, "/flush_cache?timeout=60", {})
    status = await reader.readline()
    writer.close()
    return status


def visitors(count: int, vocabulary: int) -> tuple[list[list[int]], list[int | None]]:
    """Prompts of 20 to 52 tokens that share beginnings, and after how many events each client leaves, if it does."""
    source = random.Random(3)
    shared = [source.randrange(100, vocabulary) for _ in range(32)]
    prompts = [
        shared[: source.randrange(33)] + [source.randrange(100, vocabulary) for _ in range(20)] for _ in range(count)
    ]
    return prompts, [source.randrange(1, OUTPUT) if index % 3 == 0 else None for index in range(count)]


def tight(count: int, **changes: Any) -> LoopConfig:
    """Memory for a tenth of what `count` visitors would need at once."""
    settings: dict[str, Any] = {
        "num_pages": count * (60 + OUTPUT) // 16 // 10,
        "page_size": 16,
        "max_context": 512,
        "max_running": 64,
        "prefill_chunk": 128,
        "lookahead": 8,
    }
    return LoopConfig(**(settings | changes))


def passes(parts: Parts) -> bool:
    """Whether the trace of a server that has stopped is whole and shows no violation."""
    assert parts.trace_path is not None
    report = audit(parts.trace_path)
    assert report.verdict is Verdict.PASS, report.text()
    return True


@pytest.mark.parametrize("pacing", ["overlap", "lockstep"])
def test_those_who_stay_get_exactly_their_tokens_and_nothing_leaks(tmp_path: Path, pacing: str) -> None:
    prompts, leaving = visitors(CLIENTS, 256)
    parts = ghost_parts(tight(CLIENTS, pacing=pacing), tmp_path)
    with ghost_server(parts) as address:
        outputs = asyncio.run(crowd(address, prompts, leaving))
        assert b" 200 " in asyncio.run(rest(address))
    for prompt, leave, tokens in zip(prompts, leaving, outputs, strict=True):
        whole = expected(prompt, OUTPUT)
        assert tokens == (whole if leave is None else whole[: len(tokens)])
    assert isinstance(parts.runner, Ghost)
    assert parts.runner.faults == []
    assert passes(parts)


def real_parts(loop_config: LoopConfig, trace_dir: Path, dtype: str) -> Parts:
    """SmolLM2 on the compiled kernels, with the memory of `loop_config`."""
    settings = {
        "backend": "native",
        "dtype": dtype,
        "kv_tokens": loop_config.num_pages * loop_config.page_size,
        "max_running": loop_config.max_running,
    }
    try:
        loaded = load_parts(build_config(settings | {"trace": False}))
    except BackendUnavailable as missing:
        pytest.skip(str(missing))
    # The trace begins with the settings that the loop has.
    return assemble(
        build_config(settings | {"trace_dir": str(trace_dir)}),
        source=loaded.source,
        vocabulary=loaded.vocabulary,
        runner=loaded.runner,
        loop_config=msgspec.structs.replace(loop_config, weights=loaded.loop_config.weights),
        facts={"backend": "native"},
        began=time.monotonic(),
        close=loaded.close,
    )


@pytest.mark.parametrize(
    ("dtype", "count"),
    [
        pytest.param("bf16", 12, marks=pytest.mark.slow),
        pytest.param("bf16", CLIENTS, marks=pytest.mark.slow),
        pytest.param("fp32", CLIENTS, marks=pytest.mark.slow),
    ],
)
def test_the_real_model_answers_in_a_crowd_as_it_does_alone(tmp_path: Path, dtype: str, count: int) -> None:
    prompts, leaving = visitors(count, 49_000)
    parts = real_parts(tight(count, max_running=32), tmp_path / "crowd", dtype)
    with ghost_server(parts) as address:
        outputs = asyncio.run(crowd(address, prompts, leaving))
        assert b" 200 " in asyncio.run(rest(address))
    assert passes(parts)
    alone = real_parts(tight(CLIENTS, max_running=1, cache="none"), tmp_path / "alone", dtype)
    with ghost_server(alone, cache="none") as address:
        for prompt, leave, tokens in zip(prompts, leaving, outputs, strict=True):
            whole = asyncio.run(stream(address, prompt, None))
            assert tokens == (whole if leave is None else whole[: len(tokens)])
