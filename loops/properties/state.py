"""Every property of a loop's state, and which property each statement of memory belongs to.

Memory checks itself as it works and raises at the first statement that would be false; what reports, counts or fails a
run speaks of properties.
"""

from __future__ import annotations

from pawl.loops.properties.base import Broken, StateChecks, StateProperty
from pawl.loops.properties.memory import (
    AllocationIsATransaction,
    AuxiliaryConservation,
    Conservation,
    HoldAccounting,
    RowShape,
    SingleOwner,
)
from pawl.loops.properties.work import ObservabilityConservation, WorkConserving
from pawl.memory.violation import MemoryViolation

STATE_PROPERTIES: tuple[type[StateProperty], ...] = (
    Conservation,
    SingleOwner,
    RowShape,
    HoldAccounting,
    AuxiliaryConservation,
    AllocationIsATransaction,
    WorkConserving,
    ObservabilityConservation,
)
"""Every property that a loop alone can decide."""

STATEMENTS: dict[str, tuple[str, ...]] = {
    "conservation": (
        "free + owned + cached + deferred + quarantined = total",
        "a checkpoint has the digest of what it holds",
        "counters equal the pages' classes",
        "the free stack has no duplicate",
        "no page is both free and referenced",
        "no page is both free and reserved",
        "a page in quarantine has no other use",
        "a cached page is referenced",
        "counters of the cache equal its content",
        "free + used = capacity",
        "a page has one size",
    ),
    "single_owner": (
        "refcount never falls below zero",
        "refcount(page) = number of its referrers",
        "refcount(window page) = number of its referrers",
        "only cached pages are shared",
        "only a shared page is unshared",
        "only cached pages without another referrer are evicted",
        "the cache adopts owned pages, once",
        "a page taken by an aborted step has one referrer",
        "a page is cached in one place",
        "a page, and a place, is taken once",
        "what is removed was stored",
        "a window page is the partner of one full page",
        "a window page is owned and cached as its full page is",
    ),
    "no_reuse_before_fence": ("handle.generation = generation(page)",),
    "row_shape": (
        "pages cover the length, and no page is spare",
        "a row refers to living window pages",
        "pages are inserted whole",
        "whole pages are stored",
        "room that was made for rows is theirs",
    ),
    "hold_accounting": (
        "cached = evictable + held",
        "holds = own holders + held children",
        "a root counts as held once",
        "a hold is released once",
        "a hold is released once, to the cache that gave it",
        "the pages of a released hold are unknown",
        "a held node is never evicted",
        "only an unheld leaf is evicted",
        "children leave before their parent",
        "a page never leaves before those below it",
        "a cached page hangs below a cached page",
        "a cache that is held is not reset",
        "every unheld node waits to leave",
        "a node waits in the place of its rank",
        "the order of leaving is a ring",
        "stale entries are few",
        "an edge holds whole pages",
        "a child is found by its first page, and knows its parent",
        "a namespace has a tree",
        "window pages that only the cache refers to may leave",
    ),
    "auxiliary_conservation": (
        "free + used + deferred = total slots",
        "a slot is released once",
        "a slot that is not in use owns nothing",
        "a slot that is not in use owns no window page",
    ),
    "allocation_is_a_transaction": (
        "rollback restores the state digest",
        "the digest is the sum over all facts",
        "the total of promises is their sum",
        "promises <= free + evictable (+ deferred, while steps are in flight)",
        "promises <= free + evictable (+ deferred) window pages",
        "whoever is at work has pages, or promises, to its safe point when somebody is admitted",
    ),
    "namespace_isolation": ("a page is stored below one of its namespace",),
}
"""What memory says of itself (`MemoryViolation.statement`), by the property that it is part of."""

_PROPERTY_OF = {statement: name for name, statements in STATEMENTS.items() for statement in statements}


def state_checks() -> StateChecks:
    """One that looks with every property of the state."""
    return StateChecks([make() for make in STATE_PROPERTIES])


def name_of(violation: Exception) -> str:
    """The property that does not hold. What is raised without a statement (there was no host memory for a plan, say) is
    none of a page: it is a step that was not taken whole."""
    if isinstance(violation, Broken):
        return violation.property
    statement = violation.statement if isinstance(violation, MemoryViolation) else ""
    return _PROPERTY_OF.get(statement, "allocation_is_a_transaction")
