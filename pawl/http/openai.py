"""What requests to `/v1/completions` and `/v1/chat/completions` share: names, checks, and what becomes of fields."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request

from pawl.actors.gateway import Gateway
from pawl.actors.messages.generate import Submit, TextOptions
from pawl.actors.sampling import SEED_RANGE
from pawl.actors.text.invalid import quoted
from pawl.http.errors import Problem
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

KEEPS_STOP = ("include_stop_str_in_output", "no_stop_trim")
CLIENT_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "token_ids": "prompt",
}
"""Our field names in the words of OpenAI's API."""
CHAT_NAMES = CLIENT_NAMES | {"token_ids": "messages", "prompt": "messages"}
"""The same for chats."""


def check_model(info: ServerInfo, name: str | None) -> None:
    """Refuse a request for a model that is not served here."""
    if name is not None and not info.knows(name):
        text = f"the model {quoted(name)} does not exist here; this server has {info.model_name!r}"
        raise Problem(404, text, param="model", code="model_not_found")


def check_common(body: CompletionBody | ChatBody, unsupported: tuple[str, ...]) -> None:
    """The checks that come before all others but that of the model."""
    refuse_unsupported(body, unsupported)
    if body.stream_options is not None and not body.stream:
        raise Problem(400, "stream_options is only allowed when stream is true", param="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise Problem(400, "prompt_logprobs is not possible when stream is true", param="prompt_logprobs")


def one_of(body: msgspec.Struct, *names: str) -> Any:
    """The value of fields that mean the same; None where none is set. Refuses two that differ."""
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    first, *others = given or {"": None}
    for other in others:
        if given[other] != given[first]:
            raise Problem(400, f"{first} and {other} contradict each other; send one of them", param=other)
    return given.get(first)


def rid_of(request: Request, named: str | None, gateway: Gateway) -> str:
    """The client's name of the call, which may come in a header, or a new one."""
    header = request.headers.get("x-request-id", "")
    return named or (header if header.isascii() else "")[:128] or gateway.new_rid()


def most_rivals(*counts: int | None) -> int | None:
    """How many rivals the engine must score, for all that asked; None: nobody did."""
    return max((count for count in counts if count is not None), default=None)


def text_options_of(body: OpenAiBody | NativeSampling, include_stop: bool, min_tokens: int) -> TextOptions:
    """What is made of the tokens, as the fields that both APIs name alike say."""
    return TextOptions(
        stop=strings(body.stop),
        include_stop=include_stop,
        skip_special_tokens=body.skip_special_tokens is not False,
        spaces_between_special_tokens=body.spaces_between_special_tokens is not False,
        min_tokens=min_tokens,
    )


def base_submit(
    body: CompletionBody | ChatBody, sampling: SamplingParameters, fill_context: bool, rid: str, adapter: str = ""
) -> Submit:
    """A request with everything but its prompt."""
    return Submit(
        request=0,
        rid=rid,
        sampling=sampling,
        fill_context=fill_context,
        text_options=msgspec.structs.replace(
            text_options_of(body, bool(one_of(body, *KEEPS_STOP)), sampling.min_new_tokens),
            return_prompt=bool(body.return_token_ids),
        ),
        priority=body.priority or 0,
        timeout_s=body.timeout_s,
        cache_salt=one_of(body, "cache_salt", "extra_key") or "",
        adapter=adapter,
    )


def choices_of(submit: Submit, n: int, seed: int | None = None) -> list[Submit]:
    """`n` requests for one prompt. Seeds count upwards (and round) from the first, so that the choices differ and can
    be repeated; `seed` replaces the first."""
    first = submit.sampling.seed if seed is None else seed
    seeds = [(first + index) % SEED_RANGE for index in range(n)]
    replace = msgspec.structs.replace
    return [replace(submit, sampling=replace(submit.sampling, seed=one)) for one in seeds]
