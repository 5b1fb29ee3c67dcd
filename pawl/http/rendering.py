"""What replies of `/v1/completions` and `/v1/chat/completions` share: usage, scores, the frame of a streamed chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Done, TokenLogprob, Usage
from pawl.actors.sink import Delta, Inbox
from pawl.http.errors import DONE_EVENT, Problem, error_event, from_delta
from pawl.http.info import ServerInfo
from pawl.http.openai import CLIENT_NAMES
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


def usage_body(usages: Sequence[Usage], n: int) -> dict[str, Any]:
    """OpenAI's `usage`: each prompt counts once, however many choices it has (`n` consecutive entries each)."""
    prompt = sum(usage.prompt_tokens for usage in usages[::n])
    completion = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages[::n])
    body = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    if any(usage.draft_tokens for usage in usages):
        accepted = sum(usage.accepted_tokens for usage in usages)
        body["completion_tokens_details"] = {"accepted_prediction_tokens": accepted}
    return body


def finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST_LOGPROB)


def stop_members(done: Done) -> dict[str, str | int | None]:
    """What stopped it: as vLLM has it, where that was the client's own choice; as SGLang has it, the model's own ends
    included."""
    chosen = done.cause in (Cause.STOP_STRING, Cause.STOP_TOKEN)
    return {"stop_reason": done.matched if chosen else None, "matched_stop": done.matched}


