"""Every field of every body has bounds, and what is beyond them is a refusal that names field and range.

A real server with a ghost behind it takes each extreme value in each field: the answer is a result or a refusal, never
a failure, and nothing in the engine fails on what was let through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import inspect

from pawl.build.ghost import load_ghost
from pawl.config import build_config
from tests.pawl.ghost_server import ghost_server
from tests.pawl.routes import CONTROL, GENERATING, body_of

ROUTES = [*GENERATING, *CONTROL]

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
NUMBERS = [
    0, -1, 1 << 31, -(1 << 31), (1 << 31) - 1, -(1 << 31) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63),
    -(1 << 63) - 1, 1 << 64, 10**19, 10**40, 1e308, -1e308, 1e-308, 0.5, math.nan, math.inf,
]  # fmt: skip
OTHERS = [
    "", "x" * 2_000, "x" * 200_000, "é\U0001f600" * 500, "\0", True, [], {}, [[]], DEEP, {"a": DEEP},
    ["x"] * 20_000, [1] * 100_000, [0] * 300, {str(i): 1 for i in range(2_000)}, {"x" * 10_000: 1}, [{}] * 1_000,
]  # fmt: skip

UNBOUNDED = {"prompt", "text", "suffix", "input", "instructions", "query", "items"}
"""Strings whose bound is the context's, not a number of characters."""


