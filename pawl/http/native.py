"""`POST /generate`: SGLang's own API. Streams are cumulative: an event holds all text and token ids so far, and the
scores of the tokens that are new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pawl.actors.messages.generate import Done, Submit, TokenLogprob
from pawl.actors.sampling import build_sampling
from pawl.actors.sink import Delta, Inbox
from pawl.http.adapters import adapter_of, checked
from pawl.http.completions import Prompt, check_scored, prompts_of, spread
from pawl.http.context import ServerContext
from pawl.http.errors import DONE_EVENT, MESSAGE_OF_CAUSE, STATUS_OF_CAUSE, Problem, error_event
from pawl.http.info import ServerInfo
from pawl.http.openai import choices_of, text_options_of
from pawl.http.rendering import encode, finite, versions_of
from pawl.http.schemas import GenerateBody, NativeSampling, refuse_unsupported, unsupported
from pawl.lifecycle.request import MAX_TOKEN_IDS_LOGPROB, SamplingParameters
from pawl.lifecycle.states import ABORT_CAUSES, Cause

DEFAULT_MAX_NEW_TOKENS = 128

UNSUPPORTED = unsupported(GenerateBody, "log_metrics")
UNSUPPORTED_SAMPLING = unsupported(NativeSampling)

CLIENT_NAMES = {"token_ids": "input_ids", "top_logprobs": "top_logprobs_num"}
"""Our field names in the words of this route."""


class Scoring(msgspec.Struct, frozen=True):
    """Which log-probabilities one request's replies show."""

    start: int | None
    """First prompt position to score; None: the prompt is not scored."""
    num_top: int
    named: tuple[int, ...] = ()
    """Token ids whose scores are shown at every place."""


class Call(msgspec.Struct, frozen=True):
    """A body, understood."""

    submits: tuple[Submit, ...]
    scorings: tuple[Scoring | None, ...]
    """One for each request."""
    single: bool
    """Whether the reply is one object, not a list."""
    texts: bool
    """Whether scored tokens show their text."""
    incremental: bool
    """Whether events of a stream hold what is new, and not all so far."""


def understand(body: GenerateBody, context: ServerContext) -> Call:
    """The requests that `body` asks for; a prompt without a rid gets a new one. Refuses what is wrong, by name."""
    refuse_unsupported(body, UNSUPPORTED)
    prompts, listed = prompts_of_body(body.text, body.input_ids, context)
    count = len(prompts)
    samplings = spread(
        NativeSampling() if body.sampling_params is None else body.sampling_params, count, "sampling_params"
    )
    context.check_count(sum(sampling.n or 1 for sampling in samplings), 1)
    rids = spread("" if body.rid is None else body.rid, count, "rid")
    if isinstance(body.rid, list) and len(set(body.rid)) < count:
        raise Problem(400, "Duplicate request ID: rid must name each prompt differently", param="rid")
    wanted = spread(False if body.return_logprob is None else body.return_logprob, count, "return_logprob")
    starts = spread(-1 if body.logprob_start_len is None else body.logprob_start_len, count, "logprob_start_len")
    tops = spread(0 if body.top_logprobs_num is None else body.top_logprobs_num, count, "top_logprobs_num")
    named = _named(body.token_ids_logprob or [], count)
    adapter = adapter_of(context, body.model) or None
    adapters = [each or adapter for each in spread(body.lora_path, count, "lora_path")]
    if body.cache_salt and body.extra_key and body.cache_salt != body.extra_key:
        raise Problem(400, "cache_salt and extra_key contradict each other; send one of them", param="extra_key")
    if body.session_params is not None and sum(sampling.n or 1 for sampling in samplings) > 1:
        text = "a turn of a session has one prompt and one answer: send several turns as several requests"
        raise Problem(400, text, param="session_params")
    submits: list[Submit] = []
    scorings: list[Scoring | None] = []
    scored = 0
    for prompt, sampling, rid, wants, start, top, names, adapter in zip(
        prompts, samplings, rids, wanted, starts, tops, named, adapters, strict=True
    ):
        scoring = Scoring(start if start >= 0 else None, top, names) if wants else None
        if scoring is not None and scoring.start is not None:
            scored += len(prompt) * (sampling.n or 1) * (top + len(names) + 1)
            check_scored(scored)
        submit = Submit(
            request=0,
            rid=rid or context.gateway.new_rid(),
            text=prompt if isinstance(prompt, str) else None,
            token_ids=None if isinstance(prompt, str) else prompt,
            sampling=_sampling(sampling, scoring, context),
            text_options=text_options_of(sampling, bool(sampling.no_stop_trim), sampling.min_new_tokens or 0),
            priority=body.priority or 0,
            timeout_s=body.timeout_s,
            cache_salt=body.cache_salt or body.extra_key or "",
            adapter=checked(context.info, adapter),
            session=body.session_params,
            scored_from=max(start, 0) if wants else 0,
        )
        choices = choices_of(submit, sampling.n or 1)
        if len(choices) > 1:
            # Each answer has a name of its own; the prompt's names them all.
            replace = msgspec.structs.replace
            choices = [replace(one, rid=f"{one.rid}_{i}", group=one.rid) for i, one in enumerate(choices)]
        submits += choices
        scorings += [scoring] * len(choices)
    single = not listed and len(submits) == 1
    texts, incremental = bool(body.return_text_in_logprobs), bool(body.incremental_streaming)
    return Call(tuple(submits), tuple(scorings), single, texts, incremental)


