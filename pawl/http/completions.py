"""`POST /v1/completions`: text from a prompt, as OpenAI's older API has it, with `echo` and scored prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Submit, TokenLogprob
from pawl.actors.sampling import build_sampling
from pawl.actors.sink import Delta
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.openai import CLIENT_NAMES, OpenAiRenderer, base_submit, check_common, choices_of, finite
from pawl.http.schemas import CompletionBody, unsupported

DEFAULT_MAX_TOKENS = 16
"""What OpenAI's API does when `max_tokens` is missing."""

UNSUPPORTED = unsupported(CompletionBody, "suffix")

NAMES = {**CLIENT_NAMES, "top_logprobs": "logprobs"}

Prompt = str | tuple[int, ...]


def prompts_of(value: str | Sequence[str | int | list[int]], name: str) -> Sequence[Prompt]:
    """The prompts of one body: a string, a list of strings, token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        return (value,)
    if not value:
        raise Problem(400, f"{name} must not be an empty list", param=name)
    if len({*map(type, value)}) > 1:
        raise Problem(400, f"{name} must not mix strings, token ids and lists", param=name)
    if isinstance(value[0], int):
        return (tuple(item for item in value if isinstance(item, int)),)
    return [item if isinstance(item, str) else tuple(item) for item in value if not isinstance(item, int)]


def completion_submits(body: CompletionBody, rid: str, context: ServerContext) -> list[Submit]:
    """One request for each choice of each prompt."""
    check_common(body, context.info, UNSUPPORTED)
    n, gateway = body.n or 1, context.gateway
    if body.best_of is not None and body.best_of != n:
        raise Problem(400, f"best_of must equal n ({n}); choosing among more is not supported", param="best_of")
    prompts = prompts_of(body.prompt, "prompt")
    context.check_count(len(prompts), n)
    sampling = build_sampling(
        body,
        context.info.limits,
        gateway.new_seed(),
        max_new_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        min_new_tokens=body.min_tokens,
        top_logprobs=body.logprobs,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
    )
    base = base_submit(body, sampling, fill_context=False, rid=rid)
    submits: list[Submit] = []
    for prompt in prompts:
        kind = "text" if isinstance(prompt, str) else "token_ids"
        seed = None if body.seed is not None else gateway.new_seed()
        submits += choices_of(msgspec.structs.replace(base, **{kind: prompt}), n, seed)
    return submits


class CompletionRenderer(OpenAiRenderer):
    """Replies of one call; `echoes` holds the text of each request's prompt when the client wants it back."""

    names = NAMES
    chunk_object = whole_object = "text_completion"

    def __init__(self, *frame: Any, top_logprobs: int | None, echoes: Sequence[Callable[[], str]]) -> None:
        super().__init__(*frame)
        self._top_logprobs = top_logprobs
        self._echoes = echoes
        self._num_characters: dict[int, int] = {}

    def opening(self, index: int, delta: Delta) -> str:
        return self._echoes[index]() if self._echoes else ""

    def text_part(self, index: int, text: bytes) -> bytes:
        return b',"text":' + text

    def choice(self, index: int, delta: Delta) -> dict[str, Any]:
        return {"text": self.opening(index, delta) + delta.text}

    def scores(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if self._top_logprobs is None:
            return None
        entries = (*delta.prompt_logprobs, *delta.logprobs) if self._echoes else delta.logprobs
        offset = self._num_characters.get(index, 0)
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry.text)
        self._num_characters[index] = offset
        return {
            "tokens": [entry.text for entry in entries],
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "top_logprobs": [self._rivals(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _rivals(self, entry: TokenLogprob) -> dict[str, float | None] | None:
        """Token text to score, the chosen token's included. Where two tokens look the same the likelier one stays."""
        if entry.logprob is None:
            return None
        rivals: dict[str, float | None] = {}
        for _, logprob, text in entry.top[: self._top_logprobs]:
            rivals.setdefault(text, finite(logprob))
        rivals.setdefault(entry.text, finite(entry.logprob))
        return rivals