def every_field() -> Iterator[Any]:
    """Of every route; at night only those of generating ones where a route before has a field of this name and type."""
    seen = set[tuple[str, Any]]()
    for number, (path, kind, valid) in enumerate(ROUTES):
        for field in msgspec.structs.fields(kind):
            again = number < len(GENERATING) and (field.name, field.type) in seen
            seen.add((field.name, field.type))
            yield pytest.param(path, kind, valid, field.name, marks=(pytest.mark.slow,) if again else ())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home: Path = tmp_path_factory.mktemp("bounds")
    config = build_config({"model": "ghost", "trace_dir": str(home), "policy": "priority", "kv_tokens": 4096})
    with (
        ghost_server(load_ghost(config)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        yield client
        assert client.get("/health").status_code == 200
        contained = [line for line in client.get("/metrics").text.splitlines() if "contained_failures_total{" in line]
        assert contained
        assert all(line.endswith(" 0") for line in contained)


@pytest.mark.parametrize(
    ("path", "kind", "valid", "name"), list(every_field()), ids=lambda value: value if isinstance(value, str) else None
)
def test_no_value_of_any_field_makes_the_server_fail(
    server: httpx.Client, path: str, kind: type[msgspec.Struct], valid: dict[str, Any], name: str
) -> None:
    for value in [*NUMBERS, *OTHERS]:
        body = body_of(kind, {**valid, name: value})
        response = server.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        status = response.status_code
        assert status == 200 or 400 <= status < 500, (name, str(value)[:50], response.text[:500])
        if status != 200:
            message = response.json()["error"]["message"]
            assert len(message) < 500, (name, message)
    # What was let through may have paused it.
    assert server.post("/continue_generation").status_code == 200


def walk(kind: inspect.Type, place: str) -> Iterator[tuple[str, inspect.Type]]:
    """Every number, string, list and object in a type, with where it stands."""
    match kind:
        case inspect.UnionType():
            for option in kind.types:
                yield from walk(option, place)
        case inspect.StructType():
            for field in kind.fields:
                yield from walk(field.type, f"{place}.{field.encode_name}")
        case inspect.ListType():
            yield place, kind
            yield from walk(kind.item_type, place + "[]")
        case inspect.DictType():
            yield place, kind
            # Members that may be anything (messages, schemas) are bounded by the count of values in a body.
            if not isinstance(kind.value_type, inspect.AnyType):
                yield from walk(kind.key_type, place + "{}")
                yield from walk(kind.value_type, place + "{}")
        case inspect.IntType() | inspect.FloatType() | inspect.StrType():
            yield place, kind


@pytest.mark.parametrize(("path", "kind"), [(path, kind) for path, kind, _ in ROUTES])
def test_every_number_string_and_list_has_bounds(path: str, kind: type[msgspec.Struct]) -> None:
    open_ended = []
    for place, found in walk(inspect.type_info(kind), ""):
        name = place.strip(".[]{}").split(".")[-1].rstrip("[]")
        if isinstance(found, inspect.IntType | inspect.FloatType):
            bounded = None not in (found.ge if found.gt is None else found.gt, found.le)
        elif isinstance(found, inspect.StrType):
            bounded = found.max_length is not None or name in UNBOUNDED
        else:
            bounded = isinstance(found, inspect.ListType | inspect.DictType) and found.max_length is not None
        if not bounded:
            open_ended.append(place)
    assert open_ended == []


def test_every_body_that_a_route_takes_is_tried(server: httpx.Client) -> None:
    described = server.get("/openapi.json").json()["paths"]
    kinds = {
        body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for operations in described.values()
        for operation in operations.values()
        if (body := operation.get("requestBody")) is not None
    }
    assert kinds <= {kind.__name__ for _, kind, _ in ROUTES}


def lists() -> Iterator[Any]:
    """Every field that may be a list."""
    for path, kind, valid in ROUTES:
        for field in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
            options = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
            if any(isinstance(option, inspect.ListType | inspect.VarTupleType) for option in options):
                yield pytest.param(path, kind, valid, field.encode_name, id=f"{path}-{field.encode_name}")


@pytest.mark.parametrize(("path", "kind", "valid", "name"), list(lists()))
def test_an_empty_list_is_taken_or_refused_by_its_name(
    server: httpx.Client, path: str, kind: type[msgspec.Struct], valid: dict[str, Any], name: str
) -> None:
    response = server.post(path, json=body_of(kind, {**valid, name: []}))
    if response.status_code != 200:
        assert response.status_code == 400
        error = response.json()["error"]
        assert name in error["message"]
        assert " is missing" not in error["message"]
        assert error.get("param", name) in error["message"]


def test_a_refusal_names_the_field_and_its_range(server: httpx.Client) -> None:
    cases = {
        "priority": (1 << 63, "priority must be an integer from -9223372036854775808 to 9223372036854775807"),
        "rid": ("x" * 129, "rid must be a string of at most 128 characters"),
        "cache_salt": ("x" * 257, "cache_salt must be a string of at most 256 characters"),
        "stop": (["x"] * 17, "stop must be a string of 1 to 1024 characters or a list of at most 16 entries"),
        "timeout_s": (0, "timeout_s must be a number above 0 and at most 1e+06"),
        "seed": (1 << 64, "seed must be an integer from -9223372036854775808"),
    }
    for name, (value, words) in cases.items():
        response = server.post("/v1/completions", json={"prompt": "hello", name: value})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["message"].startswith(words)
        assert error["param"] == name


@pytest.mark.parametrize("priority", [-(1 << 63), -(1 << 31) - 1, 1 << 31, (1 << 63) - 1])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_time_stamps_and_other_large_priorities_are_served(server: httpx.Client, path: str, priority: int) -> None:
    valid = next(valid for route, _, valid in ROUTES if route == path)
    assert server.post(path, json={**valid, "priority": priority}).status_code == 200


def test_prompts_times_choices_are_counted_before_anything_is_built(server: httpx.Client) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": ["x"] * 20_000, "n": 128}),
        ("/generate", {"text": ["x"] * 20_000, "sampling_params": {"n": 128}}),
        ("/generate", {"text": ["x"] * 2_000}),
    ):
        response = server.post(path, json=body)
        assert response.status_code == 413
        assert "requests this server takes at a time; send fewer" in response.json()["error"]["message"]


def test_scores_of_prompts_are_counted_before_they_are_made(server: httpx.Client) -> None:
    text = "hello world " * 2_500
    for path, body in (
        ("/v1/completions", {"prompt": text, "n": 16, "echo": True, "logprobs": 20}),
        ("/generate", {"text": [text] * 16, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 20}),
    ):
        response = server.post(path, json=body)
        assert response.status_code == 400
        assert "scored prompts may have" in response.json()["error"]["message"]
