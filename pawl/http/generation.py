"""The handlers of the routes that generate text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.messages.generate import Submit
from pawl.actors.sink import Inbox
from pawl.http import completions, embeddings, native, openai, responses, scoring
from pawl.http.adapters import adapter_of, loaded_again, not_too_many, under_its_name
from pawl.http.beams import BeamReply, beams_of
from pawl.http.call_fields import StreamOptions
from pawl.http.chat import ChatRenderer, chat_submits, echo_of, scored
from pawl.http.completions import CompletionRenderer, candidates_of, completion_submits
from pawl.http.description import HasContext, takes
from pawl.http.echo import whole_text
from pawl.http.functions import with_tools
from pawl.http.message import MessageReader
from pawl.http.native import NativeRenderer, understand
from pawl.http.pair import check_paired
from pawl.http.rendering import Frame
from pawl.http.replies import Renderer, reply
from pawl.http.response_fields import ResponsesBody, chat_of
from pawl.http.response_items import ItemWriter
from pawl.http.responses import ResponsesRenderer
from pawl.http.schemas import ChatBody, CompletionBody, GenerateBody
from pawl.http.tools import Reading, ReasoningMarks, reading_of
from pawl.parsers.reasoning import FORMATS

NAMES = {
    "/v1/completions": completions.NAMES,
    "/v1/chat/completions": openai.CHAT_NAMES,
    "/v1/responses": responses.NAMES,
    "/v1/responses/input_tokens": responses.NAMES,
    "/generate": native.CLIENT_NAMES,
    "/v1/embeddings": embeddings.NAMES,
    "/pooling": embeddings.NAMES,
    "/encode": embeddings.ENCODE_NAMES,
    "/v1/score": scoring.NAMES,
    "/score": scoring.NAMES,
}
"""By path: our field names in the words of the route."""


class GenerationRoutes(HasContext):
    """`/v1/completions`, `/v1/chat/completions`, `/v1/responses` and `/generate`."""

    @cached_property
    def _marks(self) -> ReasoningMarks:
        form = self.context.info.reasoning_format
        return ReasoningMarks.of(FORMATS[form] if form is not None else None, self.context.tokenization)

    def routes(self) -> list[Route]:
        return [
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/responses", self.respond, methods=["POST"]),
            Route("/generate", self.generate, methods=["POST", "PUT"]),
        ]

    @takes(CompletionBody)
    async def complete(self, request: Request, body: CompletionBody) -> Response:
        """Text that goes on from a prompt, as OpenAI's older API has it."""
        check_paired(body, self.context)
        rid = self._rid(request, body)
        submits = completion_submits(body, rid, self.context)
        echoes = [self._echo(submit) for submit in submits] if body.echo else []
        renderer = CompletionRenderer(
            self._frame(body, "cmpl", rid, candidates_of(body)),
            top_logprobs=body.logprobs,
            echoes=echoes,
            tokenization=self.context.tokenization,
            hides_special=body.skip_special_tokens is not False,
        )
        return await self._searched(body, submits, renderer)

    @takes(ChatBody)
    async def chat(self, request: Request, body: ChatBody) -> Response:
        """The next message of a conversation, as OpenAI's API has it."""
        check_paired(body, self.context)
        rid, body = self._rid(request, body), with_tools(body)
        reading = reading_of(body, self.context.info, self._marks)
        submits = chat_submits(body, reading, rid, self.context)
        renderer = ChatRenderer(
            self._frame(body, "chatcmpl", rid, body.n or 1),
            echo=echo_of(body),
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            token_bytes=self.context.tokenization.token_bytes,
            make_reader=None if reading.plain else self._message_readers(reading, body),
        )
        return await self._searched(body, submits, renderer)

    @takes(ResponsesBody)
    async def respond(self, request: Request, body: ResponsesBody) -> Response:
        """The next items of a conversation, as OpenAI's newer API has it."""
        chat = chat_of(body)
        rid, gateway = self._rid(request, chat), self.context.gateway
        reading = reading_of(chat, self.context.info, self._marks)
        submits = chat_submits(chat, reading, rid, self.context)
        token_bytes, num_top = self.context.tokenization.token_bytes, chat.top_logprobs or 0
        renderer = ResponsesRenderer(
            body,
            identity=rid,
            created=int(time.time()),
            model=under_its_name(self.context.info, chat.model, submits[0].adapter).model_name,
            make_reader=self._message_readers(reading, chat),
            plain=reading.plain,
            score=lambda delta: scored(delta, num_top, token_bytes, lambda token, text: text),
            writer=ItemWriter(gateway.new_rid, lambda: reading.call_id(gateway.new_rid())),
        )
        return await self._reply(submits, renderer, body.stream)

    @takes(GenerateBody)
    async def generate(self, request: Request, body: GenerateBody) -> Response:
        """Text that goes on from one prompt or many, as SGLang has it."""
        check_paired(body, self.context)
        call = understand(body, self.context)
        renderer = NativeRenderer(call, self.context.info)
        return await self._reply(call.submits, renderer, body.stream)

    async def _searched(
        self, body: CompletionBody | ChatBody, submits: Sequence[Submit], renderer: Renderer
    ) -> Response:
        """What comes of these requests, or of a search for the likeliest of their answers."""
        beams, context = beams_of(body, submits), self.context
        if beams is None:
            return await self._reply(submits, renderer, body.stream)
        again = partial(loaded_again, context)
        asked, timeout_s = not_too_many(context, submits), context.info.request_timeout_s
        return BeamReply(
            context.gateway, asked, renderer, beams, context.info.limits, context.tokenization, timeout_s, again
        )

    async def _reply(self, submits: Sequence[Submit], renderer: Renderer, stream: bool | None) -> Response:
        """What comes of these requests, once the adapters that they name are there."""
        again = partial(loaded_again, self.context)
        asked = not_too_many(self.context, submits)
        return reply(self.context.gateway, asked, renderer, bool(stream), again)

    def _message_readers(self, reading: Reading, body: ChatBody) -> Callable[[Inbox], MessageReader]:
        """What reads each reply of a call."""

        def make(inbox: Inbox) -> MessageReader:
            in_reasoning = inbox.accept is not None and inbox.accept.in_reasoning
            return MessageReader(
                reading.reader(in_reasoning),
                new_id=lambda: reading.call_id(self.context.gateway.new_rid()),
                in_reasoning=in_reasoning,
                sends_reasoning=body.include_reasoning is not False,
                streams_reasoning=body.stream_reasoning is not False,
                end_of_reasoning=self._marks.end if reading.reasoning is not None else None,
                functions=bool(body.functions),
            )

        return make

    def _rid(self, request: Request, body: CompletionBody | ChatBody) -> str:
        """The client's name of the call, which may come in a header, or a new one."""
        return openai.rid_of(request, openai.one_of(body, "rid", "request_id"), self.context.gateway)

    def _frame(self, body: CompletionBody | ChatBody, prefix: str, rid: str, candidates: int) -> Frame:
        """What the renderers of OpenAI's routes have in common."""
        options = body.stream_options or StreamOptions()
        adapter = adapter_of(self.context, body.model)
        return Frame(
            info=under_its_name(self.context.info, body.model, adapter),
            identity=f"{prefix}-{rid}",
            created=int(time.time()),
            n=body.n or 1,
            candidates=candidates,
            include_usage=bool(options.include_usage),
            continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
            token_ids=bool(body.return_token_ids),
            names_ids=bool(body.return_tokens_as_token_ids),
            prompt_logprobs=body.prompt_logprobs,
        )

    def _echo(self, submit: Submit) -> Callable[[], str]:
        """The prompt's text, made when it is needed: a prompt of bad token ids is refused before that."""
        text, ids = submit.text, submit.token_ids
        if text is not None:
            return lambda: text
        hides_special = submit.text_options.skip_special_tokens
        return lambda: whole_text(ids or (), self.context.tokenization, hides_special)
