"""The server that is attacked, and the bodies that most attacks are made of."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

KEY, ADMIN_KEY, MARK = "key-of-the-attacked-7Q4", "admin-of-the-attacked-9Z1", "marked prompt 5X2"

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Target(NamedTuple):
    """The server that is attacked."""

    host: str
    port: int

    def head(self, method: str, path: str, length: int, more: str = "", key: str = KEY) -> bytes:
        lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        return f"{lines}Content-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n".encode()

    async def send(self, data: bytes) -> Stream:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(data)
        return reader, writer

    async def post(self, path: str, body: Any, more: str = "", key: str = KEY) -> Stream:
        """`body`: what is sent as JSON, or its bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send(self.head("POST", path, len(data), more, key) + data)

    async def status(self, path: str, body: Any, more: str = "", key: str = KEY) -> int:
        """Of the whole reply to one request."""
        reader, writer = await self.post(path, body, more + "Connection: close\r\n", key)
        try:
            line = await reader.readline()
            while await reader.read(1 << 16):
                pass
            return int(line.split()[1]) if line else 0
        finally:
            writer.close()


SAMPLING = {"max_new_tokens": 4, "temperature": 0}


def generate(**fields: Any) -> tuple[str, Any]:
    return "/generate", {"text": MARK, "sampling_params": SAMPLING} | fields


def completion(**fields: Any) -> tuple[str, Any]:
    return "/v1/completions", {"model": "ghost", "prompt": MARK, "max_tokens": 4} | fields
