"""vLLM's V1 scheduler without its model, measured as `benchmarks.host` measures ours. Runs in vLLM's own environment.

    PAWL_PEER_MODEL=<Hugging Face folder>  python benchmarks/peers_vllm_scheduler.py

A step is `schedule()` plus `update_from_output()`; making the pretended model output in between is not counted. The
last line printed is a JSON object: figure name -> microseconds, one value for each repetition.
"""

from __future__ import annotations

import gc
import json
import os
import random
import time

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

PAGE = 16
PAGES = 90 * 1024
HASH = get_hash_fn_by_name("sha256")
init_none_hash(HASH)
HASHER = get_request_block_hasher(PAGE, HASH)


def scheduler(max_running: int) -> Scheduler:
    """With prefix caching and chunked prefill, 8,192 tokens a step."""
    model = ModelConfig(
        model=os.environ["PAWL_PEER_MODEL"], dtype="bfloat16", seed=0, skip_tokenizer_init=True, max_model_len=4608
    )
    limits = SchedulerConfig(
        max_num_seqs=max_running,
        max_num_batched_tokens=8192,
        max_model_len=4608,
        enable_chunked_prefill=True,
        is_encoder_decoder=False,
    )
    cache = CacheConfig(block_size=PAGE, enable_prefix_caching=True, cache_dtype="auto")
    config = VllmConfig(scheduler_config=limits, model_config=model, cache_config=cache)
    spec = FullAttentionSpec(block_size=PAGE, num_kv_heads=1, head_size=1, dtype=torch.float32)
    pages = KVCacheConfig(num_blocks=PAGES, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    cache.num_gpu_blocks = PAGES
    return Scheduler(
        vllm_config=config,
        kv_cache_config=pages,
        log_stats=False,
        block_size=PAGE,
        structured_output_manager=StructuredOutputManager(config),
    )


def request(number: int, prompt: list[int], max_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0)
    return Request(
        request_id=f"r{number}",
        prompt_token_ids=prompt,
        pooling_params=None,
        block_hasher=HASHER,
        sampling_params=sampling,
    )


def prompts(count: int) -> list[list[int]]:
    """512 tokens each, the first 256 shared."""
    source = random.Random(0)
    prefix = [source.randrange(50_000) for _ in range(256)]
    return [prefix + [source.randrange(50_000) for _ in range(256)] for _ in range(count)]


def step(engine: Scheduler) -> int:
    """One step; nanoseconds of the scheduler's own work."""
    began = time.perf_counter_ns()
    planned = engine.schedule()
    middle = time.perf_counter_ns()
    names = list(planned.num_scheduled_tokens)
    output = ModelRunnerOutput(
        req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=[[7]] * len(names)
    )
    again = time.perf_counter_ns()
    engine.update_from_output(planned, output)
    return middle - began + time.perf_counter_ns() - again


def prefill_all(engine: Scheduler) -> int:
    spent = 0
    while engine.waiting or any(r.num_computed_tokens < r.num_prompt_tokens for r in engine.running):
        spent += step(engine)
    return spent


def decode(running: int, repetitions: int = 5) -> list[float]:
    engine = scheduler(max(running, 1))
    for number, prompt in enumerate(prompts(running)):
        engine.add_request(request(number, prompt, 4000))
    prefill_all(engine)
    steps = 100 if running <= 64 else 30 if running <= 256 else 12
    values = []
    for _ in range(repetitions + 1):
        gc.collect()
        gc.disable()
        values.append(sum(step(engine) for _ in range(steps)) / steps / 1e3)
        gc.enable()
    return values[1:]


def admission(repetitions: int = 3) -> list[float]:
    offered = prompts(1000)
    values = []
    for _ in range(repetitions + 1):
        engine = scheduler(1024)
        gc.collect()
        gc.disable()
        began = time.perf_counter_ns()
        for number, prompt in enumerate(offered):
            engine.add_request(request(number, prompt, 128))
        spent = time.perf_counter_ns() - began + prefill_all(engine)
        gc.enable()
        values.append(spent / len(offered) / 1e3)
    return values[1:]


if __name__ == "__main__":
    figures = {f"decode {running}": decode(running) for running in (1, 64, 256, 1024)}
    figures["admission"] = admission()
    print(json.dumps(figures))