def prompt_scores(entries: Sequence[TokenLogprob], count: int) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` as vLLM has them: for each token of the prompt it and its `count` likeliest rivals, by id."""
    return [_ranked(entry, count) for entry in entries]


def _ranked(entry: TokenLogprob, count: int) -> dict[str, Any] | None:
    if entry.logprob is None:
        return None
    ranks = {entry.token: entry.rank} | {token: rank for rank, (token, _, _) in enumerate(entry.top, 1)}
    own = (entry.token, entry.logprob, entry.text)
    return {
        str(token): {"logprob": finite(logprob), "rank": ranks.get(token), "decoded_token": text}
        for token, logprob, text in (own, *entry.top[:count])
    }


def versions_of(inbox: Inbox, info: ServerInfo, *, final: bool) -> dict[str, Any]:
    """What the weights are called that drew the last token so far; at the end, or where there are several, which drew
    which."""
    versions: dict[str, Any] = {"weight_version": inbox.version or info.weight_version}
    if final or len(inbox.spans) > 1:
        versions["weight_versions"] = inbox.spans
    return versions


class Frame(msgspec.Struct, frozen=True):
    """What the replies of both routes are told alike."""

    info: ServerInfo
    identity: str
    created: int
    n: int
    """Choices that are shown of each prompt."""
    candidates: int
    """Requests of each prompt."""
    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    """Replies hold the token ids of prompt and output."""
    names_ids: bool = False
    """Tokens with scores are named by their ids."""
    prompt_logprobs: int | None = None


class OpenAiRenderer(ABC):
    """A `Renderer` whose chunks are mostly a frame that is the same for all of one call's chunks."""

    independent = False
    done_event = DONE_EVENT
    names: Mapping[str, str] = CLIENT_NAMES
    chunk_object = ""
    whole_object = ""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._head = {
            "id": frame.identity,
            "created": frame.created,
            "model": frame.info.model_name,
            "system_fingerprint": frame.info.fingerprint,
        }
        self._usages: dict[int, Usage] = {}
        self._num_tokens: dict[int, int] = {}
        self._begun: set[int] = set()
        # A chunk is `prefix index middle text tail`; everything but index and text is encoded once.
        head = {**self._head, "object": self.chunk_object}
        self._prefix = b"data: " + encode(head)[:-1] + b',"choices":[{"index":'
        self._tail = b"}]" + (b',"usage":null' if frame.include_usage else b"") + b"}\n\n"

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

    def first_tail(self, tail: bytes, inbox: Inbox) -> bytes:
        """What ends the first chunks of a choice, given what ends all others."""
        return tail

    def name(self, token: int, text: str) -> str:
        """A token with a score as replies name it."""
        return f"token_id:{token}" if self.frame.names_ids else text

    def has_begun(self, index: int) -> bool:
        """Whether something of this choice was seen before the delta that is being written."""
        return index in self._begun

    # ---- renderer ----

    def delta(self, index: int, delta: Delta, inbox: Inbox) -> bytes:
        self._num_tokens[index] = self._num_tokens.get(index, 0) + len(delta.tokens)
        done = delta.done
        first = not self.has_begun(index)
        text = self.opening(index, delta) + delta.text if first else delta.text
        scored = bool(delta.logprobs or delta.prompt_logprobs or done or self.frame.token_ids)
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
        if self.frame.token_ids:
            ending += b',"token_ids":' + encode(delta.tokens)
        if done is not None:
            ending += b"," + encode(stop_members(done))[1:-1]
        before = parts[:-1]
        tail = self._tail_of(index, inbox, done, self._num_tokens[index])
        early = self._tail_of(index, inbox, None, self._num_tokens[index] - len(delta.tokens)) if before else b""
        tails = [*[early] * len(before), tail]
        if first:
            tails[0] = self.first_tail(tails[0], inbox)
        endings = [*[NOTHING_YET] * len(before), ending]
        written = zip(parts, endings, tails, strict=True)
        return b"".join([b"%b%d%b%b%b" % (self._prefix, index, part, end, tail) for part, end, tail in written])

    def _tail_of(self, index: int, inbox: Inbox, done: Done | None, num_tokens: int) -> bytes:
        """What ends a chunk: usage so far of this choice, if it is wanted. Before the end the prompt's length is known
        once it was taken."""
        if not self.frame.continuous_usage:
            return self._tail
        if done is None:
            if inbox.num_prompt is None:
                return self._tail
            usage = Usage(inbox.num_prompt, num_tokens, 0)
        else:
            usage = done.usage
        return b'}],"usage":' + encode(self.usage([usage], [index], 1)) + b"}\n\n"

    def closing(self) -> bytes:
        if not self.frame.include_usage:
            return b""
        indices = sorted(self._usages)
        usage = self.usage([self._usages[index] for index in indices], indices, self.frame.candidates)
        body = {**self._head, "object": self.chunk_object, "choices": [], "usage": usage}
        return b"data: " + encode(body) + b"\n\n"

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        choices = [
            self._choice(place, index, deltas[index], inboxes[index]) for place, index in enumerate(self.chosen(deltas))
        ]
        # What is not shown was generated all the same.
        usages = [delta.done.usage for delta in deltas if delta.done is not None]
        usage = self.usage(usages, range(len(usages)), self.frame.candidates)
        body = {**self._head, "object": self.whole_object, "choices": choices, "usage": usage}
        body["metadata"] = versions_of(inboxes[0], self.frame.info, final=True)
        return encode(body | self.extras(deltas, inboxes))

    def _choice(self, place: int, index: int, delta: Delta, inbox: Inbox) -> dict[str, Any]:
        if delta.done is None:
            raise AssertionError("a refused request has no whole reply")
        return {
            "index": place,
            **self.choice(index, delta, inbox),
            "logprobs": self.scores(index, delta),
            "finish_reason": self.reason(index, delta.done),
            **stop_members(delta.done),
            **({"token_ids": delta.tokens} if self.frame.token_ids else {}),
        }

    def chosen(self, deltas: Sequence[Delta]) -> Sequence[int]:
        """The requests that a whole reply shows."""
        return range(len(deltas))

    def extras(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> dict[str, Any]:
        """More members of a whole reply."""
        return {}

    def failure(self, problem: Problem) -> bytes:
        return error_event(problem)

    def problem(self, problem: Problem) -> Problem:
        return problem.renamed(self.names)
