"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Done, Submit, TokenLogprob, Usage
from pawl.actors.sampling import build_sampling
from pawl.actors.sink import Delta, Inbox
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.message import MessageReader
from pawl.http.openai import (
    FINISH_REASONS,
    OpenAiRenderer,
    base_submit,
    check_common,
    choices_of,
    encode,
    finite,
    usage_body,
)
from pawl.http.schemas import ChatBody, unsupported
from pawl.http.tools import Reading
from pawl.parsers.events import Event

UNSUPPORTED = unsupported(ChatBody)
WITHOUT_REASONING = {"enable_thinking": False, "thinking": False}
"""Names under which templates know whether a model is to reason."""


def chat_submits(body: ChatBody, reading: Reading, rid: str, context: ServerContext) -> list[Submit]:
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
    if not reading.plain:
        # The marks of calls and of reasoning are special tokens in some vocabularies.
        text_options = msgspec.structs.replace(base.text_options, skip_special_tokens=False)
        mark = reading.reasoning.begin if reading.reasoning is not None else ""
        base = msgspec.structs.replace(base, text_options=text_options, reasoning_mark=mark)
    options = template_options(body, reading)
    return choices_of(msgspec.structs.replace(base, chat=tuple(body.messages), template_options=options), n)


def template_options(body: ChatBody, reading: Reading) -> dict[str, Any]:
    """Everything the chat template is told beside the messages."""
    if body.continue_final_message and (body.add_generation_prompt or body.messages[-1].get("role") != "assistant"):
        text = "continue_final_message needs a last message of the assistant, and no add_generation_prompt"
        raise Problem(400, text, param="continue_final_message")
    names = ("reasoning_effort", "add_generation_prompt", "continue_final_message", "documents")
    return {
        **(WITHOUT_REASONING if body.reasoning_effort == "none" else {}),
        **{name: value for name in names if (value := getattr(body, name)) is not None},
        **(body.chat_template_kwargs or {}),
        **reading.template_options,
    }


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
    nothing = b',"delta":{}'

    def __init__(
        self,
        *frame: Any,
        top_logprobs: int | None,
        token_bytes: Callable[[int], bytes],
        make_reader: Callable[[Inbox], MessageReader] | None,
    ) -> None:
        """`make_reader` tells calls and reasoning from the text of one choice; None: all of it is content."""
        super().__init__(*frame)
        self._top_logprobs = top_logprobs
        self._token_bytes = token_bytes
        self._make_reader = make_reader
        self._readers: dict[int, MessageReader] = {}

    def parts(self, index: int, text: str, delta: Delta, inbox: Inbox) -> Sequence[bytes]:
        # The role comes together with the first text: alone it would look like an early first token.
        first = [] if self.has_begun(index) else [b',"delta":{"role":"assistant","content":""}']
        if self._make_reader is None:
            return [*first, _content(text)] if text else first
        reader = self._reader(index, inbox)
        return [*first, *[b',"delta":' + encode(part) for part in reader.deltas(self._read(reader, delta))]]

    def _reader(self, index: int, inbox: Inbox) -> MessageReader:
        if index not in self._readers:
            assert self._make_reader is not None
            self._readers[index] = self._make_reader(inbox)
        return self._readers[index]

    def _read(self, reader: MessageReader, delta: Delta) -> list[Event]:
        return reader.read(delta.text, delta.tokens, last=delta.done is not None)

    def choice(self, index: int, delta: Delta, inbox: Inbox) -> dict[str, Any]:
        if self._make_reader is None:
            return {"message": {"role": "assistant", "content": delta.text, "refusal": None}}
        reader = self._reader(index, inbox)
        return {"message": {"role": "assistant", **reader.message(self._read(reader, delta)), "refusal": None}}

    def reason(self, index: int, done: Done) -> str:
        reader = self._readers.get(index)
        called = reader is not None and reader.num_calls > 0 and FINISH_REASONS[done.cause] == "stop"
        return "tool_calls" if called else super().reason(index, done)

    def usage(self, usages: Sequence[Usage], indices: Sequence[int], n: int) -> dict[str, Any]:
        body = usage_body(usages, n)
        counts = [self._readers[index].num_reasoning for index in indices if index in self._readers]
        if any(count is not None for count in counts):
            body["completion_tokens_details"] = {"reasoning_tokens": sum(count or 0 for count in counts)}
        return body

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


def _content(text: str) -> bytes:
    return b',"delta":{"content":' + encode(text) + b"}"


def _rivals(entry: TokenLogprob, count: int) -> list[tuple[int, str, float]]:
    return [(token, text, logprob) for token, logprob, text in entry.top[:count]]
