"""The other side of `pawl chat --url`, `pawl ctl` and `pawl top`: a running server."""

from __future__ import annotations

import http.client
import os
import string
import urllib.parse
from collections.abc import Generator
from typing import Any

import msgspec

from pawl.actors.text.invalid import quoted
from pawl.bench.events import DONE, event_data
from pawl.commands.failures import CommandFailed, UsageError

TIMEOUT_S = 600.0
"""A server that says nothing for so long is taken for dead."""
MOST_BYTES = 256 << 20
"""Of one reply."""
MOST_OF_LINE = 1 << 20
"""Bytes that are read at a time of a reply that comes in pieces."""
DEFAULT_URL = "http://127.0.0.1:30000"
KEYS = ("PAWL_ADMIN_API_KEY", "PAWL_API_KEY")
"""Where a key is looked for that no flag names."""
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


def key_from(given: str | None) -> str | None:
    """The key to a server: this one, or that of the environment."""
    return given or next((os.environ[name] for name in KEYS if os.environ.get(name)), None)


class Server:
    """Where a server is, and the key to it. Raises UsageError for what is no URL, or can be no key."""

    def __init__(self, url: str, key: str | None) -> None:
        unfit = UsageError(f"{quoted(url)} is not a URL of a server, such as http://127.0.0.1:30000")
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
            (parts.hostname or "").encode("idna")
            parts.path.encode("ascii")
        except ValueError:  # of a port that is no number, half an IPv6 address, or what no name of a host can be
            raise unfit from None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError("the key holds what no header of a request can: it is printable ASCII")
        if set(url) & set(string.whitespace) or parts.scheme not in ("http", "https") or parts.hostname is None:
            raise unfit
        secure = parts.scheme == "https"
        self._kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._address = (parts.hostname, port or (443 if secure else 80))
        self.path = parts.path.rstrip("/").removesuffix("/v1")
        self.headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connection of its own for one request; the caller closes it."""
        return self._kind(*self._address, timeout=timeout_s)

    def ask(self, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of a reply. Raises OSError when the server is gone, or is none."""
        connection = self.connect(timeout_s)
        try:
            connection.request(method, self.path + path, body, self.headers)
            response = connection.getresponse()
            data = response.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise OSError(f"the reply has more than {MOST_BYTES >> 20} MiB")
            return response.status, data
        except http.client.HTTPException as error:
            raise _no_http(error) from error
        finally:
            connection.close()

    def request(self, method: str, path: str, body: bytes | None = None, timeout_s: float = TIMEOUT_S) -> bytes:
        """The body of a reply. Raises CommandFailed with the server's words, or as `ask` when it is gone."""
        status, data = self.ask(method, path, body, timeout_s)
        if status != http.HTTPStatus.OK:
            raise CommandFailed(f"the server says {status}: {problem(data)}")
        return data


class RemoteSpeaker:
    """Replies from `POST <url>/v1/chat/completions`, streamed. Closing a reply closes its connection: an abort."""

    def __init__(self, url: str, key: str | None, model: str | None, sampling: dict[str, Any], stop: list[str]) -> None:
        self._server, self._url = Server(url, key), url
        self._fields = {OPENAI_NAMES.get(name, name): value for name, value in sampling.items()}
        if stop:
            self._fields["stop"] = stop
        self._model = model

    def close(self) -> None:
        """Nothing stays open between replies."""

    def reply(self, messages: list[dict[str, str]]) -> Generator[str, None, None]:
        """Pieces of the reply. Raises CommandFailed with the server's words, or OSError when it is gone."""
        if self._model is None:
            self._model = self._served_model()
        body = {"model": self._model, "messages": messages, "stream": True, **self._fields}
        connection, path = self._server.connect(TIMEOUT_S), f"{self._server.path}/v1/chat/completions"
        try:
            connection.request("POST", path, msgspec.json.encode(body), self._server.headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise CommandFailed(f"the server says {response.status}: {problem(response.read(MOST_OF_LINE))}")
            while line := response.readline(MOST_OF_LINE):
                data = event_data(line)
                if data == DONE:
                    return
                if data is not None:
                    yield _content(data)
        except http.client.HTTPException as error:
            raise _no_http(error) from error
        finally:
            connection.close()

    def _served_model(self) -> str:
        try:
            return str(msgspec.json.decode(self._server.request("GET", "/v1/models"))["data"][0]["id"])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as error:
            raise CommandFailed(f"no OpenAI server at {self._url}: {error}") from error


def decoded(data: bytes) -> Any:
    """A reply of JSON. Raises CommandFailed for what is none."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandFailed(f"the server's reply cannot be read as JSON: {error}") from None


def _no_http(error: http.client.HTTPException) -> OSError:
    return OSError(f"no answer in HTTP: {error!r:.200}")


def _content(data: bytes) -> str:
    event = decoded(data)
    try:
        if "error" in event:
            raise CommandFailed(f"the server ended the reply: {problem(data)}")
        return "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ()))
    except (AttributeError, TypeError):
        raise CommandFailed("the server sends what is no event of a chat") from None


def problem(body: bytes) -> str:
    """The message in an error body, whatever its shape, on one line that a terminal can show."""
    try:
        error = msgspec.json.decode(body)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (msgspec.DecodeError, LookupError, TypeError):
        text = body.decode(errors="replace")[:500]
    return "".join(character if character.isprintable() else " " for character in text)
