"""Defects of limits that are set while an engine runs."""

from __future__ import annotations

from pawl.actors.expert_recorder import ExpertRecorder
from pawl.gpu.profiler import Profiler
from pawl.lifecycle.step_times import StepTimes
from pawl.loops.admission import Admission
from pawl.loops.limits import LimitKeeper
from pawl.loops.loop import Loop
from pawl.loops.orders.limits import SlowDown
from pawl.loops.planner import UnifiedPlanner
from tests.mutants.mutant import Edit, Group, Mutant


def _mutant(name: str, resembles: str, what: str, *edits: Edit) -> Mutant:
    return Mutant(name, Group.CONTROL, "limits_hold", resembles, what, edits)


PROFILES = (
    Mutant(
        "tokens_are_counted_after_the_stop",
        Group.CONTROL,
        "auxiliary_conservation",
        "",
        "Tokens that are computed after experts are no longer recorded belong to the record.",
        (Edit(ExpertRecorder.computed, "if self.phase is Counting.RECORDING:", "if self._any:"),),
    ),
    Mutant(
        "profile_goes_on_after_its_failure",
        Group.CONTROL,
        "auxiliary_conservation",
        "",
        "A profile that could not be written is under way for ever: no other can be started.",
        (Edit(Profiler._fail, "self._move(ProfilingEvent.FAIL)", "pass"),),
    ),
)
LIMITS = (
    _mutant(
        "what_was_set_last_is_the_most",
        "",
        "A limit that was lowered cannot be what it was at the start any more.",
        Edit(LimitKeeper.__init__, "msgspec.structs.replace(limits)", "limits"),
    ),
    *PROFILES,
    _mutant(
        "half_of_the_limits_are_set",
        "",
        "Of limits that are set together, those that are right are set though another is refused.",
        Edit(LimitKeeper.set, "if not wrong:", "if True:"),
        Edit(LimitKeeper.set, "setattr(self.now, name, value)", "name in wrong or setattr(self.now, name, value)"),
    ),
    _mutant(
        "slow_down_outlives_its_end",
        "",
        "Steps wait on when they are not to be slowed down any more.",
        Edit(
            SlowDown.apply,
            "self.forward_sleep_time or 0.0",
            "self.forward_sleep_time or intake.loop.limits.now.step_delay_s",
        ),
    ),
    _mutant(
        "only_the_first_of_two_steps_waits",
        "",
        "With overlap, the step that is planned behind another one does not wait.",
        Edit(Loop.turn, "if self.limits.now.step_delay_s:", "if False:"),
    ),
    _mutant(
        "more_run_than_may",
        "",
        "The number of requests that may run is looked at once a step, whoever is admitted in it.",
        Edit(Admission._full, "self.queues.num_running >= self.limits.max_running", "False"),
    ),
    Mutant(
        "prompts_take_the_whole_chunk",
        Group.LIFECYCLE,
        "bounded_gaps",
        "vllm 3279",
        "How long a step takes is not looked at: a long prompt keeps those waiting whose tokens come one by one.",
        (Edit(UnifiedPlanner.budget, "prompt_tokens(decoding,", "prompt_tokens(0,"),),
    ),
    Mutant(
        "who_runs_is_thought_to_wait",
        Group.LIFECYCLE,
        "bounded_gaps",
        "",
        "Steps are longer than for the sake of those who wait: whoever is served already counts as one of them.",
        (Edit(UnifiedPlanner.budget, "queues.num_waiting", "len(queues.table.row_of)"),),
    ),
    Mutant(
        "newcomers_have_the_time_of_prompts_again",
        Group.LIFECYCLE,
        "bounded_gaps",
        "",
        "The time of a step is given out twice: to prompts that go on, and to requests that are admitted.",
        (Edit(UnifiedPlanner._prefill, "budget = left", "pass"),),
    ),
    Mutant(
        "long_prompts_starve",
        Group.LIFECYCLE,
        "prompts_take_turns",
        "",
        "For as long as short prompts come, a long one that has begun is not gone on with.",
        (Edit(UnifiedPlanner._prefill, "self.queues.behind < MOST_BEHIND", "True"),),
    ),
    Mutant(
        "longest_prompt_first",
        Group.LIFECYCLE,
        "prompts_take_turns",
        "",
        "Of prompts that have begun, the one with most left goes first.",
        (Edit(UnifiedPlanner._prefill, "key=self.admission.left_of", "key=self.admission.left_of, reverse=True"),),
    ),
    Mutant(
        "newcomers_before_shorter_prompts",
        Group.LIFECYCLE,
        "prompts_take_turns",
        "",
        "Whoever comes begins at once, and those that have begun wait.",
        (Edit(Admission._try, "self._left(row, granted.num_cached) >= before", "False"),),
    ),
    Mutant(
        "prompts_starve_where_steps_are_slow",
        Group.LIFECYCLE,
        "work_conserving",
        "",
        "Where less than a page fits into the time of a step, prompts wait until nobody decodes any more.",
        (Edit(StepTimes.prompt_tokens, "max(int(min(chunk, fit)), page_size)", "int(min(chunk, fit))"),),
    ),
    Mutant(
        "one_who_waits_has_the_most_time",
        Group.LIFECYCLE,
        "bounded_gaps",
        "",
        "Steps are as long as if many waited, however few do.",
        (Edit(StepTimes.prompt_tokens, "share = min(SHARE + ", "share = max(SHARE + "),),
    ),
    Mutant(
        "steps_are_measured_for_ever",
        Group.LIFECYCLE,
        "bounded_gaps",
        "",
        "Once a step has to show what those who decode take alone, no step beside them has prompts any more.",
        (Edit(StepTimes.resolved, "self.mixed = 0", "pass"),),
    ),
    Mutant(
        "what_prompts_took_is_forgotten",
        Group.LIFECYCLE,
        "bounded_gaps",
        "",
        "What a step with prompts takes is learned from the last of them alone.",
        (Edit(StepTimes.resolved, "self.beyond_s * TOKEN_DECAY + max(", "max("),),
    ),
)
