"""Routes of a server that a benchmark can ask."""

from __future__ import annotations

from typing import Literal, TypeAlias

Route: TypeAlias = Literal["completions", "chat", "generate"]
PATHS: dict[Route, str] = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "generate": "/generate",
}
