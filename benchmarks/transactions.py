"""What undoable memory costs, from a thousand pages to a million: a decode step of 256 requests, and taking steps back.

    python -m benchmarks.transactions

The memory is the one that loops use, with the prefix cache in it (the compiled one where it was built) and a quarter of
the pages cached. No size may matter: a step pays for what it changes. Times are processor time, microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.cache import FLAT, cell, flatness
from benchmarks.cache_workload import PAGE, PROMPT, REPETITIONS, SIZES, Int32s, cpu_seconds, each
from benchmarks.harness import Result, Spread, aligned, quiet, write_json
from pawl.memory.memory import Memory
from pawl.memory.prefix.select import make_cache
from pawl.memory.transaction import Transaction

RUNNING = 256
"""Requests that decode. Their lengths differ by a token each, so that some of them need a page in every step."""
ADMITTED = 64
"""Requests that are admitted, each with all of its prompt cached, and taken back."""
STEPS = 64
"""Decode steps in one repetition: each request needs one more page once."""

STEP = f"begin, extend, commit: decode step of {RUNNING}"
STEP_BACK = f"roll back: decode step of {RUNNING}"
ADMIT = "admit, full hit of 512 tokens but the last page"
GROW = "extend by one page"
ADMIT_BACK = "roll back: admit"
GROW_BACK = "roll back: extend by one page"
OPERATIONS = (STEP, STEP_BACK, ADMIT, GROW, ADMIT_BACK, GROW_BACK)


class Bench:
    """A memory with a quarter of its pages cached and RUNNING requests of a few tokens."""

    def __init__(self, num_pages: int) -> None:
        cache = make_cache("radix", PAGE, core="auto")
        self.memory = Memory(num_pages=num_pages, num_slots=RUNNING + ADMITTED, max_context=2 * PROMPT, cache=cache)
        source = np.random.default_rng(0)
        count = num_pages // 4 // (PROMPT // PAGE)
        self._prompts: Int32s = source.integers(0, 50_000, (count, PROMPT), dtype=np.int32)
        for tokens in self._prompts:
            self._finish(tokens)
        self._asked = [self._prompts[index] for index in source.integers(0, count, ADMITTED)]
        self._lengths = np.arange(RUNNING, dtype=np.int32) % PAGE + 1

    def _finish(self, tokens: Int32s) -> None:
        """A request that leaves its prompt in the cache."""
        transaction = self.memory.ledger.begin()
        granted = self.memory.admit(transaction, tokens, "", use_cache=True)
        assert granted is not None
        assert self.memory.extend_slot(transaction, granted.slot, PROMPT) is not None
        self._commit(transaction)
        self.memory.share_prefix(granted.slot, tokens, "")
        self.memory.release(granted.slot)

    def _commit(self, transaction: Transaction) -> None:
        self.memory.ledger.prepare(transaction)
        self.memory.ledger.commit(transaction)

    def decode(self) -> dict[str, float]:
        """Seconds of STEP and STEP_BACK: every step is taken back once, and then made."""
        memory, ledger, slots = self.memory, self.memory.ledger, self._start()
        lengths, back = self._lengths, 0.0

        def step() -> None:
            transaction = ledger.begin()
            assert memory.extend(transaction, slots, lengths) is not None
            self._commit(transaction)

        forward = 0.0
        for _ in range(STEPS):
            lengths = lengths + np.int32(1)
            before = memory.digest()
            transaction = ledger.begin()
            assert memory.extend(transaction, slots, lengths) is not None
            back += cpu_seconds(transaction.rollback)
            ledger.discard(transaction)
            assert memory.digest() == before
            forward += cpu_seconds(step)
        for slot in slots:
            memory.release(int(slot))
        return {STEP: forward / STEPS, STEP_BACK: back / STEPS}

    def _start(self) -> Int32s:
        """Slots of RUNNING requests, int32 [RUNNING]."""
        transaction = self.memory.ledger.begin()
        slots = []
        for length in self._lengths.tolist():
            granted = self.memory.admit(transaction, self._prompts[0], "", use_cache=False)
            assert granted is not None
            assert self.memory.extend_slot(transaction, granted.slot, length) is not None
            slots.append(granted.slot)
        self._commit(transaction)
        return np.array(slots, np.int32)

    def take_back(self) -> dict[str, float]:
        """Seconds of ADMIT, GROW and their undoing: ADMITTED requests in one step."""
        memory, before = self.memory, self.memory.digest()
        transaction = memory.ledger.begin()
        slots: list[int] = []

        def admit(tokens: Int32s) -> None:
            granted = memory.admit(transaction, tokens, "", use_cache=True)
            assert granted is not None
            slots.append(granted.slot)

        def grow(slot: int) -> None:
            assert memory.extend_slot(transaction, slot, PROMPT) is not None

        seconds = {ADMIT: cpu_seconds(each(admit, self._asked))}
        savepoint = transaction.savepoint()
        seconds[GROW] = cpu_seconds(each(grow, slots))
        seconds[GROW_BACK] = cpu_seconds(lambda: transaction.rollback(savepoint))
        seconds[ADMIT_BACK] = cpu_seconds(transaction.rollback)
        memory.ledger.discard(transaction)
        assert memory.digest() == before
        return {name: value / ADMITTED for name, value in seconds.items()}


def measure() -> dict[str, dict[int, Spread]]:
    """Operation -> pages -> microseconds. The sizes take turns, so that a neighbour's burst does not fall on one."""
    values: dict[str, dict[int, list[float]]] = {name: {pages: [] for pages in SIZES} for name in OPERATIONS}
    with quiet():
        benches = {pages: Bench(pages) for pages in SIZES}
        for repetition in range(REPETITIONS + 1):
            for pages, bench in benches.items():
                for name, seconds in (bench.decode() | bench.take_back()).items():
                    if repetition:  # The first one warms up.
                        values[name][pages].append(seconds * 1e6)
        for bench in benches.values():
            bench.memory.check_all()
    return {name: {pages: Spread.of(found) for pages, found in sizes.items()} for name, sizes in values.items()}


def rows(measured: Mapping[str, Mapping[int, Spread]]) -> Iterator[list[str]]:
    """The table: a line for each operation, and what the largest memory costs over the smallest."""
    yield ["median (lowest - highest), us", *(f"{pages:,} pages" for pages in SIZES), FLAT]
    for name, sizes in measured.items():
        yield [name, *(cell(sizes[pages]) for pages in SIZES), f"x {flatness(sizes):.2f}"]


def results(measured: Mapping[str, Mapping[int, Spread]]) -> Iterator[Result]:
    """Every figure, for the file."""
    for name, sizes in measured.items():
        for pages, spread in sizes.items():
            yield Result(f"{name}; {pages:,} pages", spread, "us")
        yield Result(f"{name}; {FLAT} pages", Spread.of([flatness(sizes)]), "ratio")


def main() -> None:
    """Measure, print, write."""
    measured = measure()
    print(aligned(f"Undoable memory, page size {PAGE}", list(rows(measured))))
    print(f"written to {write_json(list(results(measured)), 'bench-transactions.json')}")


if __name__ == "__main__":
    main()
