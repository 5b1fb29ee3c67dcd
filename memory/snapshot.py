"""All facts of memory as plain data, and back: what a checkpoint holds of it.

Taken when no step is in flight, so nothing waits behind a fence, nothing can be undone, and no page is deferred. What
follows from the facts (keys of the digest, counters, who refers to what in the tree) is worked out again; the digest,
which is part of the data, says whether that came out right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from pawl.memory.checks import recompute
from pawl.memory.digest import AGED, signed
from pawl.memory.escrow import Escrow
from pawl.memory.memory import Memory
from pawl.memory.page_pool import PagePool
from pawl.memory.page_table import PageEntries
from pawl.memory.prefix import snapshot as trees
from pawl.memory.prefix.base import Hold
from pawl.memory.prefix.chunk import ChunkCache, EmptyHold
from pawl.memory.prefix.hold import RadixHold
from pawl.memory.prefix.node import Node
from pawl.memory.prefix.order import RankedOrder
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation
from pawl.memory.window_pool import WindowPool

Plain: TypeAlias = dict[str, Any]
"""Values that msgpack can hold; arrays are bytes."""


class NoSnapshot(Exception):
    """Something here cannot be written out. Says what."""


def snapshot_of(memory: Memory) -> Plain:
    """All facts. Raises NoSnapshot for a cache of the user's own, and while anything is in flight."""
    ledger, table = memory.ledger, memory.page_table
    if ledger.num_in_flight or ledger._waiting:
        raise NoSnapshot("a step is in flight")
    rows = []
    for slot in memory.slots.used.tolist():
        hold = table.holds[slot]
        held = None if hold is None else (*place_of_hold(hold), table._namespaces[slot])
        rows.append((slot, table.row(slot).tobytes(), int(table.length[slot]), held))
    return {
        "epoch": ledger._next_epoch,
        "digest": memory.digest(),
        "pages": _pool(memory.pages),
        "slots": memory.slots._free,
        "promised": memory.escrow.promised.tobytes(),
        "cache": _cache(memory),
        "rows": rows,
        "replaced": [[column.tobytes() for column in entries] for entries in memory.replaced],
        "windows": _windows(memory.windows) if isinstance(memory.windows, WindowPool) else None,
    }


def restore(memory: Memory, plain: Plain) -> None:
    """Make an empty memory that of the snapshot. Raises MemoryViolation where that has another digest."""
    memory.ledger._next_epoch = plain["epoch"]
    memory.ledger.resolved = plain["epoch"] - 1
    _restore_pool(memory.pages, plain["pages"])
    memory.slots._free = list(plain["slots"])
    memory.slots.in_use[:] = True
    memory.slots.in_use[memory.slots._free] = False
    _restore_promises(memory.escrow, plain["promised"])
    _restore_cache(memory, plain["cache"])
    table, nodes = memory.page_table, _nodes(memory)
    for slot, pages, length, held in plain["rows"]:
        row = np.frombuffer(pages, np.int32)
        table.pages[slot, : len(row)], table.num_pages[slot], table.length[slot] = row, len(row), length
        if held is not None:
            num_tokens, last, namespace = held
            table.holds[slot] = _hold(memory, num_tokens, None if last is None else nodes[last])
            table._namespaces[slot] = namespace
            table._held[slot] = table._worth_of_hold(slot, num_tokens)
    memory.replaced = [PageEntries(*(np.frombuffer(column, np.int32) for column in e)) for e in plain["replaced"]]
    if isinstance(memory.windows, WindowPool):
        _restore_windows(memory.windows, plain["windows"], plain["rows"])
    memory.ledger.digest.value = recompute(memory)
    if memory.digest() != plain["digest"]:
        raise MemoryViolation("a checkpoint has the digest of what it holds", found=memory.digest())


# ---- pools and promises ----


def _pool(pool: PagePool) -> Plain:
    columns = {name: getattr(pool, name).tobytes() for name in ("refcount", "generation", "in_cache", "reserved")}
    return {"free": pool.free_pages.tobytes(), **columns}


def _restore_pool(pool: PagePool, plain: Plain) -> None:
    for name in ("refcount", "generation", "in_cache", "reserved"):
        column = getattr(pool, name)
        column[:] = np.frombuffer(plain[name], column.dtype)
    free = np.frombuffer(plain["free"], np.int32)
    pool._free_stack[: len(free)], pool.free = free, len(free)
    pool._keys += pool.generation * signed(AGED)
    pool.cached, pool.quarantined = int(pool.in_cache.sum()), int(pool.reserved.sum())
    pool.owned = int(np.count_nonzero(pool.refcount)) - pool.cached
    pool.deferred = pool.total - pool.free - pool.cached - pool.quarantined - pool.owned


