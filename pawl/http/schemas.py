"""The JSON bodies that the routes take. Decoding is strict: an unknown field, a wrong type, or a value out of its
field's bounds is refused.

The annotations are the table of bounds: every number, string and list that a client sends has its range here, or in
`CallFields` and `SamplingFields`. Fields of type Any are known to clients but not supported here; `refuse_unsupported`
says so by name when one is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from pawl.actors.sampling import Count, NamedTokens, SamplingFields, Seed, StopString, StopStrings, TokenId, TopLogprobs
from pawl.http.body import MAX_VALUES
from pawl.http.call_fields import AdapterName, ModelName, Note, ObjectOfAny, Priority, Rid, Salt, Seconds, Verbosity
from pawl.http.errors import Problem
from pawl.http.grammar import FormatFields
from pawl.http.pair_fields import Hosts, Paired, Ports, Rooms
from pawl.http.tool_fields import Choice, Functions, ToolReference, Tools
from pawl.lifecycle.request import SessionParameters

Choices = Annotated[int, Meta(ge=1, le=128)]
"""Completions of one prompt."""
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_VALUES)]
ManyTokenIds = Annotated[list[TokenId | TokenIds], Meta(max_length=MAX_VALUES)]
Texts: TypeAlias = str | Annotated[list[str], Meta(max_length=MAX_VALUES)]
Rids: TypeAlias = Rid | Annotated[list[Rid], Meta(max_length=10_000)]
StartLen = Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)]
"""First prompt position to score; -1: none."""
Adapter: TypeAlias = AdapterName | None
Adapters: TypeAlias = Adapter | Annotated[list[Adapter], Meta(max_length=10_000)]
"""Names of adapters: one for all prompts, or one for each; null: none."""
Stops: TypeAlias = StopString | StopStrings


class OpenAiBody(FormatFields, kw_only=True):
    """What both OpenAI routes take."""

    n: Choices | None = None
    stop: Stops | None = None
    # Extras that other engines share.
    min_tokens: Count | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    """SGLang's name of the same."""
    extra_key: Salt | None = None
    """SGLang's name for `cache_salt`."""
    prompt_logprobs: TopLogprobs | None = None
    """Rivals of each token of the prompt; 0: the prompt's own tokens alone."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Tokens with scores are named `token_id:7`."""
    custom_labels: ObjectOfAny | None = None
    bootstrap_host: Hosts = None
    bootstrap_port: Ports = None
    bootstrap_room: Rooms = None
    """Of SGLang's router, as in `Paired`."""
    use_beam_search: bool | None = None
    """The `n` completions that are likeliest as wholes."""
    length_penalty: Annotated[float, Meta(ge=-16.0, le=16.0)] | None = None
    """Of beam search: above 0, long completions gain by it."""
    # Known, but not supported.
    session_params: Any = None
    logits_processors: Any = None
    truncate_prompt_tokens: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    add_special_tokens: Any = None
    mm_processor_kwargs: Any = None
    kv_transfer_params: Any = None
    vllm_xargs: Any = None
    custom_params: Any = None
    custom_logit_processor: Any = None
    stop_regex: Any = None
    return_hidden_states: Any = None
    data_parallel_rank: Any = None


class CompletionBody(OpenAiBody, kw_only=True):
    """`POST /v1/completions`."""

    lora_path: Adapters = None

    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(max_length=MAX_VALUES)]
    max_tokens: Count | None = None
    best_of: Choices | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    suffix: str | None = None


