"""What a simulated client asks for, as the engine takes it."""

from __future__ import annotations

from pawl.gpu.ghost.language import END_TOKEN
from pawl.lifecycle.request import SamplingParameters
from pawl.testing.workload import Arrival

SAMPLED = (
    *("min_new_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("max_new_tokens", "top_logprobs", "token_ids_logprob", "prompt_logprobs", "grammar"),
)
"""Fields of an arrival that are those of SamplingParameters."""


def parameters_of(arrival: Arrival) -> SamplingParameters:
    """What its client asks for; without a seed, the likeliest tokens."""
    if arrival.embed:
        return SamplingParameters(temperature=0.0, max_new_tokens=0, embed=True)
    ends = () if arrival.ignore_eos and arrival.grammar is None else (END_TOKEN,)
    return SamplingParameters(
        **{name: getattr(arrival, name) for name in SAMPLED},
        temperature=0.0 if arrival.seed is None else 1.0,
        seed=arrival.seed or 0,
        logit_bias=dict(arrival.logit_bias),
        stop_token_ids=tuple(dict.fromkeys((*ends, *arrival.stop_token_ids))),
        eos_token_ids=ends,
    )
