"""One HTTP call for what a model makes, from submission to the last byte; the same for all routes.

A renderer knows what a route's replies look like. The reply knows everything else: when the status line may go out,
what a failure does before and after that, and that a client which hangs up, streaming or not, is an abort.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pawl.actors.gateway import Gateway
from pawl.actors.messages.generate import Submit
from pawl.actors.sink import Delta, Inbox
from pawl.http.errors import Problem, from_delta
from pawl.http.streams import Again, RequestGroup, watch
from pawl.http.turnstile import Turnstile, turn_of
from pawl.lifecycle.states import Cause

log = structlog.get_logger("pawl.http")
Part = TypeVar("Part")
Made = TypeVar("Made")

HEADER_PATIENCE_S = 1.0
"""A stream's status line waits this long for the first output, so that a refusal can still be a proper status."""

MANY_SCORES = 200
"""Tokens with scores that are written without giving others their turn."""
MANY_CHARACTERS = 10_000
"""The same of text, in which calls and reasoning may be looked for a character at a time."""
MANY_NUMBERS = 10_000
"""The same of vectors."""


class WholeRenderer(Protocol):
    """What the reply to one call looks like."""

    independent: bool
    """Whether an item that fails leaves the other items of the call alone, and says so in a delta of its own."""

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        """The JSON body when nothing is streamed: everything of each request, in order, and where it came in."""

    def problem(self, problem: Problem) -> Problem:
        """The failure in this route's words."""


class Renderer(WholeRenderer, Protocol):
    """What the replies of a call look like that may be streamed."""

    def delta(self, index: int, delta: Delta, inbox: Inbox) -> bytes:
        """Server-sent events for what is new in request `index`; may be empty."""

    def closing(self) -> bytes:
        """Events after the last delta, before `[DONE]`; may be empty."""

    done_event: bytes
    """What comes last in a stream."""

    def failure(self, problem: Problem) -> bytes:
        """The event of a failure that ends a stream under way."""


async def beside(deltas: Sequence[Delta], write: Callable[[], bytes]) -> bytes:
    """What `write` makes of `deltas`, written beside the event loop where there is much to write."""
    num_scores = num_characters = num_numbers = 0
    for delta in deltas:
        num_scores += len(delta.logprobs) + len(delta.prompt_logprobs)
        num_characters += len(delta.text)
        if delta.embedding is not None:
            num_numbers += len(delta.embedding)
    if num_scores > MANY_SCORES or num_characters > MANY_CHARACTERS or num_numbers > MANY_NUMBERS:
        return await asyncio.to_thread(_written, deltas, write)
    return write()


def _written(deltas: Sequence[Delta], write: Callable[[], bytes]) -> bytes:
    """Scores are freed here as well, which takes as long as writing some of them."""
    data = write()
    for delta in deltas:
        delta.logprobs = delta.prompt_logprobs = ()
    return data


async def in_turns(parts: Iterable[Part], work: Callable[[Part], Made]) -> list[Made]:
    """What `work` makes of each part, in order. Others on the event loop have a turn after each."""
    made = []
    for part in parts:
        made.append(work(part))
        await asyncio.sleep(0)
    return made


