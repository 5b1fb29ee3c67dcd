"""Defects of what is told to the prefix cache of those who use it."""

from __future__ import annotations

from pawl.loops.fetching import Fetching
from pawl.loops.queues import Queues
from pawl.memory.undo import Undo
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.MEMORY, "cache_as_stated", "", what, edits)


USES = (
    _mutant(
        "undone_admission_counts_as_a_use",
        "A request that is tried and does not fit counts as one that has used the pages it had found.",
        Edit(Undo.admit, "self._ledger.resolved, used=False)", "self._ledger.resolved)"),
    ),
    _mutant(
        "look_counts_as_a_use",
        "Each time that somebody looks what the cache has for a request that waits, that counts as a use.",
        Edit(Queues.cached_pages, "self.memory.ledger.resolved, used=False)", "self.memory.ledger.resolved)"),
    ),
    _mutant(
        "fetch_that_is_given_up_counts_as_a_use",
        "Who waited for pages behind a cached prefix, and goes on without, counts as having used that twice.",
        Edit(Fetching._abandon, "self.memory.ledger.resolved, used=False)", "self.memory.ledger.resolved)"),
    ),
    _mutant(
        "cache_is_not_told_the_priority",
        "What a request has computed counts as computed for one without a priority.",
        Edit(Queues.share_prefix, "namespace, priority)", "namespace)"),
    ),
)
