"""Defects of pipelines: who is in which step of those in flight."""

from __future__ import annotations

from pawl.loops.pacing import Pacing
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.queues import Queues
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.LIFECYCLE, broken, "", what, edits)


PIPELINE = (
    _mutant(
        "request_in_two_stages_at_once",
        "fair_micro_batches",
        "A request is in a step while its last one is in a stage before the last: that stage waits for the token.",
        Edit(Pacing.micro_batch, "ahead[1 - self.stages :]", "ahead[:0]"),
    ),
    _mutant(
        "micro_batch_of_everybody",
        "fair_micro_batches",
        "A step takes whoever is in no stage, and leaves nobody for the next ones.",
        Edit(Pacing.micro_batch, "free[: min(-(-len(free) // to_come), -(-len(decoding) // self.stages))]", "free"),
    ),
    _mutant(
        "turns_are_forgotten",
        "fair_micro_batches",
        "The same requests come first in every step that has room for some only.",
        Edit(Queues.had_turns, "if len(rows) < len(self.decoding):", "if False:"),
    ),
    _mutant(
        "only_those_whose_turn_it_is_may_go_on",
        "work_conserving",
        "Where those whose turn it is give way for want of pages, nobody else is taken in their place.",
        Edit(UnifiedPlanner._decode, "self._squeeze(builder, everybody)", "self._squeeze(builder, rows)"),
    ),
)