def prompts_of_body(
    text: str | list[str] | None, input_ids: Sequence[int | list[int]] | None, context: ServerContext
) -> tuple[Sequence[Prompt], bool]:
    """The prompts, and whether they came as a list."""
    if (text is None) == (input_ids is None):
        raise Problem(400, "send exactly one of text and input_ids", param="text")

    def check(count: int) -> None:
        context.check_count(count, 1)

    if text is not None:
        prompts, listed = prompts_of(text, "text", check), isinstance(text, list)
    else:
        ids = input_ids or []
        prompts, listed = prompts_of(ids, "input_ids", check), isinstance(ids[0], list)
    return prompts, listed


def _named(value: Sequence[int | list[int]], count: int) -> list[tuple[int, ...]]:
    """The token ids that each prompt names: the same for all, or a list for each."""
    ids = [one for one in value if isinstance(one, int)]
    lists = [tuple(one) for one in value if isinstance(one, list)]
    if ids and lists:
        raise Problem(400, "token_ids_logprob must not mix token ids and lists", param="token_ids_logprob")
    if len(ids) > MAX_TOKEN_IDS_LOGPROB:
        text = f"token_ids_logprob names {len(ids)} tokens, and {MAX_TOKEN_IDS_LOGPROB} are allowed"
        raise Problem(400, text, param="token_ids_logprob")
    return spread(lists, count, "token_ids_logprob") if lists else [tuple(ids)] * count


def _sampling(sampling: NativeSampling, scoring: Scoring | None, context: ServerContext) -> SamplingParameters:
    refuse_unsupported(sampling, UNSUPPORTED_SAMPLING)
    seeds = {seed for seed in (sampling.seed, sampling.sampling_seed) if seed is not None}
    if len(seeds) > 1:
        raise Problem(400, "seed and sampling_seed contradict each other; send one of them", param="seed")
    return build_sampling(
        sampling,
        context.info.limits,
        seeds.pop() if seeds else context.gateway.new_seed(),
        max_new_tokens=DEFAULT_MAX_NEW_TOKENS if sampling.max_new_tokens is None else sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens,
        top_logprobs=scoring.num_top if scoring is not None else None,
        token_ids_logprob=scoring.named if scoring is not None else (),
        prompt_logprobs=scoring is not None and scoring.start is not None,
    )


def finish_reason(done: Done) -> dict[str, Any]:
    """How a request ended, in SGLang's words."""
    if done.cause is Cause.LENGTH:
        return {"type": "length", "length": done.usage.completion_tokens}
    if done.cause in ABORT_CAUSES:
        return _aborted(done.message or MESSAGE_OF_CAUSE[done.cause], STATUS_OF_CAUSE[done.cause])
    return {"type": "stop", "matched": done.matched}


def _aborted(message: str, status: int) -> dict[str, Any]:
    return {"type": "abort", "message": message, "status_code": status}


class _Progress:
    """What events of one request show: text and tokens of all so far, or of what is new."""

    def __init__(self, incremental: bool) -> None:
        self._incremental = incremental
        self.text = ""
        self.tokens: list[int] = []
        self.num_tokens = 0

    def add(self, delta: Delta) -> None:
        self.num_tokens += len(delta.tokens)
        if self._incremental:
            self.text, self.tokens = delta.text, list(delta.tokens)
        else:
            self.text += delta.text
            self.tokens.extend(delta.tokens)


