"""The words of recorded requests to a ghost, computed again: each request by a ghost that it has for itself. Likeliest
tokens, which nearly all ask for, follow from what was recorded before each: all of a request at once, in no steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from pawl.gpu.alone import steps_alone
from pawl.gpu.ghost.language import VOCABULARY_SIZE, Int32s, likeliest
from pawl.gpu.ghost.runner import Ghost, is_plain
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.sampling.mixing import mix64
from pawl.gpu.step_runner import AdapterRefused
from pawl.lifecycle.recompute import Computed, Content, Recorded

ADAPTER = 1
"""The adapter slot of a request that has one."""


def ghost_again(
    requests: Sequence[Recorded],
    advance: Callable[[int], object] = lambda count: None,
    grammars: Grammars | None = None,
) -> list[Computed | None]:
    """`Compute` of a ghost; `advance` hears of tokens that are computed."""
    found: list[Computed | None] = []
    for request in requests:
        found.append(_again(request, grammars))
        advance(len(request.tokens))
    return found


def _again(request: Recorded, grammars: Grammars | None) -> Computed | None:
    total, count = len(request.tokens), request.num_prompt
    computed = Computed.unknown(request)
    known = request.tokens.min() >= 0 and request.tokens.max() < VOCABULARY_SIZE
    if known and request.adapter is None and is_plain(request.sampling):
        computed.tokens[:] = likeliest_after_each(request.tokens[:-1])[count - 1 :]
        return computed
    size = total + 1
    ghost = Ghost(num_pages=1, page_size=size, num_slots=1, max_context=size, small=True, grammars=grammars)
    if request.adapter is not None and not _read(ghost, request.adapter):
        return None
    prompt = np.array(request.tokens[:count])
    adapter = 0 if request.adapter is None else ADAPTER
    steps = steps_alone(ghost, prompt, request.sampling, total - count, total + 1, adapter=adapter)
    for index, result in enumerate(steps):
        if total > count:
            computed.tokens[index] = result.tokens[0]
        if result.logprobs is not None:
            computed.score(np.array([count + index]), result.logprobs)
        for part in result.prompt_logprobs:
            computed.score(np.arange(part.start + 1, part.start + 1 + len(part.chosen)), part)
        computed.digests.extend(embedding.digest for embedding in result.embeddings)
    return computed


def likeliest_after_each(tokens: Int32s) -> Int32s:
    """What a greedy request gets after each of these and those before it, int32 [n]. Sums are mod 2^64."""
    tags = np.arange(1, len(tokens) + 1, dtype=np.uint64) << np.uint64(32) | tokens.astype(np.uint64)
    return likeliest(mix64(np.cumsum(np.cumsum(mix64(tags)))), tokens)


def _read(ghost: Ghost, adapter: Content) -> bool:
    """Whether it is in its slot."""
    for source in adapter.sources:
        with suppress(AdapterRefused):
            if ghost.load_adapter(ADAPTER, source) == adapter.fingerprint:
                return True
    return False
