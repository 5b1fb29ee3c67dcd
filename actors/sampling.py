"""What a client may set about sampling, and the one way from there to `SamplingParameters`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from pawl.actors.grammar_fields import GrammarFields, grammars_of, the_one
from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.text.vocabulary import Vocabulary
from pawl.gpu.step_runner import Abilities
from pawl.lifecycle.grammar import Grammar
from pawl.lifecycle.request import MAX_STOP_TOKENS, MAX_TOKEN_IDS_LOGPROB, MAX_TOP_LOGPROBS, SamplingParameters
from pawl.lifecycle.step import Float32s

INT32_MAX = (1 << 31) - 1
SEED_RANGE = 1 << 63
GREEDY_BELOW = 1e-6
"""A temperature below it means the likeliest token, as 0 does; divided by it, logits would overflow."""

TINY = 1e-12
"""No vector is divided by less: one of zeros stays what it is."""

TokenId = Annotated[int, Meta(ge=0, le=INT32_MAX)]
Count = Annotated[int, Meta(ge=0, le=INT32_MAX)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
NamedTokens = Annotated[list[TokenId], Meta(max_length=MAX_TOKEN_IDS_LOGPROB)]
Seed = Annotated[int, Meta(ge=-SEED_RANGE, le=SEED_RANGE - 1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]

StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
"""As much text may have to be held back."""
StopStrings = Annotated[list[StopString], Meta(max_length=16)]


class SamplingFields(GrammarFields, kw_only=True, forbid_unknown_fields=True):
    """Fields that every API names alike. None: not set."""

    temperature: Annotated[float, Meta(ge=0.0, le=1e6)] | None = None
    top_p: Share | None = None
    """0 keeps the likeliest token alone."""
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    """-1 and 0: off."""
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.001, le=1000.0)] | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)] | None = (
        None
    )
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    seed: Seed | None = None
    """Counts modulo 2**63."""


class OfflineSampling(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """What `Engine.generate` takes: these, under the names of `SamplingParameters`."""

    max_new_tokens: Count | None = None
    min_new_tokens: Count | None = None
    top_logprobs: TopLogprobs | None = None
    token_ids_logprob: NamedTokens | None = None
    """Nothing without `top_logprobs`."""
    prompt_logprobs: bool | None = None


class Limits(msgspec.Struct, frozen=True):
    """What the served model lets a request ask for."""

    context_length: int
    """Prompt and output tokens together."""
    vocabulary_size: int
    """Token ids from 0 on that the model has an embedding for."""
    eos_token_ids: tuple[int, ...] = ()
    """The model's own ends."""
    grammars: bool = True
    """Output can be kept to a grammar."""
    abilities: Abilities = Abilities()

    @classmethod
    def of(cls, vocabulary: Vocabulary, context_length: int, abilities: Abilities) -> Limits:
        grammars = bool(vocabulary.eos_ids) and vocabulary.byte_table is not None
        return cls(context_length, vocabulary.num_embeddings, vocabulary.eos_ids, grammars, abilities)


