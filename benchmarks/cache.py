"""What the prefix cache costs, from a thousand pages to a million: the Python core, the compiled one, and SGLang's.

    python -m benchmarks.cache
    SGLANG_DIR=<folder with an unpacked sglang wheel>  python -m benchmarks.cache     SGLang's RadixCache beside

All do the same work (`benchmarks/cache_workload.py`) in the same run. Ours take turns in one process; the peer follows
in a process of its own at each size up to a hundred thousand pages: beyond, its evictions would take minutes.
To unpack one:

    pip download --no-deps sglang==0.5.23 && python -m zipfile -e sglang-*.whl <folder>
    pip install --target <folder> pillow dill

Times are processor time, microseconds an operation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.cache_workload import (
    EVICT,
    EVICT_ALL,
    EVICT_TOKENS,
    EVICTIONS,
    MATCH,
    MATCH_INSERT,
    ONE_PAGE,
    OPERATIONS,
    PAGE,
    PROMPT,
    RELEASE,
    SIZES,
    Int32s,
    Prompts,
    cpu_seconds,
    each,
    measure,
)
from benchmarks.harness import Result, Spread, aligned, number, run_peer, write_json
from pawl.memory.page_pool import PagePool
from pawl.memory.prefix.compiled import CompiledRadixCache, CompiledUnavailable, load
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.transaction import Ledger

PEER = "SGLang"
PEER_SIZES = SIZES[:3]
GOALS_US = {
    "Python": {MATCH_INSERT: 45.0, MATCH: 15.0, EVICT_ALL: 25.0},
    "compiled": {MATCH_INSERT: 20.0, MATCH: 4.0, RELEASE: 0.5, ONE_PAGE: 0.5, EVICT: 8.0},
}
FLAT = f"{SIZES[-1]:,} / {SIZES[0]:,}"

Spreads: TypeAlias = dict[str, dict[str, dict[int, Spread]]]
"""Cache -> operation -> cached pages -> microseconds."""


class Ours:
    """One of our caches with a page pool: drives the workload."""

    def __init__(self, cache: RadixCache | CompiledRadixCache, prompts: Prompts, pages: int) -> None:
        self._cache = cache
        self._ledger = Ledger()
        self._pool = PagePool(pages, PAGE, self._ledger)
        for tokens in prompts.fill():
            own = self._take(1)[0]
            insertion = cache.insert(tokens, own, "", None, 0)
            cache.release(insertion.hold, 0)
            self._settle(own, insertion.adopted)

    def find(self, prompts: Sequence[Int32s]) -> dict[str, float]:
        cache, holds = self._cache, []

        def match(tokens: Int32s) -> None:
            hold = cache.match_and_hold(tokens, "")
            _ = hold.pages  # Admission writes them to the page table.
            holds.append(hold)

        def release(hold: Any) -> None:
            cache.release(hold, 0)

        def one_page(tokens: Int32s) -> None:
            cache.release(cache.match_and_hold(tokens, ""), 0)

        seconds = {MATCH: cpu_seconds(each(match, prompts))}
        assert all(hold.num_tokens == PROMPT for hold in holds)
        seconds[RELEASE] = cpu_seconds(each(release, holds))
        seconds[ONE_PAGE] = cpu_seconds(each(one_page, [tokens[:PAGE] for tokens in prompts]))
        return {name: value / len(prompts) for name, value in seconds.items()}

    def turn(self, prompts: Sequence[Int32s]) -> dict[str, float]:
        cache, pool, insertions, evictions = self._cache, self._pool, [], []
        offered = self._take(len(prompts))

        def match_and_insert(offer: tuple[Int32s, Int32s]) -> None:
            # What admission and the end of a prefill do: look up, read the pages found, offer the rest, let go.
            tokens, own = offer
            hold = cache.match_and_hold(tokens, "")
            _ = hold.pages
            insertion = cache.insert(tokens, own, "", hold, 0)
            cache.release(insertion.hold, 0)
            insertions.append(insertion)

        def evict(count: int) -> None:
            evictions.append(cache.evict(count))

        def evict_all(count: int) -> None:
            eviction = cache.evict(count)
            pool.evict(eviction.pages, eviction.fence)

        offers = list(zip(prompts, offered, strict=True))
        seconds = {MATCH_INSERT: cpu_seconds(each(match_and_insert, offers)) / len(prompts)}
        for own, insertion in zip(offered, insertions, strict=True):
            self._settle(own, insertion.adopted)
        before = cache.evictable
        counts = [EVICT_TOKENS // PAGE] * (EVICTIONS // 2)
        seconds[EVICT] = cpu_seconds(each(evict, counts)) / len(counts)
        for eviction in evictions:
            pool.evict(eviction.pages, eviction.fence)
        seconds[EVICT_ALL] = cpu_seconds(each(evict_all, counts)) / len(counts)
        assert before - cache.evictable >= EVICTIONS * EVICT_TOKENS // PAGE
        return seconds

    def _take(self, count: int) -> Sequence[Int32s]:
        """Pages for so many prompts, int32 [PROMPT / PAGE] each."""
        transaction = self._ledger.begin()
        taken = [self._pool.take(transaction, PROMPT // PAGE) for _ in range(count)]
        self._ledger.prepare(transaction)
        self._ledger.commit(transaction)
        pages = [own for own in taken if own is not None]
        assert len(pages) == count
        return pages

    def _settle(self, own: Int32s, adopted: Int32s) -> None:
        """The cache has adopted some of these pages; their request lets go of all."""
        self._pool.adopt(adopted)
        self._pool.release(own, 0)


def _python(prompts: Prompts, pages: int) -> Ours:
    return Ours(RadixCache(PAGE), prompts, pages)


def _compiled(prompts: Prompts, pages: int) -> Ours:
    return Ours(CompiledRadixCache(PAGE), prompts, pages)


def measure_all() -> Spreads:
    """Each cache that is there, at each size."""
    makers = {"Python": _python}
    try:
        load()
        makers["compiled"] = _compiled
    except CompiledUnavailable as missing:
        print(f"the compiled core is left out: {missing}")
    has_peer = sglang_is_there()
    spreads: Spreads = {}
    for pages in SIZES:
        for key, operations in measure(makers, pages).items():
            _note(spreads, key, pages, {name: Spread.of(values) for name, values in operations.items()})
        if has_peer and pages in PEER_SIZES:
            here = Path(__file__).parent
            found = run_peer(here / "peers_sglang.py", [str(pages)], environment={"PYTHONPATH": str(here.parent)})
            _note(spreads, PEER, pages, found)
    return spreads


def _note(spreads: Spreads, key: str, pages: int, found: Mapping[str, Spread]) -> None:
    for name, spread in found.items():
        spreads.setdefault(key, {}).setdefault(name, {})[pages] = spread


def sglang_is_there() -> bool:
    """Whether SGLANG_DIR names an unpacked wheel; says so if not."""
    folder = os.environ.get("SGLANG_DIR")
    if folder and (Path(folder) / "sglang").is_dir():
        return True
    print("SGLang is not there (SGLANG_DIR names a folder that holds an unpacked sglang wheel): left out")
    return False


def flatness(sizes: Mapping[int, Spread]) -> float:
    """How much dearer an operation is with the most pages than with the fewest."""
    return sizes[SIZES[-1]].median / sizes[SIZES[0]].median


def results(spreads: Spreads) -> Iterator[Result]:
    """Every figure of ours, SGLang's beside, for the file."""
    peers = spreads.get(PEER, {})
    for key, operations in spreads.items():
        for name, sizes in operations.items():
            if key != PEER:
                for pages, spread in sizes.items():
                    peer = peers.get(name, {}).get(pages)
                    goal = GOALS_US[key].get(name)
                    label = f"{name}; {key}, {pages:,} pages"
                    yield Result(label, spread, "us", None if peer is None else "SGLang RadixCache", peer, goal)
            if SIZES[-1] in sizes:
                yield Result(f"{name}; {key}, {FLAT} pages", Spread.of([flatness(sizes)]), "ratio")


