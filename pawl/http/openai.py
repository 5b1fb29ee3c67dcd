"""What `/v1/completions` and `/v1/chat/completions` share: names, checks, usage, and the frame of a streamed chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Done, Submit, TextOptions, Usage
from pawl.actors.sampling import SEED_RANGE
from pawl.actors.sink import Delta, Inbox
from pawl.actors.text.invalid import quoted
from pawl.http.errors import Problem, from_delta
from pawl.http.info import ServerInfo
from pawl.http.schemas import (
    ChatBody,
    CompletionBody,
    NativeSampling,
    OpenAiBody,
    refuse_unsupported,
    strings,
)
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause

encode = msgspec.json.Encoder().encode

FINISH_REASONS: Mapping[Cause, str] = {
    Cause.LENGTH: "length",
    Cause.EOS: "stop",
    Cause.STOP_TOKEN: "stop",
    Cause.STOP_STRING: "stop",
    Cause.CLIENT: "abort",
}

NOTHING_YET = b',"logprobs":null,"finish_reason":null'
LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""

CLIENT_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "token_ids": "prompt",
}
"""Our field names in the words of OpenAI's API."""


def check_model(info: ServerInfo, name: str | None) -> None:
    """Refuse a request for a model that is not served here."""
    if name is not None and not info.knows(name):
        text = f"the model {quoted(name)} does not exist here; this server has {info.model_name!r}"
        raise Problem(404, text, param="model", code="model_not_found")


def check_common(body: CompletionBody | ChatBody, info: ServerInfo, unsupported: tuple[str, ...]) -> None:
    """The checks that come before all others."""
    check_model(info, body.model)
    refuse_unsupported(body, unsupported)
    if body.stream_options is not None:
        refuse_unsupported(body.stream_options, ("include_obfuscation",))
        if not body.stream:
            raise Problem(400, "stream_options is only allowed when stream is true", param="stream_options")


def text_options_of(body: OpenAiBody | NativeSampling, include_stop: bool, min_tokens: int) -> TextOptions:
    """What is made of the tokens, as the fields that both APIs name alike say."""
    return TextOptions(
        stop=strings(body.stop),
        include_stop=include_stop,
        skip_special_tokens=body.skip_special_tokens is not False,
        spaces_between_special_tokens=body.spaces_between_special_tokens is not False,
        min_tokens=min_tokens,
    )


def base_submit(body: CompletionBody | ChatBody, sampling: SamplingParameters, fill_context: bool, rid: str) -> Submit:
    """A request with everything but its prompt."""
    return Submit(
        request=0,
        rid=rid,
        sampling=sampling,
        fill_context=fill_context,
        text_options=text_options_of(body, bool(body.include_stop_str_in_output), sampling.min_new_tokens),
        priority=body.priority or 0,
        timeout_s=body.timeout_s,
        cache_salt=body.cache_salt or "",
    )


def choices_of(submit: Submit, n: int, seed: int | None = None) -> list[Submit]:
    """`n` requests for one prompt. Seeds count upwards (and round) from the first, so that the choices differ and can
    be repeated; `seed` replaces the first."""
    first = submit.sampling.seed if seed is None else seed
    seeds = [(first + index) % SEED_RANGE for index in range(n)]
    replace = msgspec.structs.replace
    return [replace(submit, sampling=replace(submit.sampling, seed=one)) for one in seeds]


def usage_body(usages: Sequence[Usage], n: int) -> dict[str, Any]:
    """OpenAI's `usage`: each prompt counts once, however many choices it has (`n` consecutive entries each)."""
    prompt = sum(usage.prompt_tokens for usage in usages[::n])
    completion = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages[::n])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)


def stop_reason(done: Done | None) -> str | int | None:
    """What stopped it, where that was the client's own choice."""
    return done.matched if done is not None and done.cause in (Cause.STOP_STRING, Cause.STOP_TOKEN) else None


