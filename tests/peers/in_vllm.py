"""Defects planted in vLLM 0.32's v1 scheduler and its block manager. Imported where vLLM is installed."""

from __future__ import annotations

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager
from vllm.v1.request import Request

from tests.mutants.mutant import Edit, Group, Mutant


def _planted(name: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, "", "", what, edits)


PLANTED = (
    _planted(
        "last_block_leaks",
        "A request that ends keeps its last block.",
        Edit(
            SingleTypeKVCacheManager.free,
            "self.pop_blocks_for_free(request_id)",
            "self.pop_blocks_for_free(request_id)[:-1]",
        ),
    ),
    _planted(
        "freed_while_shared",
        "A block goes to the free queue although another request still has it.",
        Edit(BlockPool.free_blocks, "if block.ref_cnt == 0 and not", "if block.ref_cnt <= 1 and not"),
    ),
    _planted(
        "hit_not_counted",
        "A block that is found in the cache is not counted as used once more.",
        Edit(BlockPool.touch, "block.ref_cnt += 1", "block.ref_cnt += block.ref_cnt == 0"),
    ),
    _planted(
        "hit_stays_in_the_free_queue",
        "A block that nobody used, and is found in the cache, may be given away all the same.",
        Edit(BlockPool.touch, "self.free_block_queue.remove(block)", "pass"),
    ),
    _planted(
        "stale_hash",
        "A block that is given to somebody else is still found under what it held before.",
        Edit(BlockPool.get_new_blocks, "self._maybe_evict_cached_block(block)", "block.reset_hash()"),
    ),
    _planted(
        "unfilled_block_is_cached",
        "A block counts as full, and is offered to others, before its last tokens are computed.",
        Edit(
            SingleTypeKVCacheManager.cache_blocks,
            "num_full_blocks = num_tokens // self.block_size",
            "num_full_blocks = min(-(-num_tokens // self.block_size), len(request.block_hashes))",
        ),
    ),
    _planted(
        "one_block_too_few",
        "A request that grows gets a block too late.",
        Edit(
            SingleTypeKVCacheManager.allocate_new_blocks,
            "num_required_blocks = cdiv(num_tokens, self.block_size)",
            "num_required_blocks = cdiv(num_tokens - (len(self.req_to_blocks[request_id]) > 1), self.block_size)",
        ),
    ),
    _planted(
        "preempted_keeps_its_progress",
        "A preempted request goes on where it was, although its blocks are gone.",
        Edit(
            Scheduler._preempt_request,
            "request.num_computed_tokens = 0",
            "request.num_computed_tokens = request.num_computed_tokens",
        ),
    ),
    _planted(
        "preempted_keeps_its_blocks",
        "A preempted request gives no memory back.",
        Edit(Scheduler._preempt_request, "self._free_request_blocks(request)", "pass"),
    ),
    _planted(
        "preempted_to_the_end",
        "A preempted request waits behind all that came after it.",
        Edit(FCFSRequestQueue.prepend_request, "self.appendleft(request)", "self.append(request)"),
    ),
    _planted(
        "chunk_counted_short",
        "The positions that a step computes count one too few.",
        Edit(
            Scheduler._update_after_schedule,
            "request.num_computed_tokens += num_scheduled_token",
            "request.num_computed_tokens += num_scheduled_token - (num_scheduled_token > 2)",
        ),
    ),
    _planted(
        "one_token_too_many",
        "A request ends a token late.",
        Edit(
            check_stop,
            "request.num_output_tokens >= request.max_tokens",
            "request.num_output_tokens > request.max_tokens",
        ),
    ),
    _planted(
        "stop_token_ignored",
        "A stop token ends nothing.",
        Edit(check_stop, "if last_token_id in (sampling_params.stop_token_ids or ()):", "if False:"),
    ),
    _planted(
        "placeholders_survive_preemption",
        "Tokens that were to come when a request was preempted are still counted when it runs again.",
        Edit(Scheduler._preempt_request, "request.num_output_placeholders = 0", "pass"),
    ),
    _planted(
        "abort_forgets_the_memory",
        "A request that is aborted while it waits or runs is forgotten, and its blocks with it.",
        Edit(
            KVCacheManager.free,
            "self.coordinator.free(request.request_id)",
            "request.is_finished() or self.coordinator.free(request.request_id)",
        ),
    ),
    _planted(
        "aborted_runs_on",
        "A request that is aborted while it runs stays among those that run.",
        Edit(Scheduler.finish_requests, "running_requests_to_remove.add(request)", "pass"),
    ),
    _planted(
        "priorities_backwards",
        "Requests of lower priority come first.",
        Edit(Request.__lt__, "return self.priority < other.priority", "return self.priority > other.priority"),
    ),
    _planted(
        "flush_keeps_hashes",
        "After a flush blocks still say what they hold.",
        Edit(BlockPool.reset_prefix_cache, "block.reset_hash()", "pass"),
    ),
)
