"""`/v1/score` as SGLang has it: how likely each of some tokens is to follow a query and an item. Here `/v1/rerank`, and
the pairs of texts of vLLM's `/score`, are refused: a model that generates text has no head for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.messages.generate import Submit, TextOptions
from pawl.actors.sampling import NamedTokens, SamplingFields, build_sampling
from pawl.actors.sink import Delta, Inbox
from pawl.http.body import MAX_VALUES
from pawl.http.call_fields import ModelName, Note
from pawl.http.context import ServerContext
from pawl.http.description import HasContext, takes
from pawl.http.errors import Problem, from_done
from pawl.http.openai import check_model
from pawl.http.rendering import LOWEST_LOGPROB, encode, usage_body
from pawl.http.replies import Reply
from pawl.http.schemas import TokenIds

NAMES = {"token_ids_logprob": "label_token_ids", "text": "query", "token_ids": "query"}
"""Our field names in the words of this route."""
MOST_TEXT = 4_000_000
"""Characters or token ids of all items of a call, each with the query."""
NO_HEAD = (
    "this model generates text; pairs of texts are scored by models that are made for it, such as a cross-encoder. "
    "/v1/score with query, items and label_token_ids says how likely tokens such as yes and no are to follow"
)


class ScoreBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/score`: text, or token ids throughout."""

    model: ModelName | None = None
    query: str | TokenIds | None = None
    items: str | Annotated[list[str | TokenIds], Meta(max_length=MAX_VALUES)] | None = None
    label_token_ids: NamedTokens | None = None
    apply_softmax: bool = False
    """The scores of an item sum up to 1; else they are probabilities among all tokens."""
    item_first: bool = False
    user: Note | None = None
    # Pairs of texts.
    text_1: Any = None
    text_2: Any = None
    data_1: Any = None
    data_2: Any = None


class ScoringRoutes(HasContext):
    """`/v1/score` and `/v1/rerank`."""

    def routes(self) -> list[Route]:
        return [
            *(Route(path, self.score, methods=["POST"]) for path in ("/v1/score", "/score")),
            *(Route(path, self.rerank, methods=["POST", "PUT"]) for path in ("/v1/rerank", "/rerank", "/v2/rerank")),
        ]

    @takes(ScoreBody)
    async def score(self, request: Request, body: ScoreBody) -> Response:
        """How likely each of some tokens is to follow a query and each of some items, as SGLang has it."""
        if any(pair is not None for pair in (body.text_1, body.text_2, body.data_1, body.data_2)):
            raise Problem(400, NO_HEAD, code="unsupported_by_model")
        submits = score_submits(body, self.context)
        renderer = ScoreRenderer(body.apply_softmax, self.context.info.model_name)
        return Reply(self.context.gateway, submits, renderer)

    async def rerank(self, request: Request) -> Response:
        """Refused: documents are ordered by models of another kind."""
        raise Problem(400, NO_HEAD, code="unsupported_by_model")


def score_submits(body: ScoreBody, context: ServerContext) -> list[Submit]:
    """One request for each item: a token that nobody looks at, and the scores in its place."""
    check_model(context.info, body.model)
    query, items = body.query, [body.items] if isinstance(body.items, str) else body.items
    for name, value in (("query", query), ("items", items), ("label_token_ids", body.label_token_ids)):
        if value is None:
            raise Problem(400, f"{name} is missing", param=name)
        if value == [] and name != "query":
            raise Problem(400, f"{name} must not be an empty list", param=name)
    assert query is not None
    assert items is not None
    kind = str if isinstance(query, str) else list
    if any(not isinstance(item, kind) for item in items):
        raise Problem(400, "query and items must be text throughout, or lists of token ids throughout", param="items")
    context.check_count(len(items), 1)
    size = len(query) * len(items) + sum(map(len, items))
    if size > MOST_TEXT:
        text = f"the items, each with the query, hold {size} characters or token ids, and {MOST_TEXT} are allowed"
        raise Problem(413, text, param="items")
    sampling = build_sampling(
        SamplingFields(temperature=0.0),
        context.info.limits,
        0,
        max_new_tokens=1,
        top_logprobs=0,
        token_ids_logprob=body.label_token_ids or (),
    )
    rid = context.gateway.new_rid()
    base = Submit(request=0, rid=rid, sampling=sampling, text_options=TextOptions(detokenize=False))
    submits = []
    for item in items:
        parts = (item, query) if body.item_first else (query, item)
        if kind is str:
            prompt: dict[str, Any] = {"text": "".join(map(str, parts))}
        else:
            prompt = {"token_ids": tuple(chain.from_iterable(parts))}
        submits.append(msgspec.structs.replace(base, **prompt))
    return submits


class ScoreRenderer:
    """The one body of a call; nothing is streamed."""

    independent = False

    def __init__(self, softmax: bool, model: str) -> None:
        self._softmax = softmax
        self._model = model

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        usages = [delta.done.usage for delta in deltas if delta.done is not None]
        scores = [self._scores(delta) for delta in deltas]
        body = {"object": "scoring", "model": self._model, "scores": scores, "usage": usage_body(usages, 1)}
        return encode(body)

    def _scores(self, delta: Delta) -> list[float]:
        """Probabilities of the labels, in their order."""
        if not delta.logprobs:
            assert delta.done is not None
            raise from_done(delta.done)  # somebody has aborted it
        logprobs = [logprob for _, logprob, _ in delta.logprobs[0].top]
        if not self._softmax:
            return [math.exp(logprob) for logprob in logprobs]
        best = max(max(logprobs), LOWEST_LOGPROB)
        likely = [math.exp(logprob - best) for logprob in logprobs]
        total = sum(likely) or 1.0
        return [one / total for one in likely]

    def problem(self, problem: Problem) -> Problem:
        return problem.renamed(NAMES)
