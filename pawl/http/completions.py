"""`POST /v1/completions`: text from a prompt, as OpenAI's older API has it, with `echo` and scored prompts."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import msgspec

from pawl.actors.messages.generate import Submit, TokenLogprob
from pawl.actors.sampling import build_sampling
from pawl.actors.sink import Delta, Inbox
from pawl.http.adapters import adapter_of, checked
from pawl.http.context import ServerContext
from pawl.http.errors import Problem
from pawl.http.grammar import grammar_of
from pawl.http.info import Tokenization
from pawl.http.openai import CLIENT_NAMES, base_submit, check_common, choices_of, most_rivals
from pawl.http.rendering import LOWEST_LOGPROB, Frame, OpenAiRenderer, encode, finite, prompt_scores
from pawl.http.schemas import CompletionBody, unsupported

DEFAULT_MAX_TOKENS = 16
"""What OpenAI's API does when `max_tokens` is missing."""

MAX_SCORED = 4_000_000
"""An entry takes about a hundred bytes until its reply is written."""

UNSUPPORTED = unsupported(CompletionBody, "suffix")

NAMES = {**CLIENT_NAMES, "top_logprobs": "logprobs"}

Prompt = str | tuple[int, ...]
Item = TypeVar("Item")


def prompts_of(
    value: str | Sequence[str | int | list[int]], name: str, check_count: Callable[[int], None]
) -> Sequence[Prompt]:
    """The prompts of one body: a string, a list of strings, token ids, or a list of lists of token ids. Their number is
    checked before anything is made of them."""
    if isinstance(value, str):
        return (value,)
    if not value:
        raise Problem(400, f"{name} must not be an empty list", param=name)
    flat = isinstance(value[0], int)
    check_count(1 if flat else len(value))
    if len({*map(type, value)}) > 1:
        raise Problem(400, f"{name} must not mix strings, token ids and lists", param=name)
    if flat:
        return (tuple(cast(Sequence[int], value)),)
    return [item if isinstance(item, str) else tuple(item) for item in cast(Sequence[str | list[int]], value)]


def spread(value: Item | list[Item], count: int, name: str) -> list[Item]:
    """One value for all, or a list with one for each."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise Problem(400, f"{name} has {len(value)} entries for {count} prompts", param=name)
    return value


def check_scored(size: int) -> None:
    """Refuse to score more of prompts than can be held."""
    if size > MAX_SCORED:
        raise Problem(
            400,
            f"scored prompts may have {MAX_SCORED} characters or token ids, times n and the scores of each token, "
            f"and these have {size}",
            param="logprobs",
        )


def completion_submits(body: CompletionBody, rid: str, context: ServerContext) -> list[Submit]:
    """One request for each choice of each prompt."""
    named = adapter_of(context, body.model)
    check_common(body, UNSUPPORTED)
    n, gateway = candidates_of(body), context.gateway
    prompts = prompts_of(body.prompt, "prompt", lambda count: context.check_count(count, n))
    context.check_count(len(prompts), n)
    scores_prompt = body.prompt_logprobs is not None or (bool(body.echo) and body.logprobs is not None)
    # Candidates are compared by their scores.
    rivals = most_rivals(body.logprobs, body.prompt_logprobs, 0 if n > (body.n or 1) else None)
    if scores_prompt:
        check_scored(sum(map(len, prompts)) * n * ((rivals or 0) + 1))
    sampling = build_sampling(
        body,
        context.info.limits,
        gateway.new_seed(),
        max_new_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        min_new_tokens=body.min_tokens,
        top_logprobs=rivals,
        prompt_logprobs=scores_prompt,
        grammar=grammar_of(body),
    )
    base = base_submit(body, sampling, fill_context=False, rid=rid)
    if body.echo:
        options = msgspec.structs.replace(base.text_options, after_prompt=True)
        base = msgspec.structs.replace(base, text_options=options)
    submits: list[Submit] = []
    adapters = spread(named or body.lora_path, len(prompts), "lora_path")
    for prompt, adapter in zip(prompts, adapters, strict=True):
        kind = "text" if isinstance(prompt, str) else "token_ids"
        seed = None if body.seed is not None else gateway.new_seed()
        own = {kind: prompt, "adapter": checked(context.info, adapter)}
        submits += choices_of(msgspec.structs.replace(base, **own), n, seed)
    return submits


def candidates_of(body: CompletionBody) -> int:
    """How many completions each prompt gets, of which the `n` likeliest are sent. Refuses what makes no sense."""
    n, best_of = body.n or 1, body.best_of
    if best_of is None or best_of == n:
        return n
    if best_of < n:
        raise Problem(400, f"best_of must be at least n ({n})", param="best_of")
    if body.stream:
        raise Problem(400, "best_of above n is not possible when stream is true", param="best_of")
    return best_of


class _Offsets:
    """Where each token's text begins in the text of one choice."""

    def __init__(self, tokenization: Tokenization, echo: str, hides_special: bool) -> None:
        self._tokenization = tokenization
        self._echo = echo
        self._hides_special = hides_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0

    def next(self, token: int) -> int:
        """The offset of the next token. Tokens that are parts of one character begin where it does; one that is not
        shown takes no room."""
        offset = self._num_characters
        data = self._tokenization.token_bytes(token)
        if offset < len(self._echo):
            if data.startswith(b" ") and offset == 0 and not self._echo.startswith(" "):
                data = data[1:]  # the tokenizer put a space before the first word
            shown = data.decode("utf-8", "ignore")
            hidden = token in self._tokenization.special_ids and not self._echo.startswith(shown, offset)
        else:
            hidden = self._hides_special and token in self._tokenization.special_ids
        self._num_characters += 0 if hidden else len(self._decoder.decode(data))
        return offset