class Reply(Response):
    """An ASGI response that submits requests, and answers with all that comes of them in one body."""

    def __init__(
        self, gateway: Gateway, submits: Sequence[Submit], renderer: WholeRenderer, again: Again | None = None
    ) -> None:
        """`again`: see `RequestGroup`."""
        super().__init__()
        self._gateway = gateway
        self._again = again
        self._submits = submits
        self._renderer = renderer
        name = (submits[0].group or submits[0].rid).encode("ascii", "replace")
        self._name_header = (b"x-request-id", bytes(byte if 32 <= byte < 127 else ord("?") for byte in name))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        group = self._group()
        watcher = asyncio.ensure_future(watch(receive, group.abandon))
        try:
            await self._answer(group, send)
        finally:
            watcher.cancel()
            if group.open:
                # The handler was cancelled or failed: nobody reads on.
                group.abandon()

    def _group(self) -> RequestGroup:
        return RequestGroup(self._gateway, self._submits, whole=True, again=self._again)

    async def _answer(self, group: RequestGroup, send: Send) -> None:
        ends = await self._ends(group)
        if ends is None:
            return
        problems = [from_delta(delta) for delta in ends]
        first = problems[0]
        if first is not None and all(problems):
            raise self._renderer.problem(first)
        await turn_of(self._scope)
        await self._write(ends, group.inboxes, send)

    async def _ends(self, group: RequestGroup) -> list[Delta] | None:
        """All that came of each request, once every one has ended; None when the client has gone."""
        results: dict[int, Delta] = {}
        while len(results) < len(group.requests):
            arrivals = await group.arrivals()
            if group.gone:
                return None
            failure = self._failure(group, arrivals)
            if failure is not None:
                raise failure
            results.update(arrivals)
        return [results[index] for index in range(len(results))]

    async def _write(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox], send: Send) -> None:
        body = await beside(deltas, lambda: self._renderer.whole(deltas, inboxes))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            self._name_header,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _failure(
        self, group: RequestGroup, arrivals: Sequence[tuple[int, Delta]], begun: bool = False
    ) -> Problem | None:
        """The failure among `arrivals` that ends the whole call; what else runs is then ended too. Once the reply has
        `begun`, independent items tell their own failures."""
        if self._renderer.independent and (begun or len(group.requests) > 1):
            return None
        for _, delta in arrivals:
            problem = from_delta(delta)
            if problem is not None:
                group.abort(Cause.CLIENT, "another part of the same call failed")
                return self._renderer.problem(problem)
        return None


class ReplyStream(Reply):
    """A reply that tells what comes of its requests as it comes."""

    def __init__(
        self, gateway: Gateway, submits: Sequence[Submit], renderer: Renderer, again: Again | None = None
    ) -> None:
        super().__init__(gateway, submits, renderer, again)
        self._events_of = renderer
        self._begun = False
        """Whether the status line has gone out."""

    def _group(self) -> RequestGroup:
        return RequestGroup(self._gateway, self._submits, whole=False, again=self._again)

    async def _answer(self, group: RequestGroup, send: Send) -> None:
        try:
            await self._streamed(group, send)
        except Exception as error:
            if not self._begun:
                raise
            log.error("a reply could not be written to its end", error=type(error).__name__, requests=group.requests)
            problem = Problem(500, "the server failed", code="internal")
            events = self._events_of.failure(problem) + self._events_of.done_event
            await send({"type": "http.response.body", "body": events})

    async def _streamed(self, group: RequestGroup, send: Send) -> None:
        arrivals = await group.arrivals(HEADER_PATIENCE_S)
        failure = self._failure(group, arrivals)
        if failure is not None:
            raise failure
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            self._name_header,
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._begun = True
        num_open = len(group.requests)
        turnstile: Turnstile = self._scope["turnstile"]
        while not group.gone:
            events = await beside([delta for _, delta in arrivals], partial(self._events, group, arrivals))
            num_open -= sum(delta.final for _, delta in arrivals)
            last = failure is not None or num_open == 0
            if failure is not None:
                events += self._events_of.failure(failure) + self._events_of.done_event
            elif last:
                events += self._events_of.closing() + self._events_of.done_event
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": not last})
            if last:
                return
            turnstile.num_streams += 1
            try:
                arrivals = await group.arrivals()
                failure = self._failure(group, arrivals, begun=True)
            except Problem as problem:  # of adapters that could not be loaded again
                arrivals, failure = [], self._renderer.problem(problem)
            finally:
                turnstile.num_streams -= 1

    def _events(self, group: RequestGroup, arrivals: Sequence[tuple[int, Delta]]) -> bytes:
        renderer = self._events_of
        if len(arrivals) == 1:
            index, delta = arrivals[0]
            return renderer.delta(index, delta, group.inboxes[index])
        return b"".join(renderer.delta(index, delta, group.inboxes[index]) for index, delta in arrivals)


def reply(
    gateway: Gateway, submits: Sequence[Submit], renderer: Renderer, stream: bool, again: Again | None = None
) -> Reply:
    """The answer in one body, or as a stream."""
    return (ReplyStream if stream else Reply)(gateway, submits, renderer, again)
