"""`/tokenize` and `/detokenize`: text to token ids and back, beside the event loop where there is much of it; and
`/tokenizer_info`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.text.template import ChatTemplate
from pawl.actors.unread import SHORT, size_of
from pawl.http.chat import check_messages, template_options
from pawl.http.context import ServerContext
from pawl.http.description import HasContext, takes
from pawl.http.errors import Problem, json_response
from pawl.http.openai import check_model
from pawl.http.response_fields import ResponsesBody, chat_of
from pawl.http.schemas import ChatBody, DetokenizeBody, TokenizeBody
from pawl.http.tools import ReasoningMarks, reading_of

T = TypeVar("T")

MAX_TEXT = 500_000
"""Characters of one call."""
MAX_TOKENS = 200_000
"""Token ids of one call."""
LITTLE = 2_000
"""Characters or token ids that are converted in the event loop itself."""
MOST_CALLS = 32
"""Calls with more that may be there at a time."""


class Beside:
    """Work beside the event loop, of one call at a time: more threads would only take processors from the model."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._num_calls = 0

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """What `work` gives, which is done at once where its `size` is little. Raises Problem when too many wait."""
        if size <= LITTLE:
            return work()
        if self._num_calls >= MOST_CALLS:
            raise Problem(503, f"{self._num_calls} calls wait for long texts to be converted; try again later")
        self._num_calls += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(work)
        finally:
            self._num_calls -= 1


def _chat_of(body: TokenizeBody) -> ChatBody:
    """The chat whose messages are in `body`."""
    names = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools", "tool_choice")
    return ChatBody(messages=body.messages or [], **{name: getattr(body, name) for name in names})


class TokenRoutes(HasContext):
    """What the model's vocabulary makes of text."""

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        # Nobody waits for a long text but those who send one. A template, too, works for one call at a time.
        self._lanes = [(Beside(), ChatTemplate(context.tokenization)) for _ in ("short", "long")]

    def routes(self) -> list[Route]:
        return [
            *(Route(path, self.tokenize, methods=["POST"]) for path in ("/tokenize", "/v1/tokenize")),
            *(Route(path, self.detokenize, methods=["POST"]) for path in ("/detokenize", "/v1/detokenize")),
            Route("/v1/responses/input_tokens", self.count, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info, methods=["GET"]),
        ]

    @takes(TokenizeBody)
    async def tokenize(self, request: Request, body: TokenizeBody) -> Response:
        """The token ids of a text, of each of a list of texts, or of a conversation."""
        check_model(self.context.info, body.model)
        given = [each for each in (body.prompt, body.text, body.messages) if each is not None]
        if len(given) != 1:
            raise Problem(400, "send exactly one of prompt, text and messages", param="prompt")
        words = body.prompt if body.prompt is not None else body.text
        text = await self._written(_chat_of(body)) if words is None else words
        texts = [text] if isinstance(text, str) else text
        size = sum(map(len, texts))
        if size > MAX_TEXT:
            raise Problem(413, f"one call takes {MAX_TEXT} characters, not {size}", param="prompt")
        special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
        size += len(texts)
        beside, _ = self._lane(size)
        encoded, named = await beside.do(size, lambda: self._encoded(texts, special, bool(body.return_token_strs)))
        counts = [len(one) for one in encoded]
        single = isinstance(text, str)
        reply: dict[str, Any] = {
            "tokens": encoded[0] if single else encoded,
            "count": counts[0] if single else counts,
            "max_model_len": self.context.info.context_length,
        }
        if named:
            reply["token_strs"] = named[0] if single else named
        return json_response(reply)

    @takes(ResponsesBody)
    async def count(self, request: Request, body: ResponsesBody) -> Response:
        """How many tokens the input of such a call of `/v1/responses` has."""
        check_model(self.context.info, body.model)
        text = await self._written(chat_of(body))
        if len(text) > MAX_TEXT:
            raise Problem(413, f"one call takes {MAX_TEXT} characters, not {len(text)}", param="input")
        beside, _ = self._lane(len(text))
        count = await beside.do(len(text), lambda: len(self.context.tokenization.encode(text, False)))
        return json_response({"object": "response.input_tokens", "input_tokens": count})

    async def _written(self, chat: ChatBody) -> str:
        """What the chat template makes of the messages, as a call of `/v1/chat/completions` would have it."""
        check_messages(chat.messages)
        options = template_options(chat, reading_of(chat, self.context.info, ReasoningMarks()))
        now, size = datetime.now(UTC), LITTLE + size_of(chat.messages)
        beside, template = self._lane(size)
        return await beside.do(size, lambda: template.render(chat.messages, options, now))

    def _lane(self, size: int) -> tuple[Beside, ChatTemplate]:
        return self._lanes[size > SHORT]

    def _encoded(self, texts: Sequence[str], special: bool, names: bool) -> tuple[list[list[int]], list[list[str]]]:
        """Token ids of each text, and their texts where these are wanted."""
        tokenization = self.context.tokenization
        encoded = [[int(token) for token in tokenization.encode(one, special)] for one in texts]
        return encoded, [list(map(tokenization.token_text, tokens)) for tokens in encoded] if names else []

    @takes(DetokenizeBody)
    async def detokenize(self, request: Request, body: DetokenizeBody) -> Response:
        """The text of token ids, or of each of a list of lists."""
        check_model(self.context.info, body.model)
        skip = body.skip_special_tokens is not False
        flat = not body.tokens or isinstance(body.tokens[0], int)
        size = len(body.tokens) if flat else LITTLE + sum(len(one) for one in body.tokens if isinstance(one, list))
        beside, _ = self._lane(size)
        decoded = await beside.do(size, lambda: self._decoded(body.tokens, skip))
        return json_response({"text": decoded, "prompt": decoded})

    @cached_property
    def _tokenizer_info(self) -> dict[str, Any]:
        words = self.context.tokenization
        first = [words.token_text(int(token)) for token in words.encode("")[:1]]
        return {
            "tokenizer_class": words.tokenizer_class,
            "bos_token": words.bos_token or None,
            "eos_token": words.eos_token or None,
            "add_bos_token": first == [words.bos_token],
            "model_max_length": self.context.info.context_length,
            "chat_template": words.chat_templates.get("default"),
            "added_tokens_decoder": words.added_tokens,
        }

    async def tokenizer_info(self, request: Request) -> Response:
        """What a client must know to count tokens as the model does, under the names of tokenizer_config.json."""
        return json_response(self._tokenizer_info)

    def _decoded(self, tokens: Sequence[int | list[int]], skip: bool) -> str | list[str]:
        flat = [token for token in tokens if isinstance(token, int)]
        lists = [one for one in tokens if not isinstance(one, int)]
        if flat and lists:
            raise Problem(400, "tokens must not mix token ids and lists", param="tokens")
        count = len(flat) + sum(map(len, lists))
        if count > MAX_TOKENS:
            raise Problem(413, f"one call takes {MAX_TOKENS} token ids, not {count}", param="tokens")
        size = self.context.info.vocabulary_size
        for ids in (flat, *lists):
            if max(ids, default=0) >= size:
                raise Problem(400, f"token {max(ids)} is outside the vocabulary of {size}", param="tokens")
        decode = self.context.tokenization.decode
        return [decode(ids, skip) for ids in lists] if lists else decode(flat, skip)
