"""Defects of drafts: which are taken, what is left of them, and what is decided from how they fared."""

from __future__ import annotations

from pawl.actors.step_report import StepReport
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.rounds import draw_in_rounds
from pawl.loops.loop import Loop
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.runs import apply_runs, cut_runs
from pawl.loops.speculation import Drafter
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, group: Group, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, group, broken, "", what, edits)


SPECULATION = (
    _mutant(
        "runs_of_the_step_before_are_asked",
        Group.OUTPUTS,
        "logprobs_as_asked",
        "Which tokens of a step count is kept of the last one that had drafts.",
        Edit(Loop._apply, "    self._runs = None\n    if events", "    if events"),
    ),
    _mutant(
        "wrong_draft_is_taken",
        Group.OUTPUTS,
        "schedule_equivalence",
        "What is drawn after a draft counts, whatever was drawn in the place of the draft.",
        Edit(draw_in_rounds, "drawn.tokens[going_on] == inputs[rows[going_on] + 1]", "drawn.tokens[going_on] >= 0"),
    ),
    _mutant(
        "every_draw_of_a_run_at_one_position",
        Group.OUTPUTS,
        "schedule_equivalence",
        "All tokens of a run are drawn with the noise of its first position.",
        Edit(draw_in_rounds, "batch.starts[segments] + rows - offsets[segments] + 1", "batch.starts[segments] + 1"),
    ),
    _mutant(
        "run_goes_on_from_its_first_token",
        Group.MEMORY,
        "read_after_commit",
        "The slot goes on as if nothing of a wrong draft had been computed.",
        Edit(Ghost._draw_runs, "int(batch.starts[segment] + counts[segment])", "int(batch.starts[segment])"),
    ),
    _mutant(
        "stop_token_within_a_run_is_overlooked",
        Group.OUTPUTS,
        "stop_semantics",
        "A stop token ends a request only where it is the last token of a run.",
        Edit(cut_runs, "int(stops[0]) + 1 if len(stops) else len(run)", "len(run)"),
    ),
    _mutant(
        "wrong_drafts_keep_their_pages",
        Group.LIFECYCLE,
        "stream_positions",
        "What was computed for drafts that were wrong stays in the slot.",
        Edit(apply_runs, "if np.count_nonzero(short):", "if False:"),
    ),
    _mutant(
        "draft_beyond_the_last_token",
        Group.LIFECYCLE,
        "drafts_in_bounds",
        "Drafts are made for positions that no request will ever compute.",
        Edit(Drafter.draft, "np.minimum(wanted, table.max_length[rows] - starts - 1)", "wanted"),
    ),
    _mutant(
        "drafts_have_no_budget",
        Group.LIFECYCLE,
        "drafts_in_bounds",
        "A step has as many drafts as there are.",
        Edit(Drafter.draft, "self.most - len(rows)", "1 << 20"),
    ),
    _mutant(
        "step_is_planned_behind_drafts",
        Group.LIFECYCLE,
        "stream_positions",
        "A step is planned while it is not known what came of the drafts in flight.",
        Edit(Loop.turn, " and not (self.in_flight and self.in_flight[-1].runs)", ""),
    ),
    _mutant(
        "drafts_beside_prompts",
        Group.LIFECYCLE,
        "drafts_in_bounds",
        "Decoding requests have drafts while prompts are computed.",
        Edit(UnifiedPlanner._speculate, "queues.prefilling or queues.num_waiting", "False"),
    ),
    _mutant(
        "checkpoint_forgets_how_drafts_fared",
        Group.CONTROL,
        "one_decision_log",
        "From a checkpoint on every request drafts as one that has just come.",
        Edit(
            Drafter.restore,
            "drafting[rows] = np.frombuffer(plain, np.int32).reshape(len(rows), drafting.shape[1])",
            "pass",
        ),
    ),
    _mutant(
        "client_is_told_of_all_drafts",
        Group.CONTROL,
        "retraction_transparency",
        "Drafts that were wrong are counted as output that was drafted.",
        Edit(StepReport.ended, "ending.num_drafted, ending.num_accepted", "ending.num_drafted, ending.num_drafted"),
    ),
)