class CompletionRenderer(OpenAiRenderer):
    """Replies of one call; `echoes` holds the text of each request's prompt when the client wants it back."""

    names = NAMES
    chunk_object = whole_object = "text_completion"

    def __init__(
        self,
        frame: Frame,
        *,
        top_logprobs: int | None,
        echoes: Sequence[Callable[[], str]],
        tokenization: Tokenization,
        hides_special: bool,
    ) -> None:
        super().__init__(frame)
        self._top_logprobs = top_logprobs
        self._echoes = echoes
        self._tokenization = tokenization
        self._hides_special = hides_special
        self._offsets: dict[int, _Offsets] = {}
        self._byte_names: dict[int, str] = {}
        """Token -> what it is called where it is a part of a character."""

    def opening(self, index: int, delta: Delta) -> str:
        return self._echoes[index]() if self._echoes else ""

    def parts(self, index: int, text: str, delta: Delta, inbox: Inbox) -> Sequence[bytes]:
        prompt = b"" if self.has_begun(index) else self._prompt_part(inbox)
        return (b',"text":' + encode(text) + prompt,)

    def _prompt_part(self, inbox: Inbox) -> bytes:
        if not self.frame.token_ids:
            return b""
        return b',"prompt_token_ids":' + encode(inbox.accept.prompt if inbox.accept is not None else ())

    def choice(self, index: int, delta: Delta, inbox: Inbox) -> dict[str, Any]:
        choice: dict[str, Any] = {"text": self.opening(index, delta) + delta.text, "prompt_logprobs": None}
        if self.frame.token_ids and inbox.accept is not None:
            choice["prompt_token_ids"] = inbox.accept.prompt
        if self.frame.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_scores(delta.prompt_logprobs, self.frame.prompt_logprobs)
        return choice

    def chosen(self, deltas: Sequence[Delta]) -> Sequence[int]:
        many, best = self.frame.candidates, list[int]()
        for first in range(0, len(deltas), many):
            ranked = sorted(range(first, first + many), key=lambda index: _likelihood(deltas[index]), reverse=True)
            best += ranked[: self.frame.n] if self.frame.n < many else range(first, first + many)
        return best

    def scores(self, index: int, delta: Delta) -> dict[str, Any] | None:
        if self._top_logprobs is None:
            return None
        entries = (*delta.prompt_logprobs, *delta.logprobs) if self._echoes else delta.logprobs
        if index not in self._offsets:
            self._offsets[index] = _Offsets(self._tokenization, self.opening(index, delta), self._hides_special)
        offsets = self._offsets[index]
        return {
            "tokens": [self.name(entry.token, entry.text) for entry in entries],
            "token_logprobs": [finite(entry.logprob) for entry in entries],
            "top_logprobs": [self._rivals(entry) for entry in entries],
            "text_offset": [offsets.next(entry.token) for entry in entries],
        }

    def name(self, token: int, text: str) -> str:
        """A token's text or, for a part of a character, its bytes, as OpenAI's API writes them."""
        if "\ufffd" not in text or self.frame.names_ids:
            return super().name(token, text)
        name = self._byte_names.get(token)
        if name is None:
            data = self._tokenization.token_bytes(token)
            name = self._byte_names[token] = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        return name

    def _rivals(self, entry: TokenLogprob) -> dict[str, float | None] | None:
        """Token to score, the chosen token's own included. Of rivals that look the same the likelier one stays.
        There may be hundreds of thousands in a reply: keep it short."""
        if entry.logprob is None:
            return None
        by_id = self.frame.names_ids
        rivals: dict[str, float | None] = {}
        for token, logprob, text in entry.top[: self._top_logprobs]:
            name = self.name(token, text) if by_id or "\ufffd" in text else text
            if name not in rivals:
                rivals[name] = logprob if logprob > LOWEST_LOGPROB else finite(logprob)
        rivals[self.name(entry.token, entry.text)] = finite(entry.logprob)
        return rivals


def _likelihood(delta: Delta) -> float:
    """The mean score of its tokens, by which completions of different lengths are compared."""
    scores = [entry.logprob for entry in delta.logprobs if entry.logprob is not None]
    return sum(scores) / len(scores) if scores else -math.inf
