"""Defects planted in mini-sglang's scheduler and caches, and its own repaired. Imported where it is installed."""

from __future__ import annotations

from minisgl.core import Req
from minisgl.kvcache.radix_cache import RadixPrefixCache, RadixTreeNode
from minisgl.scheduler.cache import CacheManager
from minisgl.scheduler.decode import DecodeManager
from minisgl.scheduler.prefill import ChunkedReq, PrefillAdder, PrefillManager
from minisgl.scheduler.scheduler import Scheduler

from tests.mutants.mutant import Edit, Group, Mutant


def _planted(name: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, "", "", what, edits)


REPAIRS = (
    # A request has ended when its tokens were told, not when its last step was launched.
    Edit(
        Scheduler._process_last_data,
        "finished = not req.can_decode",
        "finished = len(req.input_ids) >= req.max_device_len",
    ),
    # Pages that the cache had meanwhile take the place of a request's own, which are freed.
    Edit(
        CacheManager.cache_req,
        "self._free(page_indices[old_handle.cached_len : cached_len])",
        "self._free(page_indices[old_handle.cached_len : cached_len].clone())",
    ),
    Edit(
        CacheManager.cache_req,
        "req.cache_handle = new_handle\n",
        "req.cache_handle = new_handle\n"
        "        shared = new_handle.get_matched_indices() if cached_len > old_handle.cached_len else page_indices\n"
        "        page_indices[old_handle.cached_len : cached_len] = shared[old_handle.cached_len : cached_len]\n",
    ),
    # What a step in flight draws for a request that was aborted is nobody's: its memory is given back already.
    Edit(
        Scheduler._process_one_msg,
        "self._free_req_resources(req_to_free)",
        "self._free_req_resources(req_to_free)\n            req_to_free.aborted = True",
    ),
    Edit(
        Scheduler._process_last_data,
        "if isinstance(req, ChunkedReq):",
        "if isinstance(req, ChunkedReq) or getattr(req, 'aborted', False):",
    ),
    # Whoever is admitted needs whole pages.
    Edit(
        PrefillAdder._try_allocate_one,
        "estimated_len = extend_len + req.output_len",
        "page_size = self.cache_manager.page_size\n"
        "    estimated_len = -(-(extend_len + req.output_len) // page_size) * page_size",
    ),
    Edit(
        PrefillAdder._add_one_req,
        "self.reserved_size += remain_len + pending_req.output_len",
        "self.reserved_size += remain_len + pending_req.output_len + self.cache_manager.page_size - 1",
    ),
)
"""What was found in it as it is, repaired: see docs/subjects.md."""

PLANTED = (
    _planted(
        "slot_leaks",
        "A request that ends keeps its row of the page table.",
        Edit(Scheduler._free_req_resources, "self.table_manager.free(req.table_idx)", "pass"),
    ),
    _planted(
        "tail_leaks",
        "What a request that ends has not in the cache is not freed.",
        Edit(CacheManager.cache_req, "self._free(page_indices[new_handle.cached_len :])", "pass"),
    ),
    _planted(
        "duplicates_leak",
        "Pages that the cache had meanwhile are not freed.",
        Edit(CacheManager.cache_req, "self._free(page_indices[old_handle.cached_len : cached_len].clone())", "pass"),
    ),
    _planted(
        "shared_pages_freed",
        "Pages that came from the cache are freed with a request's own.",
        Edit(
            CacheManager.cache_req,
            "self._free(page_indices[old_handle.cached_len : cached_len].clone())",
            "self._free(page_indices[:cached_len].clone())",
        ),
    ),
    _planted(
        "handle_stays_locked",
        "What a request found in the cache stays locked when it ends.",
        Edit(CacheManager.cache_req, "self.unlock(old_handle)", "finished or self.unlock(old_handle)"),
    ),
    _planted(
        "found_is_not_locked",
        "What a request finds in the cache may be evicted while it runs.",
        Edit(
            CacheManager.cache_req,
            "self.lock(new_handle)",
            "pass",
        ),
        Edit(CacheManager.unlock, "self.prefix_cache.lock_handle(handle, unlock=True)", "pass"),
    ),
    _planted(
        "eviction_takes_the_locked",
        "A leaf that somebody uses may be evicted.",
        Edit(RadixPrefixCache._collect_leave_nodes_for_evict, "if node.ref_count == 0:", "if True:"),
        Edit(
            RadixPrefixCache.evict,
            "assert node.ref_count == 0 and node.is_leaf() and not node.is_root()",
            "assert node.is_leaf() and not node.is_root()",
        ),
    ),
    _planted(
        "split_forgets_its_users",
        "A node that is split has no users above.",
        Edit(RadixTreeNode.split_at, "new_node.ref_count = self.ref_count", "new_node.ref_count = 0"),
    ),
    _planted(
        "evicted_is_still_found",
        "What is evicted stays in the tree.",
        Edit(RadixPrefixCache.evict, "del parent.children[self.key_fn(node._key)]", "pass"),
    ),
    _planted(
        "whole_prompt_is_a_hit",
        "All of a prompt may come from the cache, and nothing is left to compute.",
        Edit(CacheManager.match_req, "req.input_ids[: input_len - 1]", "req.input_ids[:input_len]"),
    ),
    _planted(
        "match_is_one_short_of_the_table",
        "The first page of what is found in the cache is not written to the page table.",
        Edit(
            PrefillAdder._try_allocate_one,
            "page_entry.copy_(handle.get_matched_indices())",
            "page_entry[1:].copy_(handle.get_matched_indices()[1:])",
        ),
    ),
    _planted(
        "admits_what_does_not_fit",
        "What running requests will need is not kept for them.",
        Edit(
            DecodeManager.inflight_tokens.fget,
            "sum(req.remain_len for req in self.running_reqs) + tokens_reserved",
            "0",
        ),
    ),
    _planted(
        "chunk_starts_again",
        "The next chunk of a prompt begins where the cache ended, not the last chunk.",
        Edit(
            PrefillAdder.try_add_one,
            "cached_len=chunked_req.cached_len",
            "cached_len=chunked_req.cache_handle.cached_len",
        ),
    ),
    _planted(
        "chunk_decodes",
        "A chunk in the middle of a prompt counts as a request that can decode.",
        Edit(ChunkedReq.can_decode.fget, "return False", "return True"),
    ),
    _planted(
        "abort_leaves_it_running",
        "A request that is aborted while it runs is freed, and computed on.",
        Edit(DecodeManager.abort_req, "self.running_reqs.remove(req)", "pass"),
    ),
    _planted(
        "abort_of_a_chunk_leaks",
        "A request that is aborted between two chunks keeps its pages.",
        Edit(PrefillManager.abort_req, "return req.chunked_req", "return None"),
    ),
    _planted(
        "freed_twice",
        "With steps that overlap, a request that has ended is freed with the next step again.",
        Edit(Scheduler._process_last_data, "if finished and req not in self.finished_reqs:", "if finished:"),
    ),
    _planted(
        "one_token_too_many",
        "A request is computed a token too long.",
        Edit(Req.can_decode.fget, "return self.remain_len > 0", "return self.remain_len >= 0"),
    ),
)
