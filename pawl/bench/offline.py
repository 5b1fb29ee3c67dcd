"""Throughput of an engine inside this process: all requests at once, no server, no text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pawl.bench.measures import Sample
from pawl.bench.workload import Workload

if TYPE_CHECKING:
    from pawl.engine import Completion, Engine


def run_batch(engine: Engine, workload: Workload, advance: Callable[[int], None]) -> tuple[list[Sample], float]:
    """Answer the workload once; a sample for each request, in order, and the seconds it took. Raises RequestFailed."""
    prompts: list[Any] = workload.token_prompts(engine.parts.vocabulary.num_embeddings)
    sampling = {"max_new_tokens": workload.output_length, "temperature": 0.0, "ignore_eos": True}
    began = time.perf_counter()
    completions = engine.generate(prompts, sampling, on_done=lambda *_: advance(1))
    return [_sample(completion) for completion in completions], time.perf_counter() - began


def _sample(completion: Completion) -> Sample:
    """Timing as the scheduler saw it: there is no client."""
    usage, timing = completion.done.usage, completion.done.timing
    return Sample(
        sent=timing.submitted,
        first=timing.first_token,
        last=timing.ended,
        num_prompt=usage.prompt_tokens,
        num_output=usage.completion_tokens,
        num_cached=usage.cached_tokens,
    )