def build_sampling(
    fields: SamplingFields,
    limits: Limits,
    seed: int,
    *,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    top_logprobs: int | None = None,
    token_ids_logprob: Sequence[int] = (),
    prompt_logprobs: bool = False,
    grammar: Grammar | None = None,
) -> SamplingParameters:
    """The parameters that `fields` mean for this model; the keywords are those that the APIs name differently, and
    `grammar` what they ask for in words of their own.

    `seed` counts where the client gave none. The model's ends join the client's stop tokens unless they are ignored.
    Without `max_new_tokens` the limit is the context, which the tokenizer cuts to what the prompt leaves.

    Raises InvalidRequest for what no single field's bounds can say, and where the model generates nothing.
    """
    if not limits.abilities.generates:
        raise InvalidRequest("this model makes vectors of texts and generates none: ask /v1/embeddings", param="model")
    if max_new_tokens is not None and (min_new_tokens or 0) > max_new_tokens:
        text = f"min_new_tokens ({min_new_tokens}) must not exceed max_new_tokens ({max_new_tokens})"
        raise InvalidRequest(text, param="min_new_tokens")
    own = grammars_of(fields)
    grammar = the_one(own if grammar is None else {"response_format": grammar, **own})
    if grammar is not None:
        _check_grammar(fields, limits)
    eos = () if fields.ignore_eos else limits.eos_token_ids
    temperature = 1.0 if fields.temperature is None else fields.temperature
    greedy = temperature < GREEDY_BELOW or fields.top_p == 0.0
    set_fields = {
        name: value
        for name in ("top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
        if (value := getattr(fields, name)) is not None
    }
    if greedy:
        set_fields.pop("top_p", None)
    sampling = SamplingParameters(
        **set_fields,
        temperature=0.0 if greedy else temperature,
        top_k=max(fields.top_k or 0, 0),
        seed=(seed if fields.seed is None else fields.seed) % SEED_RANGE,
        max_new_tokens=limits.context_length if max_new_tokens is None else max_new_tokens,
        min_new_tokens=min_new_tokens or 0,
        stop_token_ids=tuple(dict.fromkeys((*eos, *(fields.stop_token_ids or ())))),
        eos_token_ids=eos,
        top_logprobs=None if top_logprobs is None else min(top_logprobs, limits.vocabulary_size),
        token_ids_logprob=tuple(token_ids_logprob) if top_logprobs is not None else (),
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )
    _check_tokens(sampling, limits)
    return sampling


def offline_sampling(fields: OfflineSampling, limits: Limits, seed: int) -> SamplingParameters:
    """`build_sampling` for fields that have our own names throughout."""
    return build_sampling(
        fields,
        limits,
        seed,
        max_new_tokens=fields.max_new_tokens,
        min_new_tokens=fields.min_new_tokens,
        top_logprobs=fields.top_logprobs,
        token_ids_logprob=fields.token_ids_logprob or (),
        prompt_logprobs=bool(fields.prompt_logprobs),
    )


def embedding_sampling(limits: Limits, dimensions: int | None = None) -> SamplingParameters:
    """What asks for a prompt's vector, which is to have so many numbers. Raises InvalidRequest."""
    size = limits.abilities.vector_size
    if not size:
        text = "this server makes no vectors of this model's texts; --pooling last or --pooling mean makes it"
        raise InvalidRequest(text, param="model")
    if dimensions is not None and dimensions > size:
        text = f"dimensions must be at most {size}, as many as this model's vectors have; got {dimensions}"
        raise InvalidRequest(text, param="dimensions")
    return SamplingParameters(temperature=0.0, max_new_tokens=0, embed=True)


def shortened(vector: Float32s, dimensions: int | None, limits: Limits) -> Float32s:
    """The first `dimensions` numbers of a vector; of length 1 again where the model's vectors are."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    cut = vector[:dimensions]
    length = np.sqrt((cut.astype(np.float64) ** 2).sum()) if limits.abilities.unit_vectors else 1.0
    return (cut / max(length, TINY)).astype(np.float32)


def _check_grammar(fields: SamplingFields, limits: Limits) -> None:
    if not limits.grammars:
        raise InvalidRequest("this model's output cannot be kept to a grammar: its tokens are not text by themselves")
    if fields.ignore_eos:
        text = "ignore_eos cannot be true for an output with a grammar, which ends with the grammar"
        raise InvalidRequest(text, param="ignore_eos")


def _check_tokens(sampling: SamplingParameters, limits: Limits) -> None:
    if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"at most {MAX_STOP_TOKENS} stop tokens are allowed, the model's own "
            f"{len(sampling.eos_token_ids)} included; got {len(sampling.stop_token_ids)}",
            param="stop_token_ids",
        )
    for name in ("stop_token_ids", "logit_bias", "token_ids_logprob"):
        for token in getattr(sampling, name):
            if token >= limits.vocabulary_size:
                raise InvalidRequest(
                    f"{name} names token {token}, but the vocabulary ends at {limits.vocabulary_size - 1}", param=name
                )
