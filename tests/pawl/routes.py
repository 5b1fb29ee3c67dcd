"""The routes that take a body, each with the type of the body and a valid one."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.actors.control import ROWS
from pawl.http.response_fields import ResponsesBody
from pawl.http.schemas import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    EncodeBody,
    GenerateBody,
    NativeSampling,
    PoolingBody,
    TokenizeBody,
)
from pawl.http.scoring import ScoreBody

GENERATING: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = [
    ("/v1/completions", CompletionBody, {"prompt": "hello", "max_tokens": 2}),
    ("/v1/chat/completions", ChatBody, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
    ("/v1/responses", ResponsesBody, {"input": "hello", "max_output_tokens": 2}),
    ("/generate", GenerateBody, {"text": "hello", "sampling_params": {"max_new_tokens": 2}}),
    ("/generate", NativeSampling, {"max_new_tokens": 2}),
    ("/v1/embeddings", EmbeddingBody, {"input": "hello"}),
    ("/pooling", PoolingBody, {"input": "hello", "task": "embed"}),
    ("/encode", EncodeBody, {"text": "hello"}),
    ("/tokenize", TokenizeBody, {"prompt": "hello"}),
    ("/detokenize", DetokenizeBody, {"tokens": [1, 2]}),
    ("/v1/score", ScoreBody, {"query": "a", "items": ["b"], "label_token_ids": [1]}),
]
CONTROL: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = [
    (row.routes[0], row.taken, {}) for row in ROWS if "POST" in row.methods and row.routes
]


def body_of(kind: type[msgspec.Struct], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` of `kind` as the route takes them: parameters of sampling stand in a body."""
    return {"text": "hello", "sampling_params": fields} if kind is NativeSampling else fields
