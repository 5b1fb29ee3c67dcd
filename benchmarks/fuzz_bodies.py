"""Bodies for a live server, drawn from its own description, and what damages them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.attack_shots import BIG, LEAVES
from benchmarks.attack_target import MARK

DEEPEST = 5

Json = Any


class Bodies:
    """Draws what a route's body may be."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._schemas: Mapping[str, Any] = description["components"]["schemas"]
        self.routes: list[tuple[str, Mapping[str, Any]]] = []
        """Path and schema of every route that takes a body."""
        self.paths = sorted(description["paths"])
        for path, methods in sorted(description["paths"].items()):
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            if "application/json" in content:
                self.routes.append((path, content["application/json"]["schema"]))

    def names_of(self, schema: Mapping[str, Any]) -> frozenset[str]:
        """Fields that a body may have."""
        return frozenset(self._schemas[schema["$ref"].rpartition("/")[2]]["properties"] if "$ref" in schema else ())

    def draw(self, schema: Mapping[str, Any], source: random.Random, depth: int = 0) -> Json:
        """Something that the schema lets through, mostly."""
        if "$ref" in schema:
            return self.draw(self._schemas[schema["$ref"].rpartition("/")[2]], source, depth)
        if "anyOf" in schema:
            return self.draw(source.choice(schema["anyOf"]), source, depth)
        if "enum" in schema:
            return source.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                return self._object(schema, source, depth)
            case "array":
                items = schema.get("items", {})
                return [self.draw(items, source, depth + 1) for _ in range(source.choice((1, 1, 2, 3)))]
            case "string":
                return source.choice(("x", "hello", MARK, "ghost", "user", "text"))
            case "integer":
                low, high = schema.get("minimum", 0), min(schema.get("maximum", 8), 64)
                return source.randint(low, max(low, high))
            case "number":
                return source.choice((0, 0.5, 1, 1.5))
            case "boolean":
                return source.random() < 0.5
            case "null":
                return None
        return source.choice(LEAVES)

    def _object(self, schema: Mapping[str, Any], source: random.Random, depth: int) -> Json:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        optional = sorted(set(properties) - set(required))
        names = [*required, *source.sample(optional, min(len(optional), source.choice((0, 0, 1, 2, 4))))]
        if depth > DEEPEST:
            names = list(required)
        body = {name: self.draw(properties.get(name, {}), source, depth + 1) for name in names}
        return body or {source.choice(("a", MARK)): source.choice(LEAVES)}


PROMPTED = frozenset(
    (
        *("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/encode"),
        *("/tokenize", "/v1/tokenize", "/v1/score", "/score"),
    )
)
"""Routes that prompts come on. What others are sent is an order, and the log may say what was ordered, as it may say
the name of a request."""
STREAMED = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses")
PROMPTS: Sequence[Mapping[str, Any]] = (
    {"text": "hello"},
    {"prompt": "hello"},
    {"input": "hello"},
    {"messages": [{"role": "user", "content": "hello"}]},
    {"input_ids": [101, 102]},
    {"tokens": [101]},
    {"prompt": "hello", "max_tokens": 3},
)
"""What makes a body that was drawn one that is computed, more often than chance would."""


def changed(value: Json, source: random.Random, inside: float = 0.8) -> Json:
    """The same with something in one place of it that does not belong there; with the probability `inside` not in place
    of the whole."""
    if isinstance(value, dict) and value and source.random() < inside:
        name = source.choice(sorted(value))
        match source.randrange(6):
            case 0:
                return {**value, f"{name}{source.choice(('', '_', MARK))}": source.choice(LEAVES)}
            case 1:
                return {other: inner for other, inner in value.items() if other != name}
        return {**value, name: changed(value[name], source)}
    if isinstance(value, list) and value and source.random() < 0.8:
        at = source.randrange(len(value))
        return [*value[:at], changed(value[at], source), *value[at + 1 :], *value[: source.choice((0, 0, 0, 1))]]
    return source.choice((*LEAVES, *BIG, value, [value] * 3, {"a": value}, str(value), -1e-9, "\ud7ff", "a" * 3000))


def damaged(data: bytes, source: random.Random) -> bytes:
    """The same bytes but for a few."""
    at = source.randrange(len(data) + 1)
    match source.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + source.randbytes(source.choice((1, 2, 8))) + data[at:]
        case 2:
            return data[:at] + data[at + source.choice((1, 2, 16)) :]
        case 3:
            return data[:at] + data[max(0, at - 20) :]
    flipped = bytearray(data)
    for _ in range(source.choice((1, 1, 4))):
        flipped[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(flipped)