def rows(spreads: Spreads) -> Iterator[list[str]]:
    """The table: a line for each operation and size, and one that says how flat each operation is."""
    keys = list(spreads)
    yield ["median (lowest - highest), us", "pages", *keys, *(f"{PEER} / {key}" for key in keys if key != PEER)]
    for name in OPERATIONS:
        found = {key: spreads[key].get(name, {}) for key in keys}
        for pages in SIZES:
            here = {key: found[key].get(pages) for key in keys}
            peer = here.get(PEER)
            ratios = [_times(peer, here[key]) for key in keys if key != PEER]
            yield [name, f"{pages:,}", *(cell(here[key]) for key in keys), *ratios]
        flat = [f"x {flatness(found[key]):.2f}" if SIZES[-1] in found[key] else "" for key in keys]
        yield ["", FLAT, *flat, *[""] * (len(keys) - (PEER in keys))]


def cell(spread: Spread | None) -> str:
    """Median and range; nothing where it was not measured."""
    return "" if spread is None else f"{number(spread.median)} ({number(spread.low)} - {number(spread.high)})"


def _times(peer: Spread | None, ours: Spread | None) -> str:
    return "" if peer is None or ours is None else f"{peer.median / ours.median:.1f}"


def main() -> None:
    """Measure, print, write."""
    spreads = measure_all()
    print(aligned(f"Prefix cache, page size {PAGE}", list(rows(spreads))))
    print(f"written to {write_json(list(results(spreads)), 'bench-cache.json')}")


if __name__ == "__main__":
    main()
