"""Requests as bytes, and replies as clients read them."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families


def post(body: bytes, path: str = "/generate", length: int | None = None) -> bytes:
    """A request with this body, which says that it has `length` bytes; None: as many as it has."""
    count = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {count}\r\n\r\n"
    return head.encode() + body


def everything(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def events(response: httpx.Response) -> list[Any]:
    """The JSON of each server-sent event; checks that the stream ends with `[DONE]`, and with nothing behind it."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def streamed_text(chunks: list[Any], index: int = 0) -> str:
    """The text of one choice of a streamed reply of either OpenAI route."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"]["content"] for choice in choices)


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and labels, read by Prometheus' own parser."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def labels_of(text: str) -> dict[str, dict[str, set[str]]]:
    """Of a page of metrics: each sample's name, its labels, and the values that these have."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found
