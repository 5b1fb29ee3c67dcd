"""Defects of pausing and going on."""

from __future__ import annotations

from pawl.actors.askers import Askers
from pawl.loops.intake import Intake
from pawl.loops.loop import Loop
from pawl.loops.orders.requests import Abort, CheckDeadlines
from pawl.loops.orders.serving import Continue, Pause
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, broken: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, broken, resembles, what, edits)


PAUSING = (
    _mutant(
        "paused_engine_plans_on_while_a_step_is_in_flight",
        "paused_is_still",
        "meta-pytorch/torchforge 251",
        "An engine that is paused in the middle of work takes further requests and plans steps for them.",
        Edit(Loop.turn, "if self.still or", "if (self.still and self.idle) or"),
    ),
    _mutant(
        "pause_that_retracts_forgets_prompts",
        "paused_is_still",
        "31962",
        "A pause that retracts leaves those at work whose prompts are half computed.",
        Edit(Pause.apply, "loop.queues.oldest_first().tolist()", "loop.queues.decoding.tolist()"),
    ),
    _mutant(
        "flush_is_refused_while_retracted_requests_wait",
        "quiescent_flush",
        "33783, 31962",
        "Requests that a pause has retracted wait in the queue, so the cache is never flushed.",
        Edit(Loop.at_rest, "self.still and", "False and"),
    ),
    _mutant(
        "pause_is_answered_with_a_step_in_flight",
        "quiescent_flush",
        "10071",
        "Whoever pauses is told that it is done while a step still runs, and would change weights under it.",
        Edit(Askers.answer, "if outcome.after_steps and in_flight is not None:", "if False:"),
    ),
    _mutant(
        "generation_is_never_continued",
        "bounded_progress",
        "areal-project/AReaL 1160",
        "The order to continue is answered, and nothing goes on.",
        Edit(Continue.apply, "SERVING.next(loop.serving, ServingEvent.CONTINUE)", "loop.serving"),
    ),
    _mutant(
        "who_comes_during_a_pause_is_turned_away",
        "true_causes",
        "vllm 28037",
        "Requests that arrive while the engine is paused are ended as if it stopped.",
        Edit(
            Intake.submit,
            "if end is None and self.draining:",
            'if end is None and (self.draining or self.loop.serving == "paused"):',
        ),
    ),
    _mutant(
        "abort_during_a_pause_is_lost",
        "abort_is_total",
        "vllm-project/tpu-inference 3362",
        "Who is aborted while the engine is paused is not ended.",
        Edit(
            Abort.apply,
            "self.requests,",
            'self.requests if intake.loop.serving != "paused" else (),',
        ),
    ),
    _mutant(
        "deadlines_rest_during_a_pause",
        "bounded_progress",
        "",
        "While the engine is paused nobody looks at deadlines.",
        Edit(CheckDeadlines.apply, "intake.loop", 'intake.loop.serving == "paused" or intake.loop'),
    ),
)
