"""Pages on a CUDA device: how many there is room for is measured once the weights are there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from pawl.config import ConfigError, ServerConfig
from pawl.gpu.cuda.memory import SHARE, MemoryUse, WeightsDoNotFit
from pawl.gpu.devices import available_memory
from pawl.gpu.kv import MemoryPlan, plan_memory
from pawl.gpu.runner import Runner
from pawl.loops.select import LoopConfig

if TYPE_CHECKING:
    from pawl.gpu.cuda.sizing import DeviceMemory

log = structlog.get_logger("pawl.build.sizing")


def check_weights(num_bytes: int, device: str) -> None:
    """Raises WeightsDoNotFit, before any of them is moved, when `num_bytes` of weights are more than is free."""
    free = available_memory(device)
    if num_bytes > free:
        raise WeightsDoNotFit(num_bytes, free)


def settle_pages(
    config: ServerConfig,
    runner: Runner,
    loop_config: LoopConfig,
    asked: MemoryPlan | None,
    memory: DeviceMemory | None = None,
) -> MemoryPlan:
    """Give a runner, made with a single page, as many as the device has room for, or those that were asked for, and
    record its graphs.

    Raises ModelDoesNotFit, KvDoesNotFit, or ConfigError when more pages were asked for than there is room.
    """
    from pawl.gpu.cuda.sizing import CudaMemory, measure

    began = time.monotonic()
    assert runner.device is not None, "it is none of the compiled CPU kernels"
    use = measure(runner, memory or CudaMemory(runner.device), loop_config.prefill_chunk)
    plan = _checked(asked, use, config) if asked is not None else _fitting(config, runner, loop_config, use)
    runner.resize(plan.num_pages, plan.num_window_pages)
    shapes = runner.prepare_graphs()
    for shape in shapes:
        runner.record_graph(shape)
    log.info(
        "device memory is shared out",
        weights_and_others_mib=use.taken >> 20,
        largest_step_mib=use.step >> 20,
        graphs=len(shapes),
        graphs_mib=use.graphs >> 20,
        pages_mib=plan.num_bytes >> 20,
        seconds=round(time.monotonic() - began, 1),
    )
    return plan


def _fitting(config: ServerConfig, runner: Runner, loop_config: LoopConfig, use: MemoryUse) -> MemoryPlan:
    chunk = None if runner.window_table is None else loop_config.prefill_chunk
    return plan_memory(
        runner.config, runner.kv.dtype, config.page_size, use.page_budget(config.memory_share or SHARE), chunk=chunk
    )


def _checked(asked: MemoryPlan, use: MemoryUse, config: ServerConfig) -> MemoryPlan:
    """`asked`, where the whole device has room for it. Raises ConfigError."""
    room = use.page_budget(1.0)
    if asked.num_bytes <= room:
        return asked
    name = "kv_memory_gb" if config.kv_tokens is None else "kv_tokens"
    gib = float(1 << 30)
    raise ConfigError(
        f"{name}: pages of {asked.num_bytes / gib:.2f} GiB were asked for; beside the model, the largest step and "
        f"graphs there is room for {room / gib:.2f}",
        name,
    )
