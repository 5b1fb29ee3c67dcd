"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Done, Submit, Usage
from pawl.actors.sampling import build_sampling
from pawl.actors.sink import Delta, Inbox
from pawl.actors.text.template import text_of
from pawl.http.adapters import adapter_of
from pawl.http.completions import check_scored
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.message import MessageReader
from pawl.http.openai import base_submit, check_common, choices_of, most_rivals
from pawl.http.rendering import (
    FINISH_REASONS,
    Frame,
    OpenAiRenderer,
    encode,
    finite,
    prompt_scores,
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
    adapter = adapter_of(context, body.model, body.lora_path)
    check_common(body, UNSUPPORTED)
    check_messages(body.messages)
    limits = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        text = "max_tokens and max_completion_tokens contradict each other; send one of them"
        raise Problem(400, text, param="max_completion_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise Problem(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    n = body.n or 1
    context.check_count(1, n)
    rivals = most_rivals((body.top_logprobs or 0) if body.logprobs else None, body.prompt_logprobs)
    if body.prompt_logprobs is not None:
        check_scored(len(encode(body.messages)) * n * ((rivals or 0) + 1))
    sampling = build_sampling(
        body,
        context.info.limits,
        context.gateway.new_seed(),
        max_new_tokens=next(iter(limits), None),
        min_new_tokens=body.min_tokens,
        top_logprobs=rivals,
        prompt_logprobs=body.prompt_logprobs is not None,
        grammar=reading.grammar,
    )
    if sampling.grammar is not None and reading.before_grammar is not None:
        grammar = msgspec.structs.replace(sampling.grammar, reasoning=reading.before_grammar)
        sampling = msgspec.structs.replace(sampling, grammar=grammar)
    base = base_submit(body, sampling, not limits, rid, adapter)
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
    names = ("reasoning_effort", "verbosity", "add_generation_prompt", "continue_final_message", "documents")
    return {
        **(WITHOUT_REASONING if body.reasoning_effort == "none" else {}),
        **{name: value for name in names if (value := getattr(body, name)) is not None},
        **(body.chat_template_kwargs or {}),
        **reading.template_options,
    }


def echo_of(body: ChatBody) -> str:
    """The text that comes before the reply's own: that of the last message, if the reply goes on with it."""
    return text_of(body.messages[-1].get("content"), "content") if body.echo and body.continue_final_message else ""


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Refuse a message that says nothing: a misspelt `content` would otherwise be answered as if it were empty. Only
    an assistant may leave it out, where it called tools instead."""
    if not messages:
        raise Problem(400, "messages must not be empty", param="messages")
    for index, message in enumerate(messages):
        if message.get("content") is None and message.get("role") in ("user", "system", "developer", "tool"):
            where = f"messages[{index}].content"
            raise Problem(400, f"{where} is missing; send text, which may be empty", param=where)


class ChatRenderer(OpenAiRenderer):
    """Replies of one call."""

    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"
    nothing = b',"delta":{"reasoning_content":null}'

    def __init__(
        self,
        frame: Frame,
        *,
        top_logprobs: int | None,
        token_bytes: Callable[[int], bytes],
        make_reader: Callable[[Inbox], MessageReader] | None,
        echo: str = "",
    ) -> None:
        """`make_reader` tells calls and reasoning from the text of one choice; None: all of it is content. `echo` is
        the beginning of the message, which was there before."""
        super().__init__(frame)
        self._echo = echo
        self._top_logprobs = top_logprobs
        self._token_bytes = token_bytes
        self._make_reader = make_reader
        self._readers: dict[int, MessageReader] = {}

    def parts(self, index: int, text: str, delta: Delta, inbox: Inbox) -> Sequence[bytes]:
        # The role comes together with the first text: alone it would look like an early first token.
        opening = {"role": "assistant", "content": self._echo, "reasoning_content": None}
        first = [] if self.has_begun(index) else [b',"delta":' + encode(opening)]
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
            content = self._echo + delta.text
            return {"message": {"role": "assistant", "content": content, "refusal": None, "reasoning_content": None}}
        reader = self._reader(index, inbox)
        message = reader.message(self._read(reader, delta))
        if self._echo:
            message["content"] = self._echo + (message["content"] or "")
        return {"message": {"role": "assistant", **message, "refusal": None}}

    def first_tail(self, tail: bytes, inbox: Inbox) -> bytes:
        if not self.frame.token_ids or inbox.accept is None:
            return tail
        return tail.removesuffix(b"}\n\n") + b',"prompt_token_ids":' + encode(inbox.accept.prompt) + b"}\n\n"

    def extras(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> dict[str, Any]:
        extras: dict[str, Any] = {"prompt_logprobs": None}
        if self.frame.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_scores(deltas[0].prompt_logprobs, self.frame.prompt_logprobs)
        if self.frame.token_ids and inboxes[0].accept is not None:
            extras["prompt_token_ids"] = inboxes[0].accept.prompt
        return extras

    def reason(self, index: int, done: Done) -> str:
        reader = self._readers.get(index)
        if reader is None or not reader.num_calls or FINISH_REASONS[done.cause] != "stop":
            return super().reason(index, done)
        return "function_call" if reader.functions else "tool_calls"

    def usage(self, usages: Sequence[Usage], indices: Sequence[int], n: int) -> dict[str, Any]:
        body = usage_body(usages, n)
        counts = [self._readers[index].num_reasoning for index in indices if index in self._readers]
        if any(count is not None for count in counts):
            body["completion_tokens_details"] = {"reasoning_tokens": sum(count or 0 for count in counts)}
        return body

    def scores(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if self._top_logprobs is None:
            return None
        return {"content": scored(delta, self._top_logprobs, self._token_bytes, self.name), "refusal": None}


def _content(text: str) -> bytes:
    # SGLang's clients ask every delta and every message for its reasoning; others pass over what is null.
    return b',"delta":{"content":' + encode(text) + b',"reasoning_content":null}'


def scored(
    delta: Delta, num_top: int, token_bytes: Callable[[int], bytes], name: Callable[[int, str], str]
) -> list[dict[str, Any]]:
    """The new tokens with their scores and rivals. The bytes of one may be a part of a character only."""

    def one(token: int, text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": name(token, text), "logprob": finite(logprob), "bytes": list(token_bytes(token))}

    return [
        {
            **one(entry.token, entry.text, entry.logprob),
            "top_logprobs": [one(token, text, logprob) for token, logprob, text in entry.top[:num_top]],
        }
        for entry in delta.logprobs
    ]
