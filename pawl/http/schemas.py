"""The JSON bodies that the routes take. Decoding is strict: an unknown field or a wrong type is refused.

Fields of type Any are known to clients but not supported here; `refuse_unsupported` says so by name when one is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from pawl.http.errors import Problem

MAX_CHOICES = 128
"""Most completions of one prompt."""

Strings: TypeAlias = str | list[str] | None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """Usage so far with every chunk, as vLLM has it."""
    include_obfuscation: bool | None = None
    """OpenAI's padding against traffic analysis; only false is supported."""


class _Generation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both OpenAI routes take."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: Strings = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # Extras that other engines share.
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    rid: str | None = None
    timeout_s: float | None = None
    # The caller's own bookkeeping: taken, and of no effect on the result.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Known, but not supported.
    regex: Any = None
    ebnf: Any = None
    json_schema: Any = None
    structural_tag: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    lora_path: Any = None
    session_params: Any = None
    logits_processors: Any = None


class CompletionBody(_Generation, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


class ChatBody(_Generation, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    """Says something about tools only, of which there are none."""
    response_format: Any = None
    tool_choice: Any = None
    function_call: Any = None
    modalities: Any = None
    service_tier: Any = None
    store: Any = None
    tools: Any = None
    functions: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    web_search_options: Any = None
    verbosity: Any = None
    chat_template: Any = None


class NativeSampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params` of `POST /generate`."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: Strings = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    n: int | None = None
    seed: int | None = None
    sampling_seed: int | None = None
    # Known, but not supported.
    json_schema: Any = None
    regex: Any = None
    ebnf: Any = None
    structural_tag: Any = None
    stop_regex: Any = None
    custom_params: Any = None
    stream_interval: Any = None


class GenerateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /generate`: one prompt or a list; other fields are one value for all, or a list of the same length."""

    text: Strings = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: NativeSampling | list[NativeSampling] | None = None
    rid: Strings = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    """The SGLang's name for `cache_salt`."""
    timeout_s: float | None = None
    log_metrics: bool | None = None
    """Every request is counted; only true is supported."""
    # Known, but not supported.
    input_embeds: Any = None
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    modalities: Any = None
    lora_path: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None
    token_ids_logprob: Any = None
    return_hidden_states: Any = None
    return_routed_experts: Any = None
    bootstrap_host: Any = None
    bootstrap_port: Any = None
    bootstrap_room: Any = None
    data_parallel_rank: Any = None


class AbortBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /abort_request`: exact names, or everything."""

    rid: Strings = None
    abort_all: bool | None = None
    abort_message: str | None = None


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`: text under either name."""

    model: str | None = None
    prompt: Strings = None
    text: Strings = None
    add_special_tokens: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int | list[int]]
    skip_special_tokens: bool | None = None


HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "include_obfuscation": (False,),
    "log_metrics": (True,),
    "store": (False,),
    "tools": ([],),
    "functions": ([],),
    "suffix": ("",),
    "image_data": ([],),
    "return_hidden_states": (False,),
    "return_routed_experts": (False,),
}
"""Values of unsupported fields that ask for what happens anyway."""


def refuse_unsupported(body: msgspec.Struct, names: tuple[str, ...]) -> None:
    """Refuse the first of `names` that is set to something other than what happens anyway."""
    for name in names:
        value = getattr(body, name)
        if value is not None and value not in HARMLESS.get(name, ()):
            allowed = HARMLESS.get(name)
            hint = f"; only {msgspec.json.encode(allowed[0]).decode()} is" if allowed else ""
            raise Problem(400, f"{name} is not supported{hint}", param=name, code="unsupported_field")


def unsupported(kind: type[msgspec.Struct], *more: str) -> tuple[str, ...]:
    """The fields of `kind` that are of type Any, and `more`."""
    fields = (field.name for field in msgspec.structs.fields(kind) if field.type is Any)
    return (*fields, *more)


def strings(value: Strings, name: str) -> tuple[str, ...]:
    """A string or a list of strings, as a tuple; empty strings are refused."""
    values = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    if any(not text for text in values):
        raise Problem(400, f"{name} must not hold an empty string", param=name)
    return values


def num_choices(n: int | None) -> int:
    """How many completions of each prompt."""
    if n is None:
        return 1
    if not 1 <= n <= MAX_CHOICES:
        raise Problem(400, f"n must be between 1 and {MAX_CHOICES}, not {n}", param="n")
    return n
