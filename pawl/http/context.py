"""What every route handler needs, in one value."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request

from pawl.actors import fields
from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.runtime.system import ActorStatistics
from pawl.http.body import Body, BodyBudget, read_body
from pawl.http.errors import Problem
from pawl.http.info import ServerInfo, Tokenization

Statistics = Callable[[], Mapping[str, ActorStatistics]]
"""Counters of the running actors by name."""
Homes = Callable[[], Sequence[Mapping[str, Any]]]
"""Where each replica lives: its number, role, process and machine."""


@dataclass(frozen=True)
class ServerContext:
    """One served model: its engine behind the gateway, and the limits of its HTTP side."""

    gateway: Gateway
    started: ServerInfo
    """As the server started."""
    tokenization: Tokenization
    statistics: Statistics
    max_body_bytes: int
    probe_timeout_s: float
    """How long `/health_generate` waits for its token."""
    bodies: BodyBudget
    homes: Homes
    cut: Mapping[str, int]
    """Reason -> connections and requests that were cut for it (see `Connection`)."""
    loading: dict[str, asyncio.Future[Reply]] = field(default_factory=dict)
    """Adapters, by name, that are being loaded again for requests."""

    @property
    def info(self) -> ServerInfo:
        """Facts about the server, with the weights that it serves now."""
        now, started = self.gateway.weights, self.started
        if now is None:
            return started
        served = {"weight_version": now.version, "model_path": now.source or started.model_path}
        return msgspec.structs.replace(started, **served, aliases=(*started.aliases, started.model_path))

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """The request's body as `kind`."""
        return fields.decode(await read_body(request, self.max_body_bytes, self.bodies), kind)

    def check_count(self, num_prompts: int, n: int) -> None:
        """Refuse a call that alone asks for more requests than may be open: it could never be served."""
        if num_prompts * n > self.gateway.limit:
            what = f"{num_prompts} prompts" if n == 1 else f"{num_prompts} prompts with {n} choices each"
            text = f"{what} are more than the {self.gateway.limit} requests this server takes at a time; send fewer"
            raise Problem(413, text, code="too_many_requests_in_call")
