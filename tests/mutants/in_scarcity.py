"""Defects that show where pages are short: who gives way, what is given back, and what is counted on."""

from __future__ import annotations

from pawl.loops.admission import Admission
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.recovery import lose_pages
from pawl.memory.memory import Memory
from pawl.memory.prefix.radix import RadixCache
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.MEMORY, broken, "", what, edits)


SCARCITY = (
    _mutant(
        "younger_chooses_first",
        "admission_is_monotone",
        "Where there are pages for some of those that decode, the youngest takes one and the oldest waits.",
        Edit(UnifiedPlanner._able, "np.argsort(table.order[rows]", "np.argsort(-table.order[rows]"),
    ),
    _mutant(
        "second_youngest_gives_way",
        "admission_is_monotone",
        "Where pages run short a request is retracted though a younger one stays at work.",
        Edit(UnifiedPlanner._squeeze, "int(running[-1])", "int(running[-2:][0] if len(running) > 2 else running[-1])"),
    ),
    _mutant(
        "retracted_though_pages_come_back",
        "admission_is_monotone",
        "A request is retracted though the pages that wait for a step in flight are enough for everybody.",
        Edit(Memory.renew, "self.pages.deferred + self.pages.quarantined", "self.pages.quarantined"),
    ),
    _mutant(
        "renew_ignores_quarantine",
        "admission_is_monotone",
        "A request is retracted though pages that are reserved for what comes from below will be enough for everybody.",
        Edit(Memory.renew, "self.pages.deferred + self.pages.quarantined", "self.pages.deferred"),
    ),
    _mutant(
        "reservation_takes_what_was_promised",
        "allocation_is_a_transaction",
        "Pages that come from below the device are given room that was promised to requests at work.",
        Edit(Memory.reserve, "count > self.unpromised", "count > self.obtainable"),
    ),
    _mutant(
        "replaced_page_is_free_at_once",
        "no_reuse_before_fence",
        "A page of which the cache has an equal is free at once, though a step in flight still reads it.",
        Edit(Memory._deduplicate, "self.pages.release(ours, self.ledger.fence)", "self.pages.release(ours, 0)"),
    ),
    _mutant(
        "page_computed_twice",
        "admission_order",
        "A request computes a page that another one computes right now, instead of waiting for it.",
        Edit(Admission._try, "if page in computing and", "if page is computing and"),
    ),
    _mutant(
        "fence_of_the_last_victim",
        "no_reuse_before_fence",
        "Of several victims of one eviction, only the last one's step is waited for.",
        Edit(RadixCache._evict, "fence = max(fence, victim.fence)", "fence = victim.fence"),
    ),
    _mutant(
        "split_counts_all_holders",
        "hold_accounting",
        "The upper half of a node that is split counts every holder of the lower one, who let go of that alone.",
        Edit(RadixCache._split, "upper.holds = 1", "upper.holds = node.holds"),
    ),
    _mutant(
        "lost_worker_is_not_told_below",
        "read_after_commit",
        "When a step is lost, what follows the lower tiers is not told: it saves pages that the worker has forgotten.",
        Edit(lose_pages, "companion.lost(now)", "pass"),
    ),
)
