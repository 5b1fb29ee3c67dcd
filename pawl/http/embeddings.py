"""`/v1/embeddings`, as OpenAI's API has it, `/pooling`, as vLLM, and `/encode`, as SGLang has it: texts to vectors."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.messages.generate import Done, Submit
from pawl.actors.sampling import embedding_sampling, shortened
from pawl.actors.sink import Delta, Inbox
from pawl.http import openai
from pawl.http.adapters import adapter_of, checked, loaded_again, not_too_many, under_its_name
from pawl.http.completions import Prompt, prompts_of, spread
from pawl.http.description import HasContext, takes
from pawl.http.errors import Problem, from_done
from pawl.http.native import finish_reason, prompts_of_body
from pawl.http.rendering import encode
from pawl.http.replies import Reply
from pawl.http.schemas import EmbeddingBody, EncodeBody, PoolingBody, refuse_unsupported, unsupported
from pawl.lifecycle.states import ABORT_CAUSES
from pawl.lifecycle.step import Float32s

UNSUPPORTED = unsupported(EmbeddingBody)
UNSUPPORTED_POOLING = unsupported(PoolingBody)
UNSUPPORTED_ENCODE = unsupported(EncodeBody, "log_metrics")
NAMES = {"prompt": "input", "token_ids": "input"}
ENCODE_NAMES = {"token_ids": "input_ids", "prompt": "text"}


class EmbeddingRoutes(HasContext):
    """The routes that answer with vectors."""

    def routes(self) -> list[Route]:
        return [
            Route("/v1/embeddings", self.embed, methods=["POST"]),
            Route("/pooling", self.pool, methods=["POST"]),
            Route("/encode", self.encode, methods=["POST", "PUT"]),
        ]

    @takes(EmbeddingBody)
    async def embed(self, request: Request, body: EmbeddingBody) -> Response:
        """The vector of a text, or of each of a list of texts, as OpenAI's API has it."""
        refuse_unsupported(body, UNSUPPORTED)
        rid = openai.rid_of(request, body.rid, self.context.gateway)
        return await self._answer(body, rid, _Shape())

    @takes(PoolingBody)
    async def pool(self, request: Request, body: PoolingBody) -> Response:
        """The vector of a text, or of each of a list of texts, as vLLM has it."""
        refuse_unsupported(body, UNSUPPORTED_POOLING)
        rid = openai.rid_of(request, body.rid, self.context.gateway)
        head = {"id": f"pool-{rid}", "created": int(time.time())}
        return await self._answer(body, rid, _Shape("pooling", "data", head))

    async def _answer(self, body: EmbeddingBody, rid: str, shape: _Shape) -> Response:
        """What comes of a body of OpenAI's form."""
        adapter = adapter_of(self.context, body.model, body.lora_path)
        prompts = prompts_of(body.input, "input", lambda count: self.context.check_count(count, 1))
        submits = self._submits(prompts, [rid] * len(prompts), body, [adapter] * len(prompts))
        model = under_its_name(self.context.info, body.model, adapter).model_name
        rendered = _OpenAi(model, self._cut(body.dimensions), body.encoding_format == "base64", shape)
        again = partial(loaded_again, self.context)
        return Reply(self.context.gateway, not_too_many(self.context, submits), rendered, again)

    @takes(EncodeBody)
    async def encode(self, request: Request, body: EncodeBody) -> Response:
        """The vector of a text, or of each of a list of texts, as SGLang has it."""
        refuse_unsupported(body, UNSUPPORTED_ENCODE)
        prompts, listed = prompts_of_body(body.text, body.input_ids, self.context)
        rids = spread(body.rid or "", len(prompts), "rid")
        adapters = [checked(self.context.info, name) for name in spread(body.lora_path, len(prompts), "lora_path")]
        submits = self._submits(prompts, [rid or self.context.gateway.new_rid() for rid in rids], body, adapters)
        rendered = _Native([submit.rid for submit in submits], self._cut(body.dimensions), listed)
        again = partial(loaded_again, self.context)
        return Reply(self.context.gateway, not_too_many(self.context, submits), rendered, again)

    def _submits(
        self,
        prompts: Sequence[Prompt],
        rids: Sequence[str],
        body: EmbeddingBody | EncodeBody,
        adapters: Sequence[str],
    ) -> list[Submit]:
        sampling = embedding_sampling(self.context.info.limits, body.dimensions)
        return [
            Submit(
                request=0,
                rid=rid,
                text=prompt if isinstance(prompt, str) else None,
                token_ids=None if isinstance(prompt, str) else prompt,
                sampling=sampling,
                priority=body.priority or 0,
                timeout_s=body.timeout_s,
                adapter=adapter,
            )
            for prompt, rid, adapter in zip(prompts, rids, adapters, strict=True)
        ]

    def _cut(self, dimensions: int | None) -> Callable[[Delta], Float32s]:
        """The vector of a request that has ended, as long as the client wants it."""
        limits = self.context.info.limits

        def cut(delta: Delta) -> Float32s:
            if delta.embedding is None:
                if delta.done is not None and delta.done.cause in ABORT_CAUSES:
                    raise from_done(delta.done)  # somebody has aborted it
                raise Problem(500, "the server failed: the request has ended without its vector", code="internal")
            return shortened(delta.embedding, dimensions, limits)

        return cut


class _Shape(NamedTuple):
    """What differs between replies of OpenAI's form."""

    kind: str = "embedding"
    """What a vector is called as an object."""
    member: str = "embedding"
    """Where its numbers are."""
    head: Mapping[str, Any] = MappingProxyType({})
    """Further members of the whole."""


class _OpenAi:
    """The reply of `/v1/embeddings` and of `/pooling`."""

    independent = False

    def __init__(self, model: str, cut: Callable[[Delta], Float32s], in_base64: bool, shape: _Shape) -> None:
        self._model = model
        self._cut = cut
        self._base64 = in_base64
        self._shape = shape

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        num_tokens = sum(delta.done.usage.prompt_tokens for delta in deltas if delta.done is not None)
        data = [
            {"object": self._shape.kind, "index": index, self._shape.member: self._shown(self._cut(delta))}
            for index, delta in enumerate(deltas)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return encode({**self._shape.head, "object": "list", "data": data, "model": self._model, "usage": usage})

    def _shown(self, vector: Float32s) -> list[float] | str:
        if self._base64:
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        numbers: list[float] = vector.tolist()
        return numbers

    def problem(self, problem: Problem) -> Problem:
        return problem.renamed(NAMES)


class _Native:
    """The reply of `/encode`."""

    independent = False

    def __init__(self, rids: Sequence[str], cut: Callable[[Delta], Float32s], listed: bool) -> None:
        self._rids = rids
        self._cut = cut
        self._listed = listed

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        results = [
            {"embedding": self._cut(delta).tolist(), "meta_info": _meta(rid, delta.done)}
            for rid, delta in zip(self._rids, deltas, strict=True)
        ]
        return encode(results if self._listed else results[0])

    def problem(self, problem: Problem) -> Problem:
        return problem.renamed(ENCODE_NAMES)


def _meta(rid: str, done: Done | None) -> dict[str, Any]:
    if done is None:
        return {"id": rid}
    usage, timing = done.usage, done.timing
    return {
        "id": rid,
        "finish_reason": finish_reason(done),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "e2e_latency": timing.ended - timing.submitted,
    }
