"""The digest: it sees every fact, is the same for the same state wherever and however that came about, and is exact."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from pawl.lifecycle.records import Digest, StepCommitted, StepRolledBack
from pawl.loops.replay import Diverged, replay
from pawl.memory.checks import recompute
from pawl.memory.digest import MASK, keys, signed
from pawl.memory.memory import Memory
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation
from pawl.memory.window_pool import WindowPool
from tests.conftest import ROOT
from tests.loops.test_replay import record_run
from tests.memory.every_verb import EveryVerb, play, random_program
from tests.memory.test_memory_failures import PAGE, extend, memory_with_history


def busy(num_pools: int = 2) -> Memory:
    """PageTable, promises, a cache, a reservation, and pages and a slot that wait for a step in flight."""
    memory, slots = memory_with_history(num_pools)
    assert memory.reserve(2) is not None
    transaction = memory.ledger.begin()
    granted = memory.admit(transaction, np.repeat(np.array([7, 8, 99], np.int32), PAGE), "salt", True)
    assert granted is not None
    assert extend(memory, transaction, granted.slot, 2 * PAGE)
    memory.ledger.prepare(transaction)
    memory.release(granted.slot)
    memory.check_all()
    assert memory.pages.deferred
    assert memory.slots.deferred
    assert memory.page_table.pages[slots[0], 0] == memory.page_table.pages[slots[1], 0]
    return memory


def _swap_entries(memory: Memory) -> None:
    row = memory.page_table.pages[0]
    row[0], row[1] = row[1], row[0]


def _undefer_a_page(memory: Memory) -> None:
    pages = memory.pages
    waiting = (pages.refcount == 0) & ~pages.reserved
    waiting[pages.free_pages] = False
    pages._push(np.flatnonzero(waiting)[:1].astype(np.int32))


def _other_namespace(memory: Memory) -> None:
    hold = memory.page_table.holds[0]
    assert hold is not None
    memory.page_table._namespaces[0] += 1


def _windows(memory: Memory) -> object:
    assert isinstance(memory.windows, WindowPool)
    return memory.windows


def add(array: np.ndarray, *index: int) -> None:
    array[index] += 1


FACTS: dict[str, Callable[[Memory], object]] = {
    "a reference": lambda m: add(m.pages.refcount, int(m.page_table.pages[0, 0])),
    "that a page is cached": lambda m: m.pages.in_cache.__setitem__(int(m.page_table.pages[0, 0]), False),
    "that a page is reserved": lambda m: m.pages.reserved.__setitem__(int(np.flatnonzero(m.pages.reserved)[0]), False),
    "the age of a page": lambda m: add(m.pages.generation, int(m.page_table.pages[0, 0])),
    "that a page is deferred": _undefer_a_page,
    "an entry of the page table": lambda m: add(m.page_table.pages, 0, 1),
    "the order of entries": _swap_entries,
    "the number of pages of a row": lambda m: add(m.page_table.num_pages, 0),
    "the length of a row": lambda m: add(m.page_table.length, 0),
    "the namespace that is held": _other_namespace,
    "that a prefix is held": lambda m: m.page_table.holds.__setitem__(0, None),
    "a promise": lambda m: add(m.escrow.promised, 1),
    "that a slot is in use": lambda m: m.slots.in_use.__setitem__(0, False),
    "that a slot is deferred": lambda m: m.slots._free.append(2),
    "a partner in the second pool": lambda m: add(_windows(m).partners.of, int(m.page_table.pages[0, 4])),  # type: ignore[attr-defined]
    "where a window begins": lambda m: add(_windows(m).start, 0),  # type: ignore[attr-defined]
    "a promise of the second pool": lambda m: add(_windows(m).escrow.promised, 0),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_counts_and_one_that_changed_behind_its_back_is_noticed(fact: str) -> None:
    memory = busy()
    before = memory.digest()
    assert recompute(memory) == before
    FACTS[fact](memory)
    assert recompute(memory) != before
    with pytest.raises(MemoryViolation):
        memory.check_all()


def test_what_is_in_the_table_beyond_a_row_is_no_fact() -> None:
    memory = busy()
    memory.page_table.pages[0, memory.page_table.num_pages[0]] += 1
    assert recompute(memory) == memory.digest()


def grown(order: list[int]) -> Memory:
    """Three rows grow one after the other, in this order; which page is whose does not depend on it."""
    memory = Memory(num_pages=24, num_slots=3, max_context=8 * PAGE, cache=RadixCache(PAGE))
    transaction = memory.ledger.begin()
    for word in range(3):
        granted = memory.admit(transaction, np.full(3 * PAGE, word, np.int32), "", True)
        assert granted is not None
        assert extend(memory, transaction, granted.slot, PAGE)
    for slot in order:
        assert extend(memory, transaction, slot, PAGE - slot)
        assert memory.promise(slot, (2 + slot) * PAGE)
    return memory


def test_the_order_in_which_facts_came_about_is_none() -> None:
    assert grown([0, 1, 2]).digest() == grown([2, 0, 1]).digest() != 0


def test_empty_memory_has_digest_zero_after_any_history() -> None:
    for seed in range(3):
        assert play(random_program(seed, 20), EveryVerb()).memory.digest() == 0


def test_states_that_differ_have_digests_that_differ() -> None:
    chance, memory = Random(1), busy(num_pools=1)
    seen = {memory.digest()}
    for number in range(500):
        slot = chance.choice([0, 1])
        memory.escrow.promise(slot, 1 + number)
        seen.add(memory.digest())
    assert len(seen) == 501


def test_another_process_has_the_same_digests() -> None:
    program = "from tests.memory.test_digest import busy; print(busy().digest())"
    other_hashes = {**os.environ, "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", program], env=other_hashes, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(said.stdout) == busy().digest()


def test_keys_are_odd_and_differ_within_and_between_streams() -> None:
    numbers = np.concatenate([keys(stream, 5000) for stream in range(1, 9)])
    assert (numbers & 1).all()
    assert len(np.unique(numbers)) == len(numbers)
    for bit in range(1, 64):
        share = float(((numbers >> np.int64(bit)) & 1).mean())
        assert abs(share - 0.5) < 0.02, f"bit {bit} is one in {share:.2f} of the keys"


def test_numbers_mod_2_64_are_the_same_as_int64() -> None:
    for number in (0, 1, 2**63 - 1, 2**63, MASK, 2**64 + 5, -1):
        assert int(signed(number)) & MASK == number & MASK


def test_every_step_of_a_trace_carries_the_digest_and_replay_compares_it() -> None:
    records = record_run(3)
    steps = [record for record in records if isinstance(record, StepCommitted)]
    assert len({step.digest for step in steps}) > len(steps) // 2
    replay(records)
    at = records.index(steps[len(steps) // 2])
    forged = steps[len(steps) // 2]
    other = StepCommitted(forged.step, forged.time, forged.events, forged.tokens, forged.pages, forged.digest ^ 1)
    with pytest.raises(Diverged):
        replay([*records[:at], other, *records[at + 1 :]])


def test_a_rollback_is_recorded_with_the_digest_it_leads_back_to() -> None:
    records = [record for seed in range(4) for record in record_run(seed)]
    follows = [after for before, after in pairwise(records) if isinstance(before, StepRolledBack)]
    assert follows
    assert all(isinstance(after, Digest) for after in follows)
