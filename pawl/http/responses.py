"""`POST /v1/responses`: OpenAI's newer API, over the same chats. Nothing is kept: each call brings all there was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Done, Usage
from pawl.actors.sink import Delta, Inbox
from pawl.http.errors import Problem, from_delta
from pawl.http.message import MessageReader
from pawl.http.rendering import encode
from pawl.http.response_fields import ResponsesBody, wants_logprobs
from pawl.http.response_items import ItemWriter
from pawl.lifecycle.states import Cause

NAMES = {
    "max_new_tokens": "max_output_tokens",
    "min_new_tokens": "min_tokens",
    "max_tokens": "max_output_tokens",
    "token_ids": "input",
    "messages": "input",
    "prompt": "input",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
"""Our field names in the words of this route."""

INCOMPLETE: Mapping[Cause, str] = {Cause.LENGTH: "max_output_tokens", Cause.CLIENT: "content_filter"}
"""Why a response is not complete. There is no word for an abort; the other one is that somebody else ended it."""


class ResponsesRenderer:
    """The reply of one call."""

    independent = False
    done_event = b""

    def __init__(
        self,
        body: ResponsesBody,
        *,
        identity: str,
        created: int,
        model: str,
        make_reader: Callable[[Inbox], MessageReader],
        plain: bool,
        score: Callable[[Delta], list[Any]],
        writer: ItemWriter,
    ) -> None:
        """`score` gives the log-probabilities of what is new, as a chat has them. Unless the text is `plain`, nobody
        knows which of them belong to a message: the last one gets all."""
        self._body = body
        self._make_reader = make_reader
        self._score = score if wants_logprobs(body) else None
        self._plain = plain
        self._scores: list[Any] = []
        self._writer = writer
        self._reader: MessageReader | None = None
        self._number = 0
        self._begun = False
        self._fixed = {"id": f"resp_{identity}", "object": "response", "created_at": created, "model": model}

    def delta(self, index: int, delta: Delta, inbox: Inbox) -> bytes:
        """The events of what is new."""
        if from_delta(delta) is not None:
            return b""  # the failure has an event of its own
        events: list[dict[str, Any]] = []
        if not self._begun:
            self._begun = True
            response = self._response("in_progress")
            events += [{"type": kind, "response": response} for kind in ("response.created", "response.in_progress")]
        events += self._written(delta, inbox)
        if delta.done is not None:
            ended = self._ended(delta.done)
            events.append({"type": f"response.{ended['status']}", "response": ended})
        return b"".join(map(self._event, events))

    def closing(self) -> bytes:
        return b""

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        (delta,), (inbox,) = deltas, inboxes
        if delta.done is None:
            raise AssertionError("a refused request has no whole reply")
        self._written(delta, inbox)
        return encode(self._ended(delta.done))

    def problem(self, problem: Problem) -> Problem:
        return problem.renamed(NAMES)

    def failure(self, problem: Problem) -> bytes:
        """The event of a failure that ends the stream."""
        told = {"code": problem.code, "message": problem.message, "param": problem.param}
        return self._event({"type": "error", **told})

    def _event(self, event: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode({**event, "sequence_number": number}))

    def _written(self, delta: Delta, inbox: Inbox) -> list[dict[str, Any]]:
        if self._reader is None:
            self._reader = self._make_reader(inbox)
        events = self._reader.read(delta.text, delta.tokens, last=delta.done is not None)
        scores = self._score(delta) if self._score is not None else []
        self._scores += [] if self._plain else scores
        told = self._writer.write(events, scores if self._plain else ())
        if delta.done is not None:
            status = "incomplete" if delta.done.cause in INCOMPLETE else "completed"
            told += self._writer.close(status, self._scores)
        return told

    def _ended(self, done: Done) -> dict[str, Any]:
        reason = INCOMPLETE.get(done.cause)
        response = self._response("completed" if reason is None else "incomplete")
        if reason is not None:
            response["incomplete_details"] = {"reason": reason}
        return response | {"output": self._writer.items, "usage": self._usage(done.usage)}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        reasoning = self._reader.num_reasoning if self._reader is not None else None
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning or 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _response(self, status: str) -> dict[str, Any]:
        """The reply without what it holds: what was asked for, as it was understood."""
        body = self._body
        return {
            **self._fixed,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}, **(msgspec.to_builtins(body.text) if body.text is not None else {})},
            "tool_choice": msgspec.to_builtins(body.tool_choice) if body.tool_choice is not None else "auto",
            "tools": [{"parameters": None, "strict": None, **msgspec.to_builtins(tool)} for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }
