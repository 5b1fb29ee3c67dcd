"""Workloads that were drawn plain, for the sake of something else, with what a request may ask of its tokens."""

from __future__ import annotations

import msgspec

from pawl.features.row import Seeded
from pawl.testing.workload import Arrival, Workload, drawn_arrival

OF_TOKENS = (
    *("stop_after", "stop", "stop_token_ids", "ignore_eos", "min_new_tokens", "grammar"),
    *("include_stop", "stop_from", "silent", "return_prompt"),
    *("seed", "top_k", "top_p", "min_p", "logit_bias"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("top_logprobs", "token_ids_logprob", "prompt_logprobs", "priority"),
)
"""Fields of a request that say which tokens it gets and what is told of them, and nothing of its size or its time."""


def sprinkled(workload: Workload, seed: int) -> Workload:
    """The same requests, each with what another one that is drawn from `seed` asks of its tokens."""
    source, before, found = Seeded(seed), list[Arrival](), list[Arrival]()
    for arrival in workload.arrivals:
        other = drawn_arrival(source, workload.shape, before)
        before.append(other)
        asked = {} if other.embed else {name: getattr(other, name) for name in OF_TOKENS}
        if asked.get("stop_after"):
            asked["stop_after"] = min(asked["stop_after"], max(1, arrival.max_new_tokens))
        if asked.get("min_new_tokens"):
            asked["min_new_tokens"] = min(asked["min_new_tokens"], arrival.max_new_tokens)
        found.append(msgspec.structs.replace(arrival, **asked))
    return msgspec.structs.replace(workload, arrivals=tuple(found))