class ChatBody(OpenAiBody, kw_only=True):
    """`POST /v1/chat/completions`."""

    lora_path: Adapter = None

    messages: Annotated[list[ObjectOfAny], Meta(max_length=4096)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    echo: bool | None = None
    """The reply begins with the last message where it goes on with that."""
    chat_template_kwargs: ObjectOfAny | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """Go on with the last message."""
    documents: Annotated[list[ObjectOfAny], Meta(max_length=1024)] | None = None
    """For templates that read them."""
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    """Whether there may be several calls in one reply."""
    functions: Functions | None = None
    """Tools in OpenAI's first form, which has replies of its own."""
    function_call: Literal["none", "auto"] | ToolReference | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """For templates that read it; none: without reasoning, where the template can say so."""
    verbosity: Verbosity | None = None
    """For templates that read it."""
    separate_reasoning: bool | None = None
    """Whether reasoning stands in a member of its own, and not in the content."""
    stream_reasoning: bool | None = None
    """Whether reasoning is streamed as it comes, and not in one delta at its end."""
    include_reasoning: bool | None = None
    """Whether reasoning is sent."""
    store: bool | None = None
    """Replies are not kept, whatever it says."""
    prediction: ObjectOfAny | None = None
    """Could make a reply come sooner, and changes nothing in it."""
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    chat_template: Any = None


class NativeSampling(SamplingFields, kw_only=True):
    """`sampling_params` of `POST /generate`."""

    max_new_tokens: Count | None = None
    min_new_tokens: Count | None = None
    stop: Stops | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    n: Choices | None = None
    sampling_seed: Seed | None = None
    # Known, but not supported.
    stop_regex: Any = None
    custom_params: Any = None
    stream_interval: Any = None


class GenerateBody(Paired, kw_only=True, forbid_unknown_fields=True):
    """`POST /generate`: one prompt or a list; other fields are one value for all, or a list of the same length."""

    text: Texts | None = None
    input_ids: ManyTokenIds | None = None
    sampling_params: NativeSampling | Annotated[list[NativeSampling], Meta(max_length=10_000)] | None = None
    rid: Rids | None = None
    stream: bool | None = None
    incremental_streaming: bool | None = None
    """Events of a stream hold only what is new; otherwise text and token ids of all so far."""
    return_logprob: bool | Annotated[list[bool], Meta(max_length=10_000)] | None = None
    logprob_start_len: StartLen | Annotated[list[StartLen], Meta(max_length=10_000)] | None = None
    top_logprobs_num: TopLogprobs | Annotated[list[TopLogprobs], Meta(max_length=10_000)] | None = None
    token_ids_logprob: Annotated[list[TokenId | NamedTokens], Meta(max_length=10_000)] | None = None
    """Tokens whose scores are told at every place beside those of the likeliest."""
    return_text_in_logprobs: bool | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None
    extra_key: Salt | None = None
    """SGLang's name for `cache_salt`."""
    timeout_s: Seconds | None = None
    lora_path: Adapters = None
    session_params: SessionParameters | None = None
    """The prompt is a turn of this session."""
    log_metrics: bool | None = None
    """Every request is counted; only true is supported."""
    model: ModelName | None = None
    """Routers say whom the request is for."""
    # Known, but not supported.
    input_embeds: Any = None
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    modalities: Any = None
    custom_logit_processor: Any = None
    return_hidden_states: Any = None
    return_routed_experts: Any = None
    return_bytes: Any = None
    return_entropy: Any = None
    data_parallel_rank: Any = None
    background: Any = None
    custom_labels: ObjectOfAny | None = None
    no_logs: bool | None = None
    """Prompts and replies are never logged."""


Dimensions = Annotated[int, Meta(ge=1, le=1 << 20)]
"""Numbers of a vector that are sent, the first ones."""


class EmbeddingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/embeddings`."""

    input: str | Annotated[list[str | TokenId | TokenIds], Meta(max_length=MAX_VALUES)]
    model: ModelName | None = None
    lora_path: Adapter = None
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of little-endian 32-bit floats."""
    dimensions: Dimensions | None = None
    user: Note | None = None
    rid: Rid | None = None
    priority: Priority | None = None
    timeout_s: Seconds | None = None
    # Known, but not supported.
    truncate_prompt_tokens: Any = None
    add_special_tokens: Any = None
    normalize: Any = None
    messages: Any = None


class PoolingBody(EmbeddingBody, kw_only=True, forbid_unknown_fields=True):
    """`POST /pooling`."""

    task: Literal["embed"]
    """The vector of a whole text. Without a task vLLM gives one for each token, which are not to be had here."""
    # Known, but not supported.
    softmax: Any = None
    activation: Any = None


class EncodeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /encode`: one text or a list."""

    text: Texts | None = None
    lora_path: Adapters = None
    input_ids: ManyTokenIds | None = None
    rid: Rids | None = None
    dimensions: Dimensions | None = None
    priority: Priority | None = None
    timeout_s: Seconds | None = None
    log_metrics: bool | None = None
    """Every request is counted; only true is supported."""
    # Known, but not supported.
    sampling_params: Any = None
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    modalities: Any = None
    input_embeds: Any = None
    is_cross_encoder_request: Any = None
    data_parallel_rank: Any = None
    background: Any = None


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`: text under either name, or messages, which the model's chat template makes a text of."""

    model: ModelName | None = None
    prompt: Texts | None = None
    text: Texts | None = None
    add_special_tokens: bool | None = None
    """True unless set, and false for messages: a template writes the special tokens itself."""
    return_token_strs: bool | None = None
    messages: Annotated[list[ObjectOfAny], Meta(max_length=4096)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ObjectOfAny | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    model: ModelName | None = None
    tokens: ManyTokenIds
    skip_special_tokens: bool | None = None


HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "log_metrics": (True,),
    "suffix": ("",),
    "image_data": ([],),
    "return_hidden_states": (False,),
    "return_bytes": (False,),
    "return_entropy": (False,),
    "return_routed_experts": (False,),
    "bad_words": ([],),
    "background": (False,),
    "truncation": ("disabled",),
    "sampling_params": ({},),
    "is_cross_encoder_request": (False,),
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


def strings(value: Stops | None) -> tuple[str, ...]:
    """A string or a list of strings, as a tuple."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
