"""What a server says of itself, as far as it can be read, and what happens between two looks at it.

Nothing here trusts the shape of what comes: another version of the server may leave things out or add some.
"""

from __future__ import annotations

import http
import math
from collections import deque
from typing import Any, TypeAlias

import msgspec

from pawl.commands.remote import Server, problem

Json: TypeAlias = dict[str, Any]
"""An object."""

PATIENCE_S = 5.0
"""How long one answer may take."""
NUM_LOOKS = 6
"""Rates are over so many looks at the most."""
REFUSED = (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN)


class Reading(msgspec.Struct, frozen=True):
    """One look at a server that answered."""

    at: float
    """Monotonic seconds, here."""
    clock: str
    """The time of day, here."""
    server: Json
    """What `/server_info` says, but for the scheduler's own words."""
    state: Json
    """Those; with `error` alone where it did not answer."""
    health: Json
    """What `/health` says."""
    listed: bool = True
    """Whether we may see every request."""

    def number(self, *path: str) -> float:
        """A number of the scheduler; 0 where there is none."""
        return number(self.state, *path)


class Lost(msgspec.Struct, frozen=True):
    """One look at a server that did not answer, or not with what we asked for."""

    at: float
    clock: str
    why: str


class Watched(msgspec.Struct):
    """What all looks together say."""

    url: str
    looks: deque[Reading] = msgspec.field(default_factory=lambda: deque(maxlen=NUM_LOOKS))
    """The latest ones, of one run of the server."""
    lost: Lost | None = None
    """The first of the looks in vain since the last that was not."""
    why: str = ""
    """What the last of them said."""

    @property
    def last(self) -> Reading | None:
        return self.looks[-1] if self.looks else None

    def add(self, look: Reading | Lost) -> None:
        """One more look. A server that has started anew begins new rates."""
        if isinstance(look, Lost):
            self.lost, self.why = self.lost or look, look.why
            return
        last = self.last
        if self.lost is not None or (last is not None and look.number("counters", "steps") < _steps(last)):
            self.looks.clear()
        self.lost, self.why = None, ""
        self.looks.append(look)

    def rate(self, *path: str) -> float | None:
        """By how much a number of the scheduler grows in a second; None while that is not known."""
        if len(self.looks) < 2 or self.looks[-1].at <= self.looks[0].at:
            return None
        first, last = self.looks[0], self.looks[-1]
        return (last.number(*path) - first.number(*path)) / (last.at - first.at)


def _steps(reading: Reading) -> float:
    return reading.number("counters", "steps")


def at(value: Any, *path: str) -> Any:
    """What stands there in objects within objects; None where nothing does."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any, *path: str) -> float:
    """The number there; 0 where there is none, or none that a float holds."""
    found = at(value, *path)
    if not isinstance(found, int | float):
        return 0.0
    try:
        return float(found) if math.isfinite(found) else 0.0
    except OverflowError:
        return 0.0


def objects(value: Any, *path: str) -> list[Json]:
    """The objects of the list there."""
    found = at(value, *path)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


class Source:
    """A server, asked over HTTP."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises UsageError for what is no URL."""
        self._server = Server(url, key)

    def look(self, at: float, clock: str) -> Reading | Lost:
        """Ask it what it does."""
        try:
            status, body = self._ask("GET", "/server_info?detail=true")
            listed = status not in REFUSED
            if not listed:
                status, body = self._ask("GET", "/server_info")
            info = msgspec.json.decode(body) if status == http.HTTPStatus.OK else None
            health = msgspec.json.decode(self._ask("GET", "/health")[1])
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            return Lost(at, clock, str(error) or type(error).__name__)
        if not isinstance(info, dict):
            return Lost(at, clock, f"it says {status}: {problem(body)}")
        inner = objects(info, "internal_states")
        state = inner[0] if inner else {"error": "this server says nothing of its scheduler"}
        server = {name: value for name, value in info.items() if name != "internal_states"}
        return Reading(at, clock, server, state, health if isinstance(health, dict) else {}, listed)

    def do(self, path: str, body: Json) -> str:
        """Send a control message; what came of it, in words."""
        try:
            status, reply = self._ask("POST", path, msgspec.json.encode(body))
        except OSError as error:
            return str(error) or type(error).__name__
        return "done" if status == http.HTTPStatus.OK else f"not done ({status}): {problem(reply)}"

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        return self._server.ask(method, path, body, PATIENCE_S)