class OpenAiRenderer(ABC):
    """A `Renderer` whose chunks are mostly a frame that is the same for all of one call's chunks."""

    independent = False
    names: Mapping[str, str] = CLIENT_NAMES
    chunk_object = ""
    whole_object = ""

    def __init__(
        self, info: ServerInfo, identity: str, created: int, n: int, stream_options: Mapping[str, bool | None]
    ) -> None:
        self._head = {
            "id": identity,
            "created": created,
            "model": info.model_name,
            "system_fingerprint": info.fingerprint,
        }
        self._n = n
        self._include_usage = bool(stream_options.get("include_usage"))
        self._continuous_usage = self._include_usage and bool(stream_options.get("continuous_usage_stats"))
        self._usages: dict[int, Usage] = {}
        self._num_tokens: dict[int, int] = {}
        self._begun: set[int] = set()
        # A chunk is `prefix index middle text tail`; everything but index and text is encoded once.
        frame = {**self._head, "object": self.chunk_object}
        self._prefix = b"data: " + encode(frame)[:-1] + b',"choices":[{"index":'
        self._tail = b"}]" + (b',"usage":null' if self._include_usage else b"") + b"}\n\n"

    # ---- what the two routes do differently ----

    @abstractmethod
    def parts(self, index: int, text: str, delta: Delta, inbox: Inbox) -> Sequence[bytes]:
        """The members of a streamed choice, starting with a comma, that carry `text`, the new text of `delta`; of
        several choices if it takes several."""

    nothing: bytes = b""
    """The same, where there is nothing to carry but a score or an end."""

    @abstractmethod
    def scores(self, index: int, delta: Delta) -> dict[str, Any] | None:
        """`logprobs` of one choice; None where none were asked for."""

    @abstractmethod
    def choice(self, index: int, delta: Delta, inbox: Inbox) -> dict[str, Any]:
        """One choice of a whole reply, without index, logprobs and reasons."""

    def opening(self, index: int, delta: Delta) -> str:
        """Text that goes before the first delta's own."""
        return ""

    def reason(self, index: int, done: Done) -> str:
        """`finish_reason`."""
        return FINISH_REASONS[done.cause]

    def usage(self, usages: Sequence[Usage], indices: Sequence[int], n: int) -> dict[str, Any]:
        """`usage` of the choices of these indices, of which `n` consecutive ones have one prompt."""
        return usage_body(usages, n)

    def has_begun(self, index: int) -> bool:
        """Whether something of this choice was seen before the delta that is being written."""
        return index in self._begun

    # ---- renderer ----

    def delta(self, index: int, delta: Delta, inbox: Inbox) -> bytes:
        self._num_tokens[index] = self._num_tokens.get(index, 0) + len(delta.tokens)
        done = delta.done
        text = delta.text if self.has_begun(index) else self.opening(index, delta) + delta.text
        scored = bool(delta.logprobs or delta.prompt_logprobs or done)
        if not text and not scored:
            return b""
        if from_delta(delta) is not None:
            return b""  # the failure has an event of its own
        parts = self.parts(index, text, delta, inbox)
        self._begun.add(index)
        if done is not None:
            self._usages[index] = done.usage
        if not parts:
            if not scored:
                return b""  # what came is held back
            parts = (self.nothing,)
        reason = self.reason(index, done) if done is not None else None
        scores = self.scores(index, delta) if scored else None
        ending = b',"logprobs":' + encode(scores) + b',"finish_reason":' + encode(reason)
        if done is not None:
            reason_part = encode(stop_reason(done))
            ending += b',"stop_reason":' + reason_part + b',"matched_stop":' + reason_part
        tail = self._tail if not self._continuous_usage else self._tail_with_usage(index, inbox, done)
        *before, last = parts
        chunks = [b"%b%d%b%b%b" % (self._prefix, index, part, NOTHING_YET, tail) for part in before]
        return b"".join(chunks) + b"%b%d%b%b%b" % (self._prefix, index, last, ending, tail)

    def _tail_with_usage(self, index: int, inbox: Inbox, done: Done | None) -> bytes:
        """Usage so far of this choice. Before the end the prompt's length is known once it was taken."""
        if done is None:
            if inbox.num_prompt is None:
                return self._tail
            usage = Usage(inbox.num_prompt, self._num_tokens[index], 0)
        else:
            usage = done.usage
        return b'}],"usage":' + encode(self.usage([usage], [index], 1)) + b"}\n\n"

    def closing(self) -> bytes:
        if not self._include_usage:
            return b""
        indices = sorted(self._usages)
        usage = self.usage([self._usages[index] for index in indices], indices, self._n)
        body = {**self._head, "object": self.chunk_object, "choices": [], "usage": usage}
        return b"data: " + encode(body) + b"\n\n"

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        choices, usages = [], []
        for index, (delta, inbox) in enumerate(zip(deltas, inboxes, strict=True)):
            if delta.done is None:
                raise AssertionError("a refused request has no whole reply")
            usages.append(delta.done.usage)
            choices.append(
                {
                    "index": index,
                    **self.choice(index, delta, inbox),
                    "logprobs": self.scores(index, delta),
                    "finish_reason": self.reason(index, delta.done),
                    "stop_reason": stop_reason(delta.done),
                    "matched_stop": stop_reason(delta.done),
                }
            )
        usage = self.usage(usages, range(len(usages)), self._n)
        return encode({**self._head, "object": self.whole_object, "choices": choices, "usage": usage})

    def problem(self, problem: Problem) -> Problem:
        return problem.renamed(self.names)
