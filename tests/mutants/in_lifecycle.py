"""Defects of the life of requests: ends, aborts, lost steps, progress, fairness."""

from __future__ import annotations

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.gateway import Gateway
from pawl.actors.scheduler import Scheduler
from pawl.lifecycle.numbers import Newest
from pawl.lifecycle.requests import RequestTable
from pawl.loops.admission import Admission
from pawl.loops.batch import ScheduledBatch
from pawl.loops.intake import Intake
from pawl.loops.loop import Loop
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.policy import FirstComeFirstServed
from pawl.loops.queues import Queues
from pawl.loops.requests import Requests
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.LIFECYCLE, broken, resembles, what, edits)


LIFECYCLE = (
    _mutant(
        "second_terminal_reply",
        "legal_lifecycle",
        "6803, 6184",
        "A request that a stop string has ended gets another end when the scheduler reports its own.",
        Edit(Detokenizer._end, "if stream.closed:", "if stream.closed and place is not None:"),
    ),
    _mutant(
        "aborted_request_stays_in_the_queue",
        "abort_is_total",
        "34113, 25561",
        "An abort of a waiting request leaves its row in the queue.",
        Edit(
            Requests.leave,
            "if source != State.NEW:\n        self.queues.drop(row)",
            "if source > State.QUEUED:\n        self.queues.drop(row)",
        ),
    ),
    _mutant(
        "abort_that_comes_early_is_lost",
        "abort_is_total",
        "37833",
        "An abort that overtakes its request on the way to the scheduler is forgotten.",
        Edit(Intake.abort, "self._ended_early[request] = (cause, message)", "pass"),
    ),
    _mutant(
        "short_prompt_passes_a_long_one",
        "abort_is_total",
        "",
        "Once a short prompt has come, a long one with a lower number counts as having been: its abort is forgotten.",
        Edit(Newest.has_been, "(self.long if is_long(request) else self.short)", "max(self.long, self.short)"),
    ),
    _mutant(
        "deadlines_never_fire",
        "abort_is_total",
        "26912",
        "The timer that looks at deadlines finds none that has passed.",
        Edit(Requests.expire, "self.table.deadline[live] <= now", "self.table.deadline[live] < 0.0"),
    ),
    _mutant(
        "token_after_the_abort",
        "silence_after_abort",
        "34112",
        "A request that is aborted between the plan of a step and its commit gets that step's token.",
        Edit(RequestTable.close, "self.attempt[row] += 1", "pass"),
    ),
    _mutant(
        "row_is_reused_too_early",
        "incarnation",
        "19035, 28143",
        "The row of a request that ended is given to the next one while a step in flight still names it.",
        Edit(Requests.close, "self.memory.ledger.fence if source != State.NEW else 0", "0"),
    ),
    _mutant(
        "late_token_reaches_the_successor",
        "incarnation",
        "28143",
        "Rows are reused at once, and whether a token belongs to the row's present holder is not asked.",
        Edit(Requests.close, "self.memory.ledger.fence if source != State.NEW else 0", "0"),
        Edit(Loop._apply, "table.attempt[scheduled.rows] == scheduled.attempts", "table.attempt[scheduled.rows] >= 0"),
    ),
    _mutant(
        "token_after_the_retraction",
        "legal_lifecycle",
        "21171",
        "A request that is retracted while a step is in flight still gets that step's token.",
        Edit(Queues.retract, "table.attempt[row] += 1", "pass"),
    ),
    _mutant(
        "the_oldest_gives_way",
        "bounded_progress",
        "36855; vllm 39734",
        "The oldest request is retracted when pages run out, not the youngest.",
        Edit(UnifiedPlanner._squeeze, "victim = int(running[-1])", "victim = int(running[0])"),
        Edit(Loop._unblock, "oldest_first()[-1]", "oldest_first()[0]"),
    ),
    _mutant(
        "a_lost_step_ends_everybody",
        "fault_isolation",
        "31597, 7897",
        "Every request that was part of a lost step is ended, the first time it happens.",
        Edit(Requests.blame, "info.strikes >= MAX_STRIKES", "info.strikes"),
    ),
    _mutant(
        "worker_is_not_reset",
        "fault_isolation",
        "40728",
        "After a lost step nobody tells the worker to start again: it refuses all that comes.",
        Edit(Scheduler._reset_worker, "self._send(self._names.worker, ", "(lambda *message: None)("),
    ),
    _mutant(
        "lost_admission_is_not_undone",
        "legal_lifecycle",
        "31765",
        "When the step that admitted a request is rolled back, its state stays PREFILLING.",
        Edit(Queues._unadmitted, "self.table.undo(row, State.QUEUED)", "pass"),
    ),
    _mutant(
        "the_first_in_the_queue_starves",
        "admission_is_monotone",
        "17797",
        "The policy offers the request that has waited longest last.",
        Edit(FirstComeFirstServed.order, "return rows", "return [*rows[1:], *rows[:1]]"),
    ),
    _mutant(
        "the_only_one_in_the_queue_is_not_offered",
        "work_conserving",
        "32459",
        "The engine is idle while a request waits that could be admitted.",
        Edit(FirstComeFirstServed.order, "return rows", "return rows[:-1]"),
    ),
    _mutant(
        "gateway_forgets_who_hangs_up",
        "abort_is_total",
        "30912",
        "The entry of a client that hangs up is dropped at once, though its request still ends.",
        Edit(Gateway.abort, "entry.sink = None", "entry.sink = None; self.requests._entries.pop(entry.request)"),
    ),
    _mutant(
        "what_went_wrong_is_offered",
        "read_after_commit",
        "",
        "Pages of a request whose scores were no numbers are offered to others.",
        Edit(Requests.leave, "if cause is not Cause.INTERNAL:", "if True:"),
    ),
    _mutant(
        "token_that_means_nothing_is_given_out",
        "fault_isolation",
        "",
        "A request for which the worker has no token gets the one that means nothing, and goes on.",
        Edit(Loop.executed, "self.requests.no_answer(row, cause, now)", "pass"),
    ),
    _mutant(
        "another_run_has_no_answer",
        "fault_isolation",
        "",
        "Of several tokens that requests draw at once, one that means nothing is taken for the next request's.",
        Edit(
            ScheduledBatch.left_without_answer,
            "np.cumsum(result.counts) - result.counts",
            "np.cumsum(result.counts) - 1",
        ),
    ),
    _mutant(
        "one_who_is_passed_over_ends_the_admission",
        "work_conserving",
        "",
        "Behind a request that waits for a prefix which another one computes nobody is admitted, though there is room.",
        Edit(Admission.admit, "passed_over == MAX_PASSED_OVER:", "passed_over:"),
    ),
)
