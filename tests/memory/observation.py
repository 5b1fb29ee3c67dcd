"""What can be seen of a memory from outside, as values to compare."""

from __future__ import annotations

from typing import Any

import numpy as np

from pawl.memory.memory import Memory
from pawl.memory.prefix.checks import own_holders
from pawl.memory.prefix.compiled import CompiledRadixCache
from pawl.memory.prefix.node import Node
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.window_pool import WindowPool
from tests.memory.reference import Prefix


def cache_content(cache: RadixCache) -> tuple[dict[Prefix, int], dict[Prefix, int]]:
    """The tree as (cached prefix -> page, prefix -> own holders of the node that ends there, if any)."""
    pages: dict[Prefix, int] = {}
    holders: dict[Prefix, int] = {}
    for namespace, root in cache._roots.items():
        waiting: list[tuple[tuple[int, ...], Node]] = [((), child) for child in root.children.values()]
        while waiting:
            tokens, node = waiting.pop()
            edge = np.frombuffer(node.key, np.int32)
            for index, page in enumerate(node.pages.tolist()):
                end = (index + 1) * cache.page_size
                pages[namespace, tokens + tuple(edge[:end].tolist())] = page
            tokens += tuple(edge.tolist())
            if own_holders(node):
                holders[namespace, tokens] = own_holders(node)
            waiting.extend((tokens, child) for child in node.children.values())
    return pages, holders


def observe(memory: Memory) -> dict[str, Any]:
    """Every fact that an undo must restore.

    Left out on purpose: generations, which only rise; how the tree is cut into nodes and which unheld prefix would
    leave first, which say nothing about content; table entries beyond a row's pages, which mean nothing.
    """
    cache = memory.cache.reference() if isinstance(memory.cache, CompiledRadixCache) else memory.cache
    content, holders = cache_content(cache) if isinstance(cache, RadixCache) else ({}, {})
    used = memory.slots.used.tolist()
    return {
        "counters": memory.pages.counters(),
        "refcount": memory.pages.refcount.tolist(),
        "in_cache": memory.pages.in_cache.tolist(),
        "reserved": memory.pages.reserved.tolist(),
        "free pages": memory.pages.free_pages.tolist(),
        "free slots": list(memory.slots._free),
        "deferred slots": memory.slots.deferred,
        "rows": {slot: memory.page_table.row(slot).tolist() for slot in used},
        "lengths": {slot: int(memory.page_table.length[slot]) for slot in used},
        "holds": {slot: hold.num_tokens for slot in used if (hold := memory.page_table.holds[slot]) is not None},
        "cache": content,
        "holders": holders,
        "held": memory.cache.held,
        "evictable": memory.cache.evictable,
        "promised": memory.escrow.promised.tolist(),
        "own digest": memory.digest(),
        "windows": observe_windows(memory.windows) if isinstance(memory.windows, WindowPool) else None,
    }


def observe_windows(windows: WindowPool) -> dict[str, Any]:
    """The second pool's part. Where a page is that nobody refers to means nothing."""
    return {
        "counters": windows.pool.counters(),
        "refcount": windows.pool.refcount.tolist(),
        "in_cache": windows.pool.in_cache.tolist(),
        "free pages": windows.pool.free_pages.tolist(),
        "partner": windows.partners.of.tolist(),
        "start": windows.start.tolist(),
        "promised": windows.escrow.promised.tolist(),
        "obtainable": windows.obtainable,
    }
