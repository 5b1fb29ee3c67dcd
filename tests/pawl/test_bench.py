"""The benchmark measures what happened: against a real server with known answers, and streams with known times."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.messages.generate import Submit
from pawl.bench.client import Client, HttpError
from pawl.bench.events import event_data
from pawl.bench.measures import Latency, Sample, summarise
from pawl.bench.online import PATHS, Plan, Route, make_bodies, run_load
from pawl.bench.workload import Workload
from pawl.cli import main
from tests.pawl.fake_engine import VOCABULARY_SIZE, Served

WORKLOAD = Workload(num_prompts=6, input_length=8, output_length=5)


# ---- workload ----


@given(
    count=st.integers(1, 20), length=st.integers(1, 40), shared=st.integers(0, 40), vocabulary=st.integers(2, 50_000)
)
def test_prompts_have_their_length_their_common_beginning_and_tokens_of_the_vocabulary(
    count: int, length: int, shared: int, vocabulary: int
) -> None:
    shared = min(shared, length)
    workload = Workload(num_prompts=count, input_length=length, output_length=1, shared_prefix=shared)
    prompts = workload.token_prompts(vocabulary)
    assert [len(prompt) for prompt in prompts] == [length] * count
    assert {tuple(prompt[:shared]) for prompt in prompts} == {tuple(prompts[0][:shared])}
    assert all(0 < token < vocabulary for prompt in prompts for token in prompt)
    assert workload.token_prompts(vocabulary) == prompts


def test_another_seed_makes_other_prompts() -> None:
    other = msgspec.structs.replace(WORKLOAD, seed=1)
    assert other.token_prompts(30_000) != WORKLOAD.token_prompts(30_000)


def test_arrivals_come_at_the_rate_and_as_irregular_as_poisson() -> None:
    workload = Workload(num_prompts=4001, input_length=1, output_length=1)
    moments = list(workload.arrivals(rate=20.0))
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert moments[0] == 0.0
    assert mean == pytest.approx(1 / 20, rel=0.05)
    # The standard deviation of an exponential distribution is its mean; of even spacing it is 0.
    assert deviation == pytest.approx(mean, rel=0.1)


# ---- figures ----


def answered(sent: float, outputs: Sequence[float], num_output: int) -> Sample:
    sample = Sample(sent=sent, num_prompt=10, num_output=num_output, num_cached=4)
    for moment in outputs:
        sample.arrived(moment)
    return sample


def test_latencies_are_those_of_the_definitions() -> None:
    # Sent at 1.0; outputs at 1.5, 1.6, 1.9: the last of them carries two tokens.
    summary = summarise([answered(1.0, [1.5, 1.6, 1.9], num_output=4)], seconds=2.0)
    first, token, gap, whole = (
        summary.time_to_first_token_ms,
        summary.time_per_output_token_ms,
        summary.inter_token_latency_ms,
        summary.end_to_end_ms,
    )
    assert first is not None
    assert first.mean == first.p50 == first.worst == pytest.approx(500)
    assert token is not None
    assert token.mean == pytest.approx(400 / 3, abs=1e-3)
    assert gap is not None
    assert (gap.mean, gap.worst) == pytest.approx((200, 300))
    assert whole is not None
    assert whole.mean == pytest.approx(900)
    assert (summary.output_tokens_per_s, summary.total_tokens_per_s, summary.requests_per_s) == (2.0, 7.0, 0.5)
    assert (summary.prompt_tokens, summary.cached_tokens, summary.output_tokens) == (10, 4, 4)


def test_failed_requests_count_as_failures_and_nowhere_else() -> None:
    failed = answered(0.0, [5.0], num_output=100)
    failed.error = "HTTP 503"
    summary = summarise([answered(0.0, [1.0], 1), failed, failed], seconds=1.0)
    assert (summary.num_completed, summary.num_failed, summary.errors) == (1, 2, {"HTTP 503": 2})
    assert summary.output_tokens == 1
    assert summary.time_to_first_token_ms == Latency.of([1.0])


def test_a_single_token_has_no_time_per_output_token() -> None:
    summary = summarise([answered(0.0, [1.0], 1)], seconds=1.0)
    assert summary.time_per_output_token_ms is None
    assert summary.inter_token_latency_ms is None


def test_percentiles_order_and_bound_the_values() -> None:
    latency = Latency.of([value / 1000 for value in range(1, 101)])
    assert latency is not None
    assert (latency.mean, latency.worst) == (50.5, 100.0)
    assert latency.p50 < latency.p90 < latency.p99 < latency.worst


# ---- a real server ----


def load(served: Served, workload: Workload = WORKLOAD, **options: Any) -> list[Sample]:
    advanced: list[int] = []
    plan = Plan(url=served.url, vocabulary_size=VOCABULARY_SIZE, **options)
    samples, seconds = asyncio.run(run_load(plan, workload, advanced.append))
    assert seconds > 0
    assert sum(advanced) == sum(sample.error != UNANSWERED for sample in samples)
    return samples


UNANSWERED = "not answered within the time limit"


@pytest.mark.parametrize("pace", [{"concurrency": 2}, {"rate": 500.0}], ids=["closed loop", "Poisson"])
@pytest.mark.parametrize("route", PATHS)
def test_every_route_counts_what_the_server_did(served: Served, route: Route, pace: dict[str, Any]) -> None:
    samples = load(served, route=route, **pace)
    assert [sample.error for sample in samples] == [None] * WORKLOAD.num_prompts
    assert {sample.num_output for sample in samples} == {WORKLOAD.output_length}
    assert {sample.num_cached for sample in samples} == {2}
    if route != "chat":
        assert {sample.num_prompt for sample in samples} == {WORKLOAD.input_length}
    for sample in samples:
        assert sample.first is not None
        assert sample.last is not None
        assert sample.sent < sample.first <= sample.last
        assert len(sample.gaps) < WORKLOAD.output_length
        assert sum(sample.gaps) == pytest.approx(sample.last - sample.first)


def test_a_closed_loop_has_as_many_open_as_it_has_clients(served: Served) -> None:
    engine = served.engine
    served.on_loop(engine.hold)
    before = sum(isinstance(message, Submit) for message in engine.seen)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(load, served, concurrency=2)
        try:
            engine.until(lambda: engine.gateway.num_live == 2)
            # Nothing is answered while the engine holds, so a third could come only from a loop that is open.
            httpx.get(served.url + "/health", verify=False)
            assert sum(isinstance(message, Submit) for message in engine.seen) - before == 2
        finally:
            served.on_loop(engine.release)
        assert [sample.error for sample in running.result()] == [None] * WORKLOAD.num_prompts


def test_a_refusal_is_a_failure_with_the_servers_words(served: Served) -> None:
    # Longer than the context of the fake engine.
    too_long = msgspec.structs.replace(WORKLOAD, input_length=600)
    errors = {sample.error for sample in load(served, too_long)}
    assert len(errors) == 1
    assert "HTTP 400" in str(errors)
    assert "context" in str(errors)


def test_the_time_limit_ends_the_run_and_says_what_was_not_answered(served: Served) -> None:
    served.on_loop(served.engine.hold)
    try:
        samples = load(served, concurrency=2, time_limit_s=0.2)
    finally:
        served.on_loop(served.engine.release)
    assert [sample.error for sample in samples] == [UNANSWERED] * WORKLOAD.num_prompts
    # Its connections are closed, so the server has ended what it had begun.
    served.engine.until(lambda: served.engine.gateway.num_live == 0)


def test_a_server_that_is_not_there_is_said_to_be_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "online", "--url", "http://127.0.0.1:1"]) == 1
    assert "no server at http://127.0.0.1:1" in capsys.readouterr().err


def test_the_command_prints_tables_and_writes_the_file(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.json"
    words = f"bench online --url {served.url} --vocabulary-size {VOCABULARY_SIZE} --num-prompts 3 --input-length 8"
    assert main([*words.split(), "--output-length", "4", "--api-key", "hidden", "--json", str(file)]) == 0
    assert "time to first token" in capsys.readouterr().out
    run = json.loads(file.read_text())
    assert run["summary"]["num_completed"] == 3
    assert run["summary"]["output_tokens"] == 12
    assert run["settings"]["workload"]["input_length"] == 8
    assert "hidden" not in file.read_text()


@pytest.mark.parametrize(
    "words",
    [
        "offline --shared-prefix 200",
        "offline --num-prompts 0",
        "online --rate 0",
        "online --concurrency 0",
        "online --vocabulary-size 1",
        "online --url ftp://x",
        "online --num-prompts 1000001",
        "offline --input-length 1000000000000000000000000000000",
        "offline --output-length 2147483648",
        "online --vocabulary-size 2147483648",
        "offline --json /",
        "online --json /nowhere/x.json",
    ],
)
def test_a_run_that_cannot_be_is_wrong_usage(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split()]) == 2
    assert capsys.readouterr().err.startswith("pawl: ")


def test_bodies_ask_for_the_exact_length_and_without_chance() -> None:
    for route in PATHS:
        (body,) = make_bodies(Plan(url="http://x", route=route), msgspec.structs.replace(WORKLOAD, num_prompts=1), "m")
        asked = json.loads(body)
        sampling = asked.get("sampling_params", asked)
        assert asked["stream"] is True
        assert sampling["temperature"] == 0.0
        assert sampling["ignore_eos"] is True
        assert sampling.get("max_tokens", sampling.get("max_new_tokens")) == WORKLOAD.output_length


# ---- the client, byte by byte ----


@asynccontextmanager
async def scripted(*answers: bytes, ends: bool = False) -> AsyncIterator[tuple[Client, list[int]]]:
    """A client of a server that sends `answers` one after the other; the connections it took are numbered."""
    connections: list[int] = []
    remaining = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(connections)
        while remaining:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            connections.append(number)
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(remaining.pop(0))
            await writer.drain()
            if ends:
                break
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(f"http://127.0.0.1:{port}/base/", {}) as client:
        yield client, connections


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data: bytes, sizes: Sequence[int]) -> bytes:
    """`data` in chunks of these sizes, the rest in one."""
    pieces, start = [], 0
    for size in [*sizes, len(data)]:
        piece = data[start : start + size]
        start += size
        if piece:
            pieces.append(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    return CHUNKED + b"".join(pieces) + b"0\r\n\r\n"


@given(
    lines=st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8),
    sizes=st.lists(st.integers(1, 9), max_size=20),
    last=st.binary(max_size=5).map(lambda line: line.replace(b"\n", b"")),
)
def test_lines_do_not_depend_on_how_the_bytes_arrive(lines: list[bytes], sizes: list[int], last: bytes) -> None:
    expected = [line + b"\n" for line in lines] + ([last] if last else [])

    async def read() -> list[bytes]:
        async with scripted(chunked(b"".join(expected), sizes)) as (client, _):
            return [line async for line in client.lines("POST", "/x", b"{}")]

    assert asyncio.run(read()) == expected


def test_a_connection_is_used_again_after_a_whole_answer_and_only_then() -> None:
    sized = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    closing = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"

    async def read() -> list[int]:
        async with scripted(sized, chunked(b"hi", []), closing, sized) as (client, connections):
            for _ in range(4):
                assert await client.read("GET", "/") == b"hi"
            return connections

    assert asyncio.run(read()) == [0, 0, 0, 3]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "HTTP 503: busy"),
        (CHUNKED + b"5\r\nab", "broke off"),
        (CHUNKED + b"zz\r\nab", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "broke off"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
    ],
)
def test_an_answer_that_is_no_answer_raises_http_error(answer: bytes, said: str) -> None:
    async def read() -> None:
        async with scripted(answer, ends=True) as (client, _):
            await client.read("GET", "/")

    with pytest.raises(HttpError, match=said):
        asyncio.run(read())


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def read() -> bytes:
        async with scripted(b"HTTP/1.1 200 OK\r\n\r\none\ntwo", ends=True) as (client, _):
            return await client.read("GET", "/")

    assert asyncio.run(read()) == b"one\ntwo"


def test_only_data_lines_carry_data() -> None:
    lines = [b"data: {}\n", b"data:{}\r\n", b": a comment\n", b"event: x\n", b"\n"]
    assert [event_data(line) for line in lines] == [b"{}", b"{}", None, None, None]
