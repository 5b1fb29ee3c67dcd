"""A server that is asked something new each time, for ever: what it keeps of it has a bound."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors import adapter_names
from pawl.gpu.grammars import cache
from tests.pawl.ghost_server import audited_client

ASKED = 20
"""Times that everything is asked in one round."""
MOST_BLOCKS = 40
"""Of Python's memory, that a round may leave for each time. Everything is more than a hundred requests."""
GREEDY = {"max_new_tokens": 2, "temperature": 0}
KEPT = 8
"""Grammars and names of adapters that are kept, so that all of them are there after the first round."""


def generating(new: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Route and body of requests of which `new` is in every place that takes a client's words."""
    message = {"role": "user", "content": new, "name": new}
    schema = {"type": "object", "properties": {new: {"type": "integer"}}, "required": [new]}
    tool = {"type": "function", "function": {"name": new, "description": new, "parameters": schema}}
    chat = {"model": "ghost", "messages": [message], "max_tokens": 2}
    yield "/generate", {"text": new, "rid": new, "sampling_params": GREEDY | {"stop": [new]}, "return_logprob": True}
    yield "/generate", {"text": new, "sampling_params": GREEDY | {"regex": f"[ab]{new}"}}
    yield "/generate", {"text": new, "sampling_params": GREEDY | {"json_schema": json.dumps(schema)}}
    yield "/generate", {"text": new, "sampling_params": GREEDY | {"ebnf": f'root ::= "{new}"'}}
    yield "/generate", {"text": new, "sampling_params": GREEDY | {"json_schema": f"{{{new}"}}
    yield "/v1/completions", {"prompt": [new, new * 2], "max_tokens": 2, "user": new, "cache_salt": new, "suffix": None}
    yield "/v1/completions", {"prompt": new, "max_tokens": 2, "n": 2, "use_beam_search": True}
    yield "/v1/completions", {"prompt": new, "max_tokens": 2, "model": new}
    yield "/v1/chat/completions", chat | {"chat_template_kwargs": {new: new}, "metadata": {new: new}}
    yield "/v1/chat/completions", chat | {"tools": [tool], "stream": True}
    yield "/v1/chat/completions", chat | {"messages": [{"role": new, "content": new}]}
    yield "/v1/responses", {"input": new, "max_output_tokens": 2, "instructions": new, "metadata": {new: new}}
    yield "/v1/embeddings", {"input": new}
    yield "/v1/rerank", {"query": new, "documents": [new]}
    yield "/tokenize", {"prompt": new}
    yield "/invocations", {"prompt": new, "max_tokens": 2}


def ordering(new: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of orders, with what undoes them."""
    yield "/abort_request", {"rid": new}
    yield "/open_session", {"capacity_of_str_len": 100, "session_id": new}
    yield "/generate", {"text": new, "sampling_params": GREEDY, "session_params": {"id": new, "rid": None}}
    yield "/close_session", {"session_id": new}
    yield "/close_session", {"session_id": new * 2}
    yield "/load_lora_adapter", {"lora_name": new, "lora_path": f"ghost:{new}"}
    yield "/load_lora_adapter", {"lora_name": new, "lora_path": f"/{new}"}
    yield "/generate", {"text": new, "lora_path": new, "sampling_params": GREEDY}
    yield "/unload_lora_adapter", {"lora_name": new}
    yield "/unload_lora_adapter", {"lora_name": new}
    yield "/update_weights_from_disk", {"model_path": f"ghost:{new}", "weight_version": new}
    yield "/update_weights_from_disk", {"model_path": f"/{new}"}
    yield "/update_weight_version", {"new_version": new}
    yield "/destroy_weights_update_group", {"group_name": new}
    yield "/pause_generation", {"mode": "abort"}
    yield "/continue_generation", {}


async def ask_everything(client: httpx.AsyncClient, new: str, paths: dict[str, Any]) -> Counter[int]:
    """How often each status came."""
    statuses, headers = Counter[int](), {"x-request-id": f"h{new}", "user-agent": new, new: new}
    for path, body in (*generating(new), *ordering(new)):
        statuses[(await client.post(path, json=body, headers=headers)).status_code] += 1
    for path, methods in paths.items():
        # No route has a field of this name.
        for method in methods:
            body = {"json": {new: new}} if method == "post" else {}
            reply = await client.request(method.upper(), path, params={new: new}, headers=headers, **body)
            statuses[reply.status_code] += 1
    await client.post("/continue_generation", json={})
    statuses[(await client.get(f"/{new}")).status_code] += 1
    return statuses


def counted() -> tuple[Counter[str], int]:
    """Live objects by their type, and blocks of Python's memory, which also hold what is no such object. Caches of
    functions that have a bound are emptied before: they may take longer to fill than the test."""
    for one in gc.get_objects():
        if isinstance(one, functools._lru_cache_wrapper) and one.cache_parameters()["maxsize"] is not None:
            one.cache_clear()
    for _ in range(2):
        gc.collect()
    types = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return types, sys.getallocatedblocks()


@pytest.mark.slow
def test_what_is_kept_of_requests_that_are_all_new_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_ENTRIES", KEPT)
    monkeypatch.setattr(adapter_names, "MOST_UNLOADED", KEPT)
    statuses = Counter[int]()

    async def one_round(url: httpx.URL, name: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
            paths = (await client.get("/openapi.json")).json()["paths"]
            for number in range(ASKED):
                statuses.update(await ask_everything(client, f"{name}{number:04}", paths))

    with audited_client(tmp_path, kv_tokens=4096, enable_lora=True) as client:
        counts = []
        for name in "abcd":
            asyncio.run(one_round(client.base_url, name))
            counts.append(counted())
    assert not [status for status in statuses if status >= 500], statuses
    assert statuses[200] > 4 * ASKED * 20, statuses
    assert statuses.total() > 4 * ASKED * 100
    (types, blocks), (types_later, blocks_later) = counts[1], counts[3]
    grown = {kind: types_later[kind] - types[kind] for kind in types_later}
    assert {kind: count for kind, count in grown.items() if count >= ASKED} == {}
    assert blocks_later - blocks < 2 * ASKED * MOST_BLOCKS
