"""What the prefix cache costs: matching, inserting, holding, evicting, at page size 64.

    python -m benchmarks.cache
    SGLANG_DIR=<folder with an unpacked sglang wheel>  python -m benchmarks.cache     SGLang's RadixCache beside

The peer runs in the same run on the same prompts (`benchmarks/cache_workload.py`), in its own process. To unpack one:

    pip download --no-deps sglang==0.5.23 && python -m zipfile -e sglang-*.whl <folder>
    pip install --target <folder> pillow dill
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.cache_workload import (
    EVICT_CALLS,
    EVICT_SIZES,
    EVICT_TOKENS,
    NUM_PROMPTS,
    PAGE,
    PROMPT,
    REPETITIONS,
    Int32s,
    evict_repetitions,
    pages_to_hold,
    prompts,
    prompts_to_fill,
)
from benchmarks.harness import Result, Spread, quiet, run_peer, seconds_of, table, write_json
from memory.pages import PagePool
from memory.prefix.node import Node
from memory.prefix.radix import RadixCache, RadixHold
from memory.transaction import Ledger

MATCH_INSERT = "match + insert, 512 tokens, half shared"
MATCH = "match, full hit of 512 tokens"
HOLD = "hold"
RELEASE = "release"
TARGETS_US = {MATCH_INSERT: 45.0, MATCH: 15.0, HOLD: 1.0, RELEASE: 1.0}
EVICT_TARGET_US = 25.0


def evict_name(pages: int) -> str:
    """Name of the eviction figure at a cache of so many pages."""
    return f"evict {EVICT_TOKENS} tokens from {pages:,} pages"


def offered_pages(count: int) -> Int32s:
    """Pages for `count` prompts, int32 [count, pages of a prompt]; distinct."""
    return np.arange(count * (PROMPT // PAGE), dtype=np.int32).reshape(count, -1)


def basic_costs() -> dict[str, Spread]:
    """Microseconds for each operation but eviction."""
    offered, pages = list(prompts(NUM_PROMPTS)), list(offered_pages(NUM_PROMPTS))
    values: dict[str, list[float]] = {name: [] for name in TARGETS_US}
    for repetition in range(REPETITIONS + 1):
        measured = _basic_costs_once(RadixCache(PAGE), offered, pages)
        if repetition:  # The first one warms up.
            for name, value in measured.items():
                values[name].append(value)
    return {name: Spread.of(each) for name, each in values.items()}


def _basic_costs_once(cache: RadixCache, offered: Sequence[Int32s], pages: Sequence[Int32s]) -> dict[str, float]:
    matched: list[RadixHold] = []

    def match_and_insert() -> None:
        # What admission and the end of a prefill do: look up, read the pages found, offer the rest, let go.
        for tokens, own in zip(offered, pages, strict=True):
            hold = cache.match_and_hold(tokens, "")
            _ = hold.pages
            cache.release(cache.insert(tokens, own, "", hold, 0).hold, 0)

    def match() -> None:
        for tokens in offered:
            hold = cache.match_and_hold(tokens, "")
            _ = hold.pages
            matched.append(hold)

    def hold_all() -> None:
        for node in nodes:
            cache.pin(node)

    def release_all() -> None:
        for node in nodes:
            cache.unpin(node, 0)

    costs = {MATCH_INSERT: seconds_of(match_and_insert), MATCH: seconds_of(match)}
    assert all(hold.num_tokens == PROMPT for hold in matched)
    nodes: list[Node] = [hold.node for hold in matched if hold.node is not None]
    for hold in matched:
        cache.release(hold, 0)
    costs |= {HOLD: seconds_of(hold_all), RELEASE: seconds_of(release_all)}
    cache.invariants()
    return {name: seconds * 1e6 / len(offered) for name, seconds in costs.items()}


def evict_cost(num_pages: int) -> Spread:
    """Microseconds to evict EVICT_TOKENS tokens from a full cache and give the pages back to the pool."""
    offered = list(prompts(prompts_to_fill(num_pages)))
    return Spread.of([_evict_cost_once(offered) for _ in range(evict_repetitions(num_pages))])


def _evict_cost_once(offered: Sequence[Int32s]) -> float:
    ledger = Ledger()
    pool = PagePool(pages_to_hold(len(offered)), PAGE, ledger)
    cache = RadixCache(PAGE)
    transaction = ledger.begin()
    with quiet():
        for tokens in offered:
            own = pool.take(transaction, PROMPT // PAGE)
            assert own is not None
            insertion = cache.insert(tokens, own, "", None, 0)
            pool.adopt(insertion.adopted)
            pool.release(own, 0)
            cache.release(insertion.hold, 0)
    ledger.prepare(transaction)
    ledger.commit(transaction)

    def evict() -> None:
        for _ in range(EVICT_CALLS):
            eviction = cache.evict(EVICT_TOKENS // PAGE)
            pool.evict(eviction.pages, eviction.fence)

    before = pool.cached
    seconds = seconds_of(evict)
    assert before - pool.cached >= EVICT_CALLS * EVICT_TOKENS // PAGE
    return seconds * 1e6 / EVICT_CALLS


def sglang() -> dict[str, Spread]:
    """The same figures of SGLang's RadixCache; empty when it is not there."""
    folder = os.environ.get("SGLANG_DIR")
    if not folder or not (Path(folder) / "sglang").is_dir():
        print("SGLang is not there (SGLANG_DIR names a folder that holds an unpacked sglang wheel): skipped")
        return {}
    here = Path(__file__).parent
    return run_peer(here / "peers_sglang.py", environment={"PYTHONPATH": str(here.parent)})


def main() -> None:
    """Measure, print, write."""
    ours = basic_costs()
    targets = dict(TARGETS_US)
    for pages in EVICT_SIZES:
        ours[evict_name(pages)] = evict_cost(pages)
        targets[evict_name(pages)] = EVICT_TARGET_US
    peer = sglang()
    results = [
        Result(name, spread, "us", "SGLang RadixCache" if peer else None, peer.get(name), targets[name])
        for name, spread in ours.items()
    ]
    print(table(f"Prefix cache, page size {PAGE}", results))
    print(f"written to {write_json(results, 'bench-cache.json')}")


if __name__ == "__main__":
    main()
