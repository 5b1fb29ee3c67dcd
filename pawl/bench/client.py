"""An HTTP/1.1 client for load: a connection pool over asyncio streams, and nothing a benchmark does not need.

On a small machine the client shares its cores with the server it measures, so what the client costs falsifies the
figures. This one costs a few microseconds for each event of a stream.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import TracebackType

MAX_LINE = 1 << 20
"""Bytes of one line: of a header, or of one event."""


class HttpError(Exception):
    """The answer was not 200, or not HTTP."""


class Client:
    """Asks one server and reads the answers line by line. For one event loop; connections are kept for reuse."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """`url`: the server's base, with or without a path. Raises ValueError for what is not a URL of HTTP."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:30000")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._base = parts.path.rstrip("/")
        lines = {"host": parts.netloc.rpartition("@")[2], "accept": "*/*", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def read(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The whole body of the answer. Raises HttpError, OSError."""
        async with aclosing(self.lines(method, path, body)) as lines:
            return b"".join([line async for line in lines])

    async def lines(self, method: str, path: str, body: bytes = b"") -> AsyncGenerator[bytes, None]:
        """The lines of the answer's body, each with its end, as they arrive. Raises HttpError, OSError."""
        reader, writer = await self._connection()
        reusable = False
        try:
            head = f"{method} {self._base}{path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            status, headers = await _read_head(reader)
            chunks = _body(reader, headers)
            if status != 200:
                text = b"".join([chunk async for chunk in chunks])
                raise HttpError(f"HTTP {status}: {text[:300].decode(errors='replace')}")
            rest = b""
            async for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line + b"\n"
            if rest:
                yield rest
            framed = "transfer-encoding" in headers or "content-length" in headers
            reusable = framed and headers.get("connection", "").lower() != "close"
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise HttpError(f"the answer broke off: {type(error).__name__}: {error}") from error
        finally:
            if reusable:
                self._idle.append((reader, writer))
            else:
                writer.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # else the server has closed it meanwhile
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port, ssl=self._secure or None, limit=MAX_LINE)


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    if not version.startswith("HTTP/1."):
        raise HttpError(f"this is not HTTP/1: {status_line[:80]!r}")
    pairs = (line.partition(":") for line in lines if line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    """The body in pieces: chunked, of a stated length, or until the connection ends."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece
