"""Defects of what is promised beside tokens: private books, usage, causes, order, and rows that are used again."""

from __future__ import annotations

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.scheduler import Scheduler
from pawl.actors.step_report import StepReport, _told
from pawl.gpu.ghost.draws import GhostDraws
from pawl.lifecycle.requests import RequestTable
from pawl.loops.admission import Admission, next_chunk
from pawl.loops.fetching import Fetching
from pawl.loops.intake import Intake
from pawl.loops.loop import Loop
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort
from pawl.loops.policy import HighestPriority, LongestOutputFirst
from pawl.loops.queues import Queues
from pawl.loops.recovery import undo_newest
from pawl.loops.requests import Requests
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, group: Group, broken: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, group, broken, "", what, edits)


PROMISES = (
    _mutant(
        "step_time_is_never_forgotten",
        Group.CONTROL,
        "auxiliary_conservation",
        "When a step was launched is kept after it has come back: health says for ever that it stalls.",
        Edit(Scheduler._executed, "self._launched_at.pop(result.step, None)", "self._launched_at.get(result.step)"),
    ),
    _mutant(
        "early_abort_is_never_forgotten",
        Group.LIFECYCLE,
        "auxiliary_conservation",
        "An abort that overtook its request is kept after the request has come and ended.",
        Edit(Intake.submit, "self._ended_early.pop(info.request, None)", "self._ended_early.get(info.request)"),
    ),
    _mutant(
        "deadline_timers_pile_up",
        Group.LIFECYCLE,
        "auxiliary_conservation",
        "Each time the scheduler settles it sets another timer for deadlines.",
        Edit(Scheduler.settled, "self._checking_deadlines = True", "pass"),
    ),
    _mutant(
        "cut_output_is_billed",
        Group.OUTPUTS,
        "retraction_transparency",
        "What was computed beyond a stop string counts as output where the request ended in the same step.",
        Edit(Detokenizer._replace_done, "completion_tokens=stream.num_output", "completion_tokens=99"),
    ),
    _mutant(
        "cached_tokens_are_counted_again",
        Group.CONTROL,
        "retraction_transparency",
        "A request that comes back finds its own pages in the cache, and its client is told that they were cached.",
        Edit(
            Admission._try,
            "info.num_cached = info.num_cached if info.num_retractions else min(",
            "info.num_cached = min(",
        ),
    ),
    _mutant(
        "cached_tokens_of_lost_steps_stay_counted",
        Group.CONTROL,
        "observability_conservation",
        "What the cache had for a request counts twice when the step that admitted it is lost.",
        Edit(undo_newest, "counters.cached_tokens = cached_tokens", "pass"),
    ),
    _mutant(
        "memory_is_called_a_lost_step",
        Group.LIFECYCLE,
        "true_causes",
        "A request that gives way when pages run out is recorded as one whose step was lost.",
        Edit(Loop._plan, "builder.retracted, Cause.MEMORY, now)", "builder.retracted, Cause.STEP_LOST, now)"),
    ),
    _mutant(
        "lost_worker_is_called_a_timeout",
        Group.LIFECYCLE,
        "true_causes",
        "A fetch that is given up with the worker is recorded as one whose lease ended.",
        Edit(Fetching.lost, "Cause.WORKER_LOST", "Cause.TIMEOUT"),
    ),
    _mutant(
        "cached_tokens_of_the_undone_admission",
        Group.CONTROL,
        "retraction_transparency",
        "A client is told what the cache had when it was first admitted, though that admission was undone.",
        Edit(StepReport.launched, "if not info.num_retractions:", "if info.admitted is None:"),
    ),
    _mutant(
        "every_abort_is_a_disconnect",
        Group.LIFECYCLE,
        "true_causes",
        "Whoever asked for an end, the request ends as if its client had gone.",
        Edit(Abort.apply, "self.cause", "type(self.cause).DISCONNECT"),
    ),
    _mutant(
        "time_is_over_early",
        Group.LIFECYCLE,
        "true_causes",
        "A request is ended some time before its deadline.",
        Edit(Requests.expire, "self.table.deadline[live] <= now", "self.table.deadline[live] <= now + 60.0"),
    ),
    _mutant(
        "retracted_come_back_in_any_order",
        Group.LIFECYCLE,
        "admission_order",
        "Requests that lost their memory come back in the order in which they lost it.",
        Edit(Queues._requeue, "self.retracted.sort(key=lambda other: int(self.table.order[other]))", "pass"),
    ),
    _mutant(
        "newcomers_before_those_that_come_back",
        Group.LIFECYCLE,
        "admission_order",
        "Newcomers are admitted before requests that lost their memory.",
        Edit(
            Admission._candidates,
            "yield from queues.admissible(queues.retracted)\n    waiting = queues.admissible(queues.waiting)",
            "waiting = [*queues.admissible(queues.waiting), *queues.admissible(queues.retracted)]",
        ),
    ),
    _mutant(
        "undone_admission_loses_its_place",
        Group.LIFECYCLE,
        "admission_order",
        "When the step that admitted a request is rolled back, it waits behind everybody.",
        Edit(Queues._unadmitted, "sorted((row, *self.waiting), key=arrival.__getitem__)", "(*self.waiting, row)"),
    ),
    _mutant(
        "undone_admission_goes_to_the_front",
        Group.LIFECYCLE,
        "admission_order",
        "When the step that admitted a request is rolled back, it waits before those that came earlier.",
        Edit(Queues._unadmitted, "sorted((row, *self.waiting), key=arrival.__getitem__)", "(row, *self.waiting)"),
    ),
    _mutant(
        "priorities_are_turned_round",
        Group.LIFECYCLE,
        "admission_order",
        "The smallest priority goes first.",
        Edit(HighestPriority.order, "-int(priority[row])", "int(priority[row])"),
    ),
    _mutant(
        "shortest_output_first",
        Group.LIFECYCLE,
        "admission_order",
        "Whoever wants the shortest output goes first, where the longest should.",
        Edit(LongestOutputFirst.order, "-int(table", "int(table"),
    ),
    _mutant(
        "oldest_promised_like_others",
        Group.MEMORY,
        "allocation_is_a_transaction",
        "The oldest request is promised pages to its next safe point only, and not to its end.",
        Edit(Admission._renew_promises, "reach[0] = table.max_length[rows[0]]", "pass"),
    ),
    _mutant(
        "prefix_wait_across_salts",
        Group.LIFECYCLE,
        "admission_order",
        "A request waits for a page that another computes, though it may not share that.",
        Edit(Admission._page_after, "return namespace, parent", 'return "", parent'),
    ),
    _mutant(
        "early_abort_kept_for_ever",
        Group.LIFECYCLE,
        "auxiliary_conservation",
        "An abort that overtook a request which was then refused on its way is kept for ever.",
        Edit(Intake.submit, "passed(info.request, self._ended_early)", "passed(0, self._ended_early)"),
    ),
    _mutant(
        "prompt_scores_from_cache",
        Group.OUTPUTS,
        "recomputed",
        "Log-probabilities of a prompt are asked for, and what the cache has of it is not computed.",
        Edit(Admission._try, "use_cache=not info.sampling.needs_whole_prompt", "use_cache=True"),
    ),
    _mutant(
        "chunks_end_anywhere",
        Group.MEMORY,
        "stream_positions",
        "A chunk that is not the last of a prompt may end within a page.",
        Edit(next_chunk, "end -= end % queues.memory.page_size", "end -= end % 1"),
    ),
    _mutant(
        "flush_says_ok_and_does_nothing",
        Group.CONTROL,
        "quiescent_flush",
        "A flush that was refused is reported as done.",
        Edit(FlushCache.apply, "if loop.flush(now):", "loop.flush(now)\n    if True:"),
    ),
    _mutant(
        "stop_tokens_of_the_former_holder",
        Group.OUTPUTS,
        "stream_positions",
        "A row that is used again still stops at tokens of the request before.",
        Edit(RequestTable.describe, "self.stop_tokens[row] = _NO_STOPS", "pass"),
    ),
    _mutant(
        "bias_of_the_former_holder",
        Group.OUTPUTS,
        "batch_independence",
        "A slot that is used again still prefers the tokens that the request before preferred.",
        Edit(GhostDraws.admit, "self._bias[slot] = 0.0", "pass"),
    ),
    _mutant(
        "penalties_of_the_former_holder",
        Group.OUTPUTS,
        "batch_independence",
        "A slot that is used again still counts the tokens of the request before as seen.",
        Edit(GhostDraws.admit, "self._seen[slot] = False", "pass"),
    ),
    _mutant(
        "scores_move_up_beside_a_dropped_token",
        Group.OUTPUTS,
        "retraction_transparency",
        "When a token of a step is dropped, the log-probabilities behind it go to the wrong requests.",
        Edit(_told, "*(array[wanted] for array in", "*(array[: int(wanted.sum())] for array in"),
    ),
)
