"""Plain calls with which nano-vllm's scheduler is run without a model. Scripts of counterexamples begin with them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any


def import_without_kernels(package: str) -> None:
    """Make a package known without running its `__init__`, which imports the kernels of a GPU."""
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec is None:
        raise ImportError(f"there is no package {package} on sys.path")
    if package not in sys.modules:
        sys.modules[package] = importlib.util.module_from_spec(spec)


import_without_kernels("nanovllm")

from nanovllm.engine.scheduler import Scheduler  # noqa: E402
from nanovllm.engine.sequence import Sequence as Asked  # noqa: E402
from nanovllm.sampling_params import SamplingParams  # noqa: E402


def scheduler_of(*, num_pages: int, page_size: int, max_running: int, max_step_tokens: int) -> Any:
    # As LLMEngine does. Its Config wants a model's folder, and pages of 256 tokens for the kernels' sake.
    Asked.block_size = page_size
    return Scheduler(
        SimpleNamespace(
            max_num_seqs=max_running,
            max_num_batched_tokens=max_step_tokens,
            eos=-1,
            kvcache_block_size=page_size,
            num_kvcache_blocks=num_pages,
        )
    )


def request_of(prompt: Sequence[int], max_new_tokens: int) -> Any:
    return Asked([*prompt], SamplingParams(max_tokens=max_new_tokens, ignore_eos=True))


def told_by(
    scheduler: Any, step: tuple[list[Any], bool], tokens: Mapping[Any, int]
) -> list[tuple[Any, list[int], bool]]:
    """(request, its new tokens, whether it has ended) of all in a step that comes back; `tokens` are what was drawn."""
    asked, is_prefill = step
    before = [len(each) for each in asked]
    # The model draws for prompts that go on too; that is dropped.
    scheduler.postprocess(asked, [tokens.get(each, 0) for each in asked], is_prefill)
    return [(each, each.token_ids[known:], each.is_finished) for each, known in zip(asked, before, strict=True)]


def show(scheduler: Any) -> None:
    """Print where every block is."""
    manager = scheduler.block_manager
    print("waiting:", [each.block_table for each in scheduler.waiting])
    print("running:", [each.block_table for each in scheduler.running])
    print("free:", [*manager.free_block_ids], "references:", {each.block_id: each.ref_count for each in manager.blocks})


def show_step(step: tuple[list[Any], bool]) -> None:
    """Print what was decided."""
    for each in step[0]:
        print("prefill" if step[1] else "decode", each.num_cached_tokens, each.num_scheduled_tokens, each.block_table)
