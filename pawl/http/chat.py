"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.actors.messages.generate import Submit
from pawl.actors.sampling import build_sampling
from pawl.actors.sink import Delta
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.openai import OpenAiRenderer, base_submit, check_common, choices_of, finite
from pawl.http.schemas import ChatBody, unsupported

UNSUPPORTED = unsupported(ChatBody)


def chat_submits(body: ChatBody, rid: str, context: ServerContext) -> list[Submit]:
    """One request for each choice. What else messages hold is checked by the template."""
    check_common(body, context.info, UNSUPPORTED)
    if not body.messages:
        raise Problem(400, "messages must not be empty", param="messages")
    _check_contents(body.messages)
    limits = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        text = "max_tokens and max_completion_tokens contradict each other; send one of them"
        raise Problem(400, text, param="max_completion_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    n = body.n or 1
    context.check_count(1, n)
    sampling = build_sampling(
        body,
        context.info.limits,
        context.gateway.new_seed(),
        max_new_tokens=next(iter(limits), None),
        min_new_tokens=body.min_tokens,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    base = base_submit(body, sampling, not limits, rid)
    options = body.chat_template_kwargs or {}
    return choices_of(msgspec.structs.replace(base, chat=tuple(body.messages), template_options=options), n)


def _check_contents(messages: list[dict[str, Any]]) -> None:
    """Refuse a message that says nothing: a misspelt `content` would otherwise be answered as if it were empty. Only
    an assistant may leave it out, where it called tools instead."""
    for index, message in enumerate(messages):
        if message.get("content") is None and message.get("role") in ("user", "system", "developer", "tool"):
            where = f"messages[{index}].content"
            raise Problem(400, f"{where} is missing; send text, which may be empty", param=where)


class ChatRenderer(OpenAiRenderer):
    """Replies of one call."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(self, *frame: Any, top_logprobs: int | None) -> None:
        super().__init__(*frame)
        self._top_logprobs = top_logprobs
        self._begun: set[int] = set()

    def text_part(self, index: int, text: bytes) -> bytes:
        # The role comes with the first text: a chunk of its own would look like an early first token.
        if index in self._begun:
            return b',"delta":{"content":' + text + b"}"
        self._begun.add(index)
        return b',"delta":{"role":"assistant","content":' + text + b"}"

    def choice(self, index: int, delta: Delta) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": delta.text, "refusal": None}}

    def scores(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if self._top_logprobs is None:
            return None
        content = [
            {
                **_scored(entry.text, entry.logprob),
                "top_logprobs": [_scored(text, logprob) for _, logprob, text in entry.top[: self._top_logprobs]],
            }
            for entry in delta.logprobs
        ]
        return {"content": content, "refusal": None}


def _scored(text: str, logprob: float | None) -> dict[str, Any]:
    """A token with its score. A token that is no whole character has no text, hence no bytes that we could give."""
    return {
        "token": text,
        "logprob": finite(logprob),
        "bytes": None if "\ufffd" in text else list(text.encode()),
    }
