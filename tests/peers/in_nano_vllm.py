"""Defects planted in nano-vllm's scheduler and block manager. Imported where nano-vllm is on the path."""

from __future__ import annotations

from pawl.testing.subject.adapters import nano_vllm_calls  # noqa: F401 - makes nanovllm importable without a GPU

from nanovllm.engine.block_manager import BlockManager  # isort: skip
from nanovllm.engine.scheduler import Scheduler

from tests.mutants.mutant import Edit, Group, Mutant


def _planted(name: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, "", "", what, edits)


PLANTED = (
    _planted(
        "last_block_leaks",
        "A request that ends keeps its last block.",
        Edit(
            BlockManager.deallocate,
            "for block_id in reversed(seq.block_table):",
            "for block_id in seq.block_table[:-1]:",
        ),
    ),
    _planted(
        "freed_while_shared",
        "A block is free although another request still has it.",
        Edit(BlockManager.deallocate, "block.ref_count -= 1", "block.ref_count = 0"),
    ),
    _planted(
        "hit_not_counted",
        "A block that is found in the cache while another request has it is not counted.",
        Edit(BlockManager.allocate, "block.ref_count += 1", "pass"),
    ),
    _planted(
        "hit_stays_free",
        "A block that nobody used, and is found in the cache, is given away all the same.",
        Edit(BlockManager.allocate, "self.free_block_ids.remove(block_id)", "pass"),
    ),
    _planted(
        "hash_of_one_block",
        "A block's hash does not depend on what stands before it.",
        Edit(BlockManager.can_allocate, "h = self.compute_hash(token_ids, h)", "h = self.compute_hash(token_ids)"),
        Edit(BlockManager.allocate, "h = self.compute_hash(token_ids, h)", "h = self.compute_hash(token_ids)"),
        Edit(BlockManager.hash_blocks, "h = self.compute_hash(token_ids, h)", "h = self.compute_hash(token_ids)"),
    ),
    _planted(
        "hits_cost_nothing",
        "Blocks that are cached and free count as if they took no free block.",
        Edit(BlockManager.can_allocate, "if block_id in self.used_block_ids:", "if True:"),
    ),
    _planted(
        "whole_prompt_is_a_hit",
        "The last block of a prompt may come from the cache too, and nothing is left to compute.",
        Edit(
            BlockManager.can_allocate,
            "for i in range(seq.num_blocks - 1):",
            "for i in range(seq.num_tokens // self.block_size):",
        ),
    ),
    _planted(
        "block_comes_late",
        "A request that grows gets its next block one token late.",
        Edit(BlockManager.may_append, "if len(seq) % self.block_size == 1:", "if len(seq) % self.block_size == 0:"),
    ),
    _planted(
        "appends_without_room",
        "Nobody looks whether there is a block to go on with.",
        Edit(BlockManager.can_append, "len(self.free_block_ids) >= (len(seq) % self.block_size == 1)", "True"),
    ),
    _planted(
        "preempted_keeps_its_blocks",
        "A preempted request gives no memory back.",
        Edit(Scheduler.preempt, "self.block_manager.deallocate(seq)", "seq.block_table = []"),
    ),
    _planted(
        "preempted_to_the_end",
        "A preempted request waits behind all that came after it.",
        Edit(Scheduler.preempt, "self.waiting.appendleft(seq)", "self.waiting.append(seq)"),
    ),
    _planted(
        "oldest_is_preempted",
        "The request that has run longest gives way.",
        Edit(Scheduler.schedule, "self.preempt(self.running.pop())", "self.preempt(self.running.popleft())"),
    ),
    _planted(
        "chunk_ends_the_prompt",
        "A prompt of which a chunk is computed counts as computed.",
        Edit(Scheduler.schedule, "if seq.num_cached_tokens + seq.num_scheduled_tokens == seq.num_tokens:", "if True:"),
    ),
    _planted(
        "chunk_draws_a_token",
        "A token is taken after a chunk in the middle of a prompt.",
        Edit(Scheduler.postprocess, "if is_prefill and seq.num_cached_tokens < seq.num_tokens:", "if False:"),
    ),
    _planted(
        "one_token_too_many",
        "A request ends a token late.",
        Edit(
            Scheduler.postprocess,
            "seq.num_completion_tokens == seq.max_tokens",
            "seq.num_completion_tokens > seq.max_tokens",
        ),
    ),
    _planted(
        "ended_stays_running",
        "A request that has ended is scheduled again.",
        Edit(Scheduler.postprocess, "self.running.remove(seq)", "pass"),
    ),
    _planted(
        "cached_tokens_survive_preemption",
        "A preempted request still counts as computed.",
        Edit(BlockManager.deallocate, "seq.num_cached_tokens = 0", "pass"),
        Edit(
            BlockManager.allocate,
            "seq.num_cached_tokens = num_cached_blocks",
            "seq.num_cached_tokens = seq.num_cached_tokens or num_cached_blocks",
        ),
    ),
)
