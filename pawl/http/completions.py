"""`POST /v1/completions`: text from a prompt, as OpenAI's older API has it, with `echo` and scored prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Submit, TokenLogprob
from pawl.actors.sink import Delta
from pawl.http.errors import Problem
from pawl.http.info import ServerInfo
from pawl.http.openai import CLIENT_NAMES, OpenAiRenderer, base_draft, check_common, choices_of, finite
from pawl.http.schemas import CompletionBody, unsupported

DEFAULT_MAX_TOKENS = 16
"""What OpenAI's API does when `max_tokens` is missing."""

UNSUPPORTED = unsupported(CompletionBody, "suffix")

NAMES = {**CLIENT_NAMES, "top_logprobs": "logprobs"}

Prompt = str | tuple[int, ...]


def prompts_of(value: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    """The prompts of one body: a string, a list of strings, token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        return (value,)
    if not value:
        raise Problem(400, "prompt must not be an empty list", param="prompt")
    if all(isinstance(item, int) for item in value):
        return (tuple(item for item in value if isinstance(item, int)),)
    prompts: list[Prompt] = []
    for item in value:
        if isinstance(item, int) or isinstance(item, str) != isinstance(value[0], str):
            raise Problem(400, "prompt must not mix strings, token ids and lists", param="prompt")
        prompts.append(item if isinstance(item, str) else tuple(item))
    return tuple(prompts)


def completion_drafts(body: CompletionBody, info: ServerInfo) -> tuple[list[Submit], int]:
    """One draft for each choice of each prompt, and the number of choices."""
    n = check_common(body, info, UNSUPPORTED)
    if body.best_of is not None and body.best_of != n:
        raise Problem(400, f"best_of must equal n ({n}); choosing among more is not supported", param="best_of")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    sampling = {
        "max_new_tokens": max_tokens,
        "top_logprobs": body.logprobs,
        "prompt_logprobs": True if body.echo and body.logprobs is not None else None,
    }
    base = base_draft(body, sampling, info, NAMES)
    drafts: list[Submit] = []
    for prompt in prompts_of(body.prompt):
        kind = "text" if isinstance(prompt, str) else "token_ids"
        drafts += choices_of(msgspec.structs.replace(base, **{kind: prompt}), n)
    return drafts, n


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