def _restore_promises(escrow: Escrow, promised: bytes) -> None:
    escrow.promised[:] = np.frombuffer(promised, np.int32)
    escrow.total = int(escrow.promised.sum())


# ---- the cache ----


def _cache(memory: Memory) -> Plain:
    cache = memory.cache
    if isinstance(cache, ChunkCache):
        return {"counts": cache._counts, "holds": cache._num_holds}
    if isinstance(cache, RadixCache):
        kept: Any = trees.snapshot_of(cache)
        counts, holds = cache._counts, cache._num_holds
    elif hasattr(cache, "snapshot"):
        kept, statistics = cache.snapshot(), cache.statistics()
        counts = {name: statistics[name] for name in RadixCache(1)._counts}
        holds = statistics["holds"]
    else:
        raise NoSnapshot(f"the cache {type(cache).__name__} is the user's own")
    eviction = cache.eviction if hasattr(cache, "eviction") else ""
    ranked = isinstance(cache._order, RankedOrder) if isinstance(cache, RadixCache) else eviction != "lru"
    roots, waiting, clock = trees.canonical(kept, ranked=ranked)
    plain = [(space, held, [_plain(node) for node in nodes]) for space, held, nodes in roots]
    return {"counts": counts, "holds": holds, "trees": plain, "waiting": waiting, "clock": clock}


def _plain(node: Any) -> Any:
    parent, key, pages, *rest = node
    return [parent, key, np.asarray(pages, np.int32).tobytes(), *rest]


def _restore_cache(memory: Memory, plain: Plain) -> None:
    cache = memory.cache
    assert isinstance(cache, ChunkCache | RadixCache)
    cache._counts.update(plain["counts"])
    cache._num_holds = plain["holds"]
    if isinstance(cache, RadixCache):
        trees.restore(cache, (plain["trees"], plain["waiting"], plain["clock"]))


def _nodes(memory: Memory) -> dict[int, Node]:
    """The nodes of the tree by their last page, which stands in one place only."""
    found: dict[int, Node] = {}
    if isinstance(memory.cache, RadixCache):
        stack: list[Node] = list(memory.cache._roots.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            if len(node.pages):
                found[int(node.pages[-1])] = node
    return found


def place_of_hold(hold: Hold) -> tuple[int, int | None]:
    """Its tokens, and its last page, which stands in one place of the tree."""
    return hold.num_tokens, int(hold.pages[-1]) if len(hold.pages) else None


def holds_at(memory: Memory, places: Sequence[tuple[int, int | None]]) -> list[Hold]:
    """Holds that were counted already, by their places in a restored cache."""
    nodes = _nodes(memory)
    return [_hold(memory, num_tokens, None if last is None else nodes[last]) for num_tokens, last in places]


def _hold(memory: Memory, num_tokens: int, node: Node | None) -> Hold:
    """A hold that was counted already."""
    if isinstance(memory.cache, RadixCache):
        return RadixHold(memory.cache, node, num_tokens)
    assert isinstance(memory.cache, ChunkCache)
    return EmptyHold(memory.cache)


# ---- windows ----


def _windows(windows: WindowPool) -> Plain:
    order = windows._order
    return {
        "pool": _pool(windows.pool),
        "promised": windows.escrow.promised.tobytes(),
        "of": windows.partners.of.tobytes(),
        "full_page": windows.partners.full_page.tobytes(),
        "start": windows.start.tobytes(),
        "fence": windows._fence.tobytes(),
        "stamp": order._stamp.tobytes(),
        "groups": [(number, pages.tobytes()) for number, pages in order._groups],
        "latest": order._latest,
    }


def _restore_windows(windows: WindowPool, plain: Plain, rows: Any) -> None:
    _restore_pool(windows.pool, plain["pool"])
    _restore_promises(windows.escrow, plain["promised"])
    windows.partners.of[:] = np.frombuffer(plain["of"], np.int32)
    windows.partners.full_page[:] = np.frombuffer(plain["full_page"], np.int32)
    windows.start[:] = np.frombuffer(plain["start"], np.int32)
    windows._fence[:] = np.frombuffer(plain["fence"], np.int64)
    windows._present[[slot for slot, *_ in rows]] = True
    order = windows._order
    order._stamp[:] = np.frombuffer(plain["stamp"], np.int64)
    order._groups.extend((number, np.frombuffer(pages, np.int32)) for number, pages in plain["groups"])
    order._latest = plain["latest"]
    order._stored = sum(len(pages) for _, pages in order._groups)
    order.count = int(np.count_nonzero(order._stamp))
