"""Plain calls with which mini-sglang's scheduler is run without a GPU and without a model. A counterexample's script
begins with this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import minisgl.core
import minisgl.kvcache.radix_cache
import minisgl.scheduler.cache
import minisgl.scheduler.scheduler
import torch
from minisgl.core import Context, Req, SamplingParams
from minisgl.distributed import set_tp_info
from minisgl.message import AbortBackendMsg, UserMsg
from minisgl.scheduler.cache import CacheManager
from minisgl.scheduler.decode import DecodeManager
from minisgl.scheduler.prefill import PrefillManager
from minisgl.scheduler.scheduler import ForwardInput, Scheduler
from minisgl.scheduler.table import TableManager

EOS = -1
"""A token that ends a request."""

set_tp_info(rank=0, size=1)


class Unpinned:
    """torch on a machine without a GPU: no memory is pinned."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.empty(*size, **options)

    @staticmethod
    def tensor(data: Any, *, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.tensor(data, **options)


if not torch.cuda.is_available():
    minisgl.scheduler.cache.torch = minisgl.scheduler.scheduler.torch = Unpinned()
    # mypy would keep a method of torch as it is.
    setattr(torch.Tensor, "pin_memory", lambda self: self)  # noqa: B010
# Running requests are a set, in the order of their addresses: so each run would be another one.
Req.__hash__ = lambda self: self.uid
# So it would be with what was used last, were two nodes of a tree used in one tick of the clock.
minisgl.kvcache.radix_cache.time = SimpleNamespace(monotonic_ns=count(1).__next__)


class NoEngine:
    """In place of the engine: a step is computed as soon as it is launched, and its tokens are told later."""

    def __init__(self, num_pages: int, page_size: int, max_running: int, max_context: int) -> None:
        self.num_pages = num_pages
        self.max_seq_len = min(max_context, num_pages * page_size)
        # A row more than requests, as the engine has one for padding.
        self.page_table = torch.zeros((max_running + 1, -(-self.max_seq_len // 32) * 32), dtype=torch.int32)
        self.graph_runner = SimpleNamespace(pad_batch=lambda batch: setattr(batch, "padded_reqs", batch.reqs))
        self.attn_backend = SimpleNamespace(prepare_metadata=lambda batch: None)
        self.sampler = SimpleNamespace(prepare=lambda batch: None)

    def forward_batch(self, batch: Any, sample_args: Any) -> Any:
        for request in batch.reqs:
            request.complete_one()
        return computed([0] * len(batch.reqs))


def computed(tokens: Sequence[int]) -> Any:
    """What the engine returns: a token for each request of a batch."""
    drawn = torch.tensor(tokens, dtype=torch.int32)
    done = SimpleNamespace(synchronize=lambda: None)
    return minisgl.engine.ForwardOutput(next_tokens_gpu=drawn, next_tokens_cpu=drawn, copy_done_event=done)


def scheduler_of(
    *, num_pages: int, page_size: int, max_running: int, max_step_tokens: int, max_context: int, prefix_caching: bool
) -> Any:
    """A Scheduler with what its `__init__` gives it, but for engine, streams, tokenizer and sockets."""
    minisgl.core._GLOBAL_CTX = None
    minisgl.core.set_global_ctx(Context(page_size))
    scheduler = Scheduler.__new__(Scheduler)
    engine = NoEngine(num_pages, page_size, max_running, max_context)
    scheduler.engine = engine
    scheduler.device = engine.page_table.device
    scheduler.table_manager = TableManager(max_running, engine.page_table)
    kind = "radix" if prefix_caching else "naive"
    scheduler.cache_manager = CacheManager(num_pages, page_size, engine.page_table, kind)
    scheduler.decode_manager = DecodeManager(page_size)
    scheduler.prefill_manager = PrefillManager(
        scheduler.cache_manager, scheduler.table_manager, scheduler.decode_manager
    )
    scheduler.finished_reqs = set()
    scheduler.eos_token_id = EOS
    scheduler.token_pool = scheduler.table_manager.token_pool
    scheduler.prefill_budget = max_step_tokens
    scheduler.replies = []
    scheduler.send_result = scheduler.replies.extend
    return scheduler


def send(scheduler: Any, number: int, prompt: Sequence[int], max_new_tokens: int, ignore_eos: bool = True) -> None:
    wishes = SamplingParams(max_tokens=max_new_tokens, ignore_eos=ignore_eos)
    scheduler._process_one_msg(UserMsg(number, torch.tensor([*prompt], dtype=torch.int32), wishes))


def abort(scheduler: Any, number: int) -> None:
    scheduler._process_one_msg(AbortBackendMsg(number))


def next_step(scheduler: Any) -> tuple[Any, list[tuple[int, int, int, list[int], list[int]]]] | None:
    """Schedule and launch, as each turn of its loops does. Gives what `come_back` takes; and of each request number,
    first position, count, pages, tokens."""
    forward = scheduler._schedule_next_batch()
    if forward is None:
        return None
    size = scheduler.cache_manager.page_size
    table, begin, rows = scheduler.engine.page_table, 0, []
    fed = scheduler.token_pool[forward.input_tuple].tolist()
    for each in forward.batch.reqs:
        places = table[each.table_idx, : each.device_len].tolist()
        end = begin + each.extend_len
        rows.append((each.uid, each.cached_len, each.extend_len, pages_at(places, size), fed[begin:end]))
        begin = end
    scheduler._forward(forward)
    return forward, rows


def pages_at(places: Sequence[int], page_size: int) -> list[int]:
    """The pages of places in memory, one for each position."""
    for position, place in enumerate(places):
        assert place % page_size == position % page_size, (
            f"position {position} is at {place}: not in its place of a page"
        )
    return [place // page_size for place in places[::page_size]]


def come_back(scheduler: Any, forward: ForwardInput, tokens: Mapping[int, int]) -> list[tuple[int, int, bool]]:
    """A step is done: what each request is told, as (number, token, whether it has ended)."""
    output = computed([tokens.get(each.uid, 0) for each in forward.batch.reqs])
    scheduler.token_pool[forward.write_tuple] = output.next_tokens_gpu
    scheduler.replies.clear()
    scheduler._process_last_data((forward, output))
    return [(each.uid, each.next_token, each.finished) for each in scheduler.replies]


def nodes_of(scheduler: Any) -> list[tuple[list[int], int]]:
    """(pages, references) of every node of the prefix cache."""
    cache, size, found = scheduler.cache_manager.prefix_cache, scheduler.cache_manager.page_size, []
    nodes = [*cache.root_node.children.values()] if hasattr(cache, "root_node") else []
    while nodes:
        node = nodes.pop()
        found.append(((node.value[::size] // size).tolist(), node.ref_count))
        nodes += node.children.values()
    return found


def free_pages(scheduler: Any) -> list[int]:
    pages: list[int] = (scheduler.cache_manager.free_slots // scheduler.cache_manager.page_size).tolist()
    return pages


def show(scheduler: Any) -> None:
    """Print where every page is."""
    print("pending:", [each.uid for each in scheduler.prefill_manager.pending_list], end=" ")
    print("running:", sorted(each.uid for each in scheduler.decode_manager.running_reqs))
    print("free:", free_pages(scheduler), "cached, with references:", nodes_of(scheduler))
    scheduler.cache_manager.check_integrity()