class NativeRenderer:
    """Replies of one call."""

    independent = True
    done_event = DONE_EVENT

    def __init__(self, call: Call, info: ServerInfo) -> None:
        self._call = call
        self._info = info
        self._progress = [_Progress(call.incremental) for _ in call.submits]

    def delta(self, index: int, delta: Delta, inbox: Inbox) -> bytes:
        self._progress[index].add(delta)
        result = self._result(index, delta, inbox, inbox.num_prompt)
        if not self._call.single:
            result["index"] = index
        return b"data: " + encode(result) + b"\n\n"

    def closing(self) -> bytes:
        return b""

    def whole(self, deltas: Sequence[Delta], inboxes: Sequence[Inbox]) -> bytes:
        results = []
        for index, delta in enumerate(deltas):
            self._progress[index].add(delta)
            results.append(self._result(index, delta, inboxes[index], None))
        return encode(results[0] if self._call.single else results)

    def failure(self, problem: Problem) -> bytes:
        return error_event(problem)

    def problem(self, problem: Problem) -> Problem:
        return problem.renamed(CLIENT_NAMES)

    def _result(self, index: int, delta: Delta, inbox: Inbox, num_prompt: int | None) -> dict[str, Any]:
        progress = self._progress[index]
        meta: dict[str, Any] = {
            "id": self._call.submits[index].rid,
            "finish_reason": None,
            **versions_of(inbox, self._info, final=delta.final),
            "completion_tokens": progress.num_tokens,
        }
        if num_prompt is not None:
            meta["prompt_tokens"] = num_prompt
        if delta.done is not None:
            meta |= _ending(delta.done)
        if delta.refusal is not None:
            refusal = self.problem(Problem(delta.refusal.status, delta.refusal.message))
            meta["finish_reason"] = _aborted(refusal.message, refusal.status)
        scoring = self._call.scorings[index]
        if scoring is not None:
            meta |= self._scores(delta, scoring)
        return {"text": progress.text, "output_ids": progress.tokens, "meta_info": meta}

    def _scores(self, delta: Delta, scoring: Scoring) -> dict[str, Any]:
        """Of what is new alone: all so far, with every token, would grow with the square of the length."""
        prompt = delta.prompt_logprobs[scoring.start :] if scoring.start is not None else ()
        scores: dict[str, Any] = {
            "input_token_logprobs": [self._score(entry.logprob, entry.token, entry.text) for entry in prompt],
            "output_token_logprobs": [self._score(e.logprob, e.token, e.text) for e in delta.logprobs],
        }
        if scoring.num_top:
            scores["input_top_logprobs"] = [self._rivals(entry, slice(scoring.num_top)) for entry in prompt]
            scores["output_top_logprobs"] = [self._rivals(entry, slice(scoring.num_top)) for entry in delta.logprobs]
        if scoring.named:
            last = slice(-len(scoring.named), None)
            scores["input_token_ids_logprobs"] = [self._rivals(entry, last) for entry in prompt]
            scores["output_token_ids_logprobs"] = [self._rivals(entry, last) for entry in delta.logprobs]
        return scores

    def _score(self, logprob: float | None, token: int, text: str) -> list[Any]:
        return [finite(logprob), token, text if self._call.texts else None]

    def _rivals(self, entry: TokenLogprob, which: slice) -> list[Any] | None:
        if entry.logprob is None:
            return None
        return [self._score(logprob, token, text) for token, logprob, text in entry.top[which]]


def _ending(done: Done) -> dict[str, Any]:
    """What is known at the end only."""
    timing = done.timing
    ending: dict[str, Any] = {
        "finish_reason": finish_reason(done),
        "prompt_tokens": done.usage.prompt_tokens,
        "completion_tokens": done.usage.completion_tokens,
        "cached_tokens": done.usage.cached_tokens,
        "num_retractions": done.usage.retractions,
        "e2e_latency": timing.ended - timing.submitted,
    }
    if done.usage.draft_tokens:
        ending["spec_draft_token_num"] = done.usage.draft_tokens
        ending["spec_accept_token_num"] = done.usage.accepted_tokens
    if timing.admitted is not None:
        ending["queue_time"] = timing.admitted - timing.submitted
    return ending
