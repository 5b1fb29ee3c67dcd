"""Plain calls with which vLLM's v1 scheduler is run without a model. Scripts of counterexamples begin with them."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import count
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy
import torch
from vllm.config import CacheConfig, DeviceConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

logging.getLogger("vllm").setLevel(logging.ERROR)
ARRIVALS = count()
"""Times at which requests arrive: in the order in which they are made."""
NO_MODEL = (
    "uses_mrope",
    "is_encoder_decoder",
    "is_diffusion",
    "is_hybrid",
    "is_moe",
    "is_multimodal_model",
    "supports_multimodal_inputs",
    "return_sampling_mask",
    "enable_return_routed_experts",
)
"""What is asked of a model's configuration, in one release or another, and is not so here."""


def made(kind: Callable[..., Any], like: Callable[..., Any] | None = None, **facts: Any) -> Any:
    """`kind` made from those of the facts that it, or `like`, takes in this release; None for what it needs besides."""
    wanted = inspect.signature(like or kind).parameters
    needed = {
        name for name, each in wanted.items() if each.default is each.empty and each.kind == each.POSITIONAL_OR_KEYWORD
    }
    return kind(**{name: facts.get(name) for name in wanted if name in facts or name in needed})


def hash_of(value: object) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()


@lru_cache(maxsize=64)
def config_of(
    *,
    num_pages: int,
    page_size: int,
    max_running: int,
    max_step_tokens: int,
    max_context: int,
    prefix_caching: bool,
    chunked_prefill: bool,
    asynchronous: bool,
    stages: int,
    by_priority: bool,
) -> Any:
    limits = made(
        SchedulerConfig,
        max_num_seqs=min(max_running, max_step_tokens),
        max_num_batched_tokens=max_step_tokens,
        max_model_len=max_context,
        enable_chunked_prefill=chunked_prefill,
        is_encoder_decoder=False,
        async_scheduling=asynchronous,
        policy="priority" if by_priority else "fcfs",
    )
    # One more: block 0 is the null block.
    cache = made(
        CacheConfig, block_size=page_size, enable_prefix_caching=prefix_caching, num_gpu_blocks_override=num_pages + 1
    )
    cache.num_gpu_blocks = num_pages + 1
    config = VllmConfig(scheduler_config=limits, cache_config=cache, device_config=DeviceConfig(device="cpu"))
    # There is no model: what the scheduler asks of one.
    model = SimpleNamespace(max_model_len=max_context, runner_type="generate", skip_tokenizer_init=True)
    model.hf_config, model.multimodal_config = SimpleNamespace(), None
    for name in NO_MODEL:
        setattr(model, name, False)
    object.__setattr__(config, "model_config", model)
    config.parallel_config.pipeline_parallel_size = stages
    # Validation drops what chunked prefill needs to be off.
    config.scheduler_config.enable_chunked_prefill = chunked_prefill
    return config


def scheduler_of(**settings: Any) -> Any:
    config = config_of(**settings)
    kind = Scheduler
    if settings["asynchronous"]:
        # Old releases have none.
        kind = importlib.import_module("vllm.v1.core.sched.async_scheduler").AsyncScheduler
    page_size = settings["page_size"]
    layer = made(
        FullAttentionSpec, block_size=page_size, num_kv_heads=1, head_size=1, dtype=torch.float32, use_mla=False
    )
    memory = made(
        KVCacheConfig,
        num_blocks=settings["num_pages"] + 1,
        tensors={},
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)],
    )
    structured = StructuredOutputManager(config)
    return made(
        kind,
        Scheduler,
        vllm_config=config,
        kv_cache_config=memory,
        structured_output_manager=structured,
        block_size=page_size,
    )


def request_of(
    number: int,
    prompt: Sequence[int],
    max_new_tokens: int,
    page_size: int,
    stop_token_ids: Sequence[int] = (),
    priority: int = 0,
    salt: str | None = None,
) -> Any:
    wishes = SamplingParams(
        max_tokens=max_new_tokens, stop_token_ids=[*stop_token_ids], ignore_eos=True, temperature=0.0
    )
    hasher = getattr(kv_cache_utils, "get_request_block_hasher", None)
    made(kv_cache_utils.init_none_hash, hash_fn=hash_of)
    return made(
        Request,
        request_id=str(number),
        prompt_token_ids=[*prompt],
        sampling_params=wishes,
        block_hasher=hasher and hasher(page_size, hash_of),
        arrival_time=float(next(ARRIVALS)),
        # Smaller ones come first.
        priority=priority,
        cache_salt=salt,
    )


def drawn_in(step: Any, tokens: Mapping[int, int]) -> Any:
    """What the model runner returns: the token drawn for each request, none for those whose prompt goes on."""
    names = list(step.num_scheduled_tokens)
    drawn: list[Any] = [[tokens[int(name)]] if int(name) in tokens else [] for name in names]
    if "ndarray" in str(inspect.signature(ModelRunnerOutput).parameters["sampled_token_ids"].annotation):
        drawn = [numpy.array(row, dtype=numpy.int64) for row in drawn]
    return made(
        ModelRunnerOutput,
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=drawn,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def told_by(outputs: Any) -> list[tuple[int, list[int], str]]:
    """(request, its new tokens, how it ended or "") of what `update_from_output` returned."""
    each_client = outputs.values() if isinstance(outputs, dict) else [outputs]
    return [
        (int(each.request_id), [*each.new_token_ids], "" if each.finish_reason is None else str(each.finish_reason))
        for client in each_client
        for each in client.outputs
        if each.new_token_ids or each.finish_reason is not None
    ]


def tables_of(scheduler: Any) -> dict[int, list[int]]:
    """Request -> the blocks it has, of all that the block manager knows."""
    manager = scheduler.kv_cache_manager
    if hasattr(manager, "coordinator"):
        manager = manager.coordinator.single_type_managers[0]
    elif hasattr(manager, "single_type_manager"):
        manager = manager.single_type_manager
    return {int(name): [block.block_id for block in blocks] for name, blocks in manager.req_to_blocks.items() if blocks}


def show(scheduler: Any) -> None:
    """Print where every block is."""
    pool = scheduler.kv_cache_manager.block_pool
    print("running:", [each.request_id for each in scheduler.running], "tables:", tables_of(scheduler))
    print("free queue:", [block.block_id for block in pool.free_block_queue.get_all_free_blocks()])
    print("references:", {block.block_id: block.ref_cnt for block in pool.blocks if block.ref_cnt})


def show_step(step: Any) -> None:
    """Print what was decided."""
    cached = step.scheduled_cached_reqs
    new = {each.req_id: (each.num_computed_tokens, each.block_ids) for each in step.scheduled_new_reqs}
    further = dict(zip(cached.req_ids, zip(cached.num_computed_tokens, cached.new_block_ids, strict=True), strict=True))
    print("scheduled:", dict(step.num_scheduled_tokens), "first position and blocks:", new, "and new blocks:", further)


def abort(scheduler: Any, number: int) -> None:
    scheduler.finish_requests(str(number), RequestStatus.FINISHED_ABORTED)
