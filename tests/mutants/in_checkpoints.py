"""Defects of checkpoints: what they leave out, or say otherwise than it is."""

from __future__ import annotations

from pawl.lifecycle import snapshot as of_requests
from pawl.loops import snapshot as of_loops
from pawl.memory import snapshot as of_memory
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, broken, "", what, edits)


CHECKPOINTS = (
    _mutant(
        "checkpoint_without_holds",
        "hold_accounting",
        "A checkpoint does not say what running requests hold of the cache.",
        Edit(of_memory.snapshot_of, "held = None if hold is None else", "held = None if True else"),
    ),
    _mutant(
        "checkpoint_without_promises",
        "allocation_is_a_transaction",
        "A checkpoint says that no pages are promised to anybody.",
        Edit(of_memory.snapshot_of, "memory.escrow.promised.tobytes()", "bytes(4 * len(memory.escrow.promised))"),
    ),
    _mutant(
        "checkpoint_in_another_order",
        "one_decision_log",
        "A checkpoint has those that wait in the order of their rows.",
        Edit(of_loops.snapshot_of, "list(queues.waiting)", "sorted(queues.waiting)"),
    ),
    _mutant(
        "checkpoint_forgets_whose_turn_it_is",
        "prompts_take_turns",
        "A checkpoint does not say that the prompt that began first has been behind others.",
        Edit(of_loops.snapshot_of, '"behind": queues.behind', '"behind": 0'),
    ),
    _mutant(
        "checkpoint_counts_anew",
        "observability_conservation",
        "Totals begin again with a checkpoint.",
        Edit(of_loops.snapshot_of, "msgspec.to_builtins(loop.counters)", "msgspec.to_builtins(type(loop.counters)())"),
    ),
    _mutant(
        "checkpoint_forgets_progress",
        "stream_positions",
        "A checkpoint says that no prompt is computed yet.",
        Edit(
            of_requests.snapshot_of, "columns[name][waits] = 0", "columns[name][:] = columns[name] * (name == 'slot')"
        ),
    ),
)
