"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pawl.actors.messages.generate import Submit, TokenLogprob
from pawl.actors.sampling import build_sampling
from pawl.actors.sink import Delta
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.openai import OpenAiRenderer, base_submit, check_common, choices_of, encode, finite
from pawl.http.schemas import ChatBody, unsupported

UNSUPPORTED = unsupported(ChatBody)
WITHOUT_TOOLS = tuple(name for name in UNSUPPORTED if name != "tools")


def chat_submits(body: ChatBody, rid: str, context: ServerContext) -> list[Submit]:
    """One request for each choice. What else messages hold is checked by the template."""
    # Tools that must not be called change nothing.
    check_common(body, context.info, UNSUPPORTED if body.tool_choice != "none" else WITHOUT_TOOLS)
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

    def __init__(self, *frame: Any, top_logprobs: int | None, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__(*frame)
        self._top_logprobs = top_logprobs
        self._token_bytes = token_bytes

    def opening_part(self, index: int) -> bytes:
        # Sent together with the first text: alone it would look like an early first token.
        return b',"delta":{"role":"assistant","content":""}'

    def text_part(self, text: str) -> bytes:
        return b',"delta":{"content":' + encode(text) + b"}" if text else b',"delta":{}'

    def choice(self, index: int, delta: Delta) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": delta.text, "refusal": None}}

    def scores(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if self._top_logprobs is None:
            return None
        content = [
            {
                **self._scored(entry.token, entry.text, entry.logprob),
                "top_logprobs": [self._scored(*rival) for rival in _rivals(entry, self._top_logprobs)],
            }
            for entry in delta.logprobs
        ]
        return {"content": content, "refusal": None}

    def _scored(self, token: int, text: str, logprob: float | None) -> dict[str, Any]:
        """A token with its score; its bytes may be a part of a character only."""
        return {"token": text, "logprob": finite(logprob), "bytes": list(self._token_bytes(token))}


def _rivals(entry: TokenLogprob, count: int) -> list[tuple[int, str, float]]:
    return [(token, text, logprob) for token, logprob, text in entry.top[:count]]
