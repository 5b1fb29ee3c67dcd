"""Load on a running server, streamed, as its clients see it. Works with any server that speaks one of the routes.

Closed loop: `concurrency` clients, each sends its next request when the last is answered. Open loop: requests are sent
at Poisson times of a given rate, whether or not earlier ones are answered; only that shows what a queue does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from pawl.bench.client import Client, HttpError
from pawl.bench.events import DONE, event_data
from pawl.bench.measures import Sample
from pawl.bench.routes import PATHS, Route
from pawl.bench.workload import Workload

WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not")
"""Common words: about one token each in every vocabulary, for routes that take only text."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How the load is applied."""

    url: str
    route: Route = "completions"
    model: str | None = None
    """None: what the server's model list names first."""
    concurrency: int = 16
    """Requests open at the same time at the most; with a rate, None of it."""
    rate: float | None = None
    """Requests a second; None: closed loop."""
    vocabulary_size: int = 30_000
    """Prompts are made of token ids below it."""
    ignore_eos: bool = True
    """Ask for exactly the output length. Servers that do not know `ignore_eos` refuse it."""
    time_limit_s: float = 300.0
    """The run ends then; what is unanswered counts as failed."""
    key: str | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _CachedTokens | None = None


class _Meta(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class _Event(msgspec.Struct):
    """What any of the routes may send, as far as it is measured; the rest is skipped unread."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    meta_info: _Meta | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


async def run_load(plan: Plan, workload: Workload, advance: Callable[[int], None]) -> tuple[list[Sample], float]:
    """Send the workload; returns a sample for each request, in order, and the seconds it took.

    `advance(1)` is called at each answer. Raises HttpError or OSError when the server does not answer at all.
    """
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {plan.key}"} if plan.key else {})
    async with Client(plan.url, headers) as client:
        model = plan.model or await _served_model(client, plan.route)
        bodies = make_bodies(plan, workload, model)
        samples = [Sample(sent=0.0, error="not answered within the time limit") for _ in bodies]
        began = time.perf_counter()

        async def one(index: int) -> None:
            samples[index] = await _request(client, PATHS[plan.route], bodies[index])
            advance(1)

        load = _at_times(one, list(workload.arrivals(plan.rate))) if plan.rate else _closed(one, plan, len(bodies))
        try:
            async with asyncio.timeout(plan.time_limit_s):
                await load
        except TimeoutError:
            pass  # the samples say which were not answered
        return samples, time.perf_counter() - began


async def _closed(one: Callable[[int], Any], plan: Plan, count: int) -> None:
    """Each of `concurrency` clients takes the next request as soon as it is free."""
    indices = iter(range(count))

    async def client() -> None:
        for index in indices:
            await one(index)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(plan.concurrency, count)):
            group.create_task(client())


async def _at_times(one: Callable[[int], Any], moments: Sequence[float]) -> None:
    """Request i is sent moments[i] seconds from now, late only when this process is."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for index, moment in enumerate(moments):
            await asyncio.sleep(began + moment - loop.time())
            group.create_task(one(index))


async def _request(client: Client, path: str, body: bytes) -> Sample:
    sample = Sample(sent=time.perf_counter())
    try:
        async with aclosing(client.lines("POST", path, body)) as lines:
            async for line in lines:
                data = event_data(line)
                if data is not None and data != DONE:
                    note(sample, _decoder.decode(data), time.perf_counter())
    except (HttpError, OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        sample.error = f"{type(error).__name__}: {error}"
    if sample.error is None and sample.first is None:
        sample.error = "the answer had no output"
    return sample


def note(sample: Sample, event: _Event, now: float) -> None:
    """Count one event of a stream, which arrived at `now`."""
    if event.error is not None:
        sample.error = str(event.error.get("message") if isinstance(event.error, dict) else event.error)
        return
    if event.meta_info is not None:
        meta = event.meta_info
        if meta.completion_tokens > sample.num_output:
            sample.arrived(now)
        sample.num_prompt, sample.num_output, sample.num_cached = (
            meta.prompt_tokens,
            meta.completion_tokens,
            meta.cached_tokens,
        )
    if any(_text(choice) for choice in event.choices):
        sample.arrived(now)
    if event.usage is not None:
        sample.num_prompt = event.usage.prompt_tokens
        sample.num_output = event.usage.completion_tokens or 0
        details = event.usage.prompt_tokens_details
        sample.num_cached = (details.cached_tokens or 0) if details else 0


def _text(choice: _Choice) -> str | None:
    if choice.delta is not None:
        return choice.delta.content or choice.delta.reasoning_content
    return choice.text


async def _served_model(client: Client, route: Route) -> str | None:
    """The name of the model that the server lists first; the native route needs none."""
    if route == "generate":
        return None
    told = await client.read("GET", "/v1/models")
    try:
        return str(msgspec.json.decode(told)["data"][0]["id"])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        raise HttpError("/v1/models names no model: --model says which is meant") from None


def make_bodies(plan: Plan, workload: Workload, model: str | None) -> list[bytes]:
    """The request bodies, encoded beforehand: encoding is not part of what is measured."""
    prompts = workload.token_prompts(plan.vocabulary_size)
    return [msgspec.json.encode(_body(plan, workload.output_length, model, prompt)) for prompt in prompts]


def _body(plan: Plan, output_length: int, model: str | None, prompt: Sequence[int]) -> dict[str, Any]:
    extras = {"ignore_eos": True} if plan.ignore_eos else {}
    if plan.route == "generate":
        sampling = {"max_new_tokens": output_length, "temperature": 0.0, **extras}
        return {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    common = {
        "model": model,
        "max_tokens": output_length,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extras,
    }
    if plan.route == "completions":
        return {"prompt": prompt, **common}
    text = " ".join(WORDS[token % len(WORDS)] for token in prompt)
    return {"messages": [{"role": "user", "content": text}], **common}
