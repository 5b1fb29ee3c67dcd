"""The handlers of the routes that generate text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.messages.generate import Submit
from pawl.http.chat import ChatRenderer, chat_drafts
from pawl.http.completions import CompletionRenderer, completion_drafts
from pawl.http.context import ServerContext
from pawl.http.native import NativeRenderer, understand
from pawl.http.replies import ReplyStream
from pawl.http.schemas import ChatBody, CompletionBody, GenerateBody


class GenerationRoutes:
    """`/v1/completions`, `/v1/chat/completions` and `/generate`."""

    def __init__(self, site: ServerContext) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        return [
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/generate", self.generate, methods=["POST", "PUT"]),
        ]

    async def complete(self, request: Request) -> Response:
        body = await self._site.read(request, CompletionBody)
        drafts, n = completion_drafts(body, self._site.info)
        echoes = [self._echo(draft) for draft in drafts] if body.echo else []
        drafts, frame = self._named(body, drafts, n, "cmpl")
        face = CompletionRenderer(*frame, top_logprobs=body.logprobs, echoes=echoes)
        return ReplyStream(self._site.gateway, drafts, face, bool(body.stream))

    async def chat(self, request: Request) -> Response:
        body = await self._site.read(request, ChatBody)
        drafts, n = chat_drafts(body, self._site.info)
        drafts, frame = self._named(body, drafts, n, "chatcmpl")
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        face = ChatRenderer(*frame, top_logprobs=top_logprobs)
        return ReplyStream(self._site.gateway, drafts, face, bool(body.stream))

    async def generate(self, request: Request) -> Response:
        body = await self._site.read(request, GenerateBody)
        call = understand(body, self._site.info, self._site.gateway.new_rid)
        return ReplyStream(self._site.gateway, call.drafts, NativeRenderer(call, self._site.info), bool(body.stream))

    def _named(
        self, body: CompletionBody | ChatBody, drafts: list[Submit], n: int, prefix: str
    ) -> tuple[list[Submit], tuple[Any, ...]]:
        """The drafts under the call's one rid, and what all faces of OpenAI's routes are made from."""
        rid = body.rid or self._site.gateway.new_rid()
        options = msgspec.structs.asdict(body.stream_options) if body.stream_options else {}
        named = [msgspec.structs.replace(draft, rid=rid) for draft in drafts]
        return named, (self._site.info, f"{prefix}-{rid}", int(time.time()), n, options)

    def _echo(self, draft: Submit) -> Callable[[], str]:
        """The prompt's text, made when it is needed: a prompt of bad token ids is refused before that."""
        text, ids = draft.text, draft.token_ids
        if text is not None:
            return lambda: text
        return lambda: self._site.tokenization.decode(ids or (), False)
